//! What a real stack sends to a VIP besides whole packets of TCP and small datagrams.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use lb_common::reason::Reason;
use tests::{
    cluster::tcp_flow,
    netns::Namespace,
    topology::{INTERFACE, VIP},
    traffic::{
        caller::Caller,
        datagrams::{Pace, Stream},
        service::UDP_PORT,
    },
};

use crate::{built, cluster, counted, ports, said, server_socket};

/// Packets of UDP that the stack in a namespace has given to sockets.
fn datagrams_in(namespace: &Namespace) -> u64 {
    let snmp = namespace.within(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let line = snmp.lines().rfind(|line| line.starts_with("Udp:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn fragments_of_datagrams_go_where_the_whole_packets_of_their_flow_go() {
    let cluster = cluster(3);
    // The router and the members spread fragments by addresses: with one of the client's, all might meet where they are received.
    for n in 0..12_u8 {
        let (source, port) = (Ipv4Addr::new(10, 0, 0, 20 + n), 45_000 + u16::from(n));
        cluster.topology.client.ip(&[&format!("addr add {source}/24 dev {INTERFACE}")]).unwrap();
        let socket = cluster.topology.client.within(|| UdpSocket::bind((source, port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let before: Vec<u64> = cluster.servers.iter().map(|server| datagrams_in(&server.host.namespace)).collect();
        let mut answer = [0; 5000];
        for round in 0..10_u8 {
            // From the first packet on, of a flow that is known later, and of one datagram that just fits.
            for length in [4000, 100, 1472] {
                let sent = vec![round; length];
                socket.send_to(&sent, (VIP, UDP_PORT)).unwrap();
                let received = socket.recv(&mut answer).expect("the datagram is answered");
                assert!(answer[..received] == sent, "{received} bytes came back");
            }
        }
        let after = cluster.servers.iter().map(|server| datagrams_in(&server.host.namespace));
        let mut per_server: Vec<u64> = after.zip(before).map(|(after, before)| after - before).collect();
        per_server.sort_unstable();
        assert_eq!(per_server, [0, 0, 30], "port {port}");
    }
    assert!(counted(&cluster, Reason::HandOffFragment) > 0, "fragments met where they were received, every time");
    assert_eq!(counted(&cluster, Reason::DropFragmentNoHead), 0);
}

#[test]
fn datagrams_in_fragments_are_not_lost_under_load() {
    let cluster = cluster(3);
    let stream = Stream::start(&cluster.topology.client, Pace { flows: 40, per_second: 500, bytes: 4000 }).unwrap();
    thread::sleep(Duration::from_secs(1));
    let tally = stream.finish().unwrap();
    println!("{tally:?}");
    assert!(tally.sent > 300 && tally.wrong == 0, "{tally:?}");
    assert!(tally.lost() <= tally.sent / 100, "{tally:?}");
}

#[test]
fn bulk_datagrams_of_full_size_are_not_lost() {
    let cluster = cluster(3);
    let stream = Stream::start(&cluster.topology.client, Pace { flows: 64, per_second: 5000, bytes: 1400 }).unwrap();
    thread::sleep(Duration::from_secs(2));
    let tally = stream.finish().unwrap();
    println!("{tally:?}: {:.1} Mbit/s each way", tally.sent as f64 * 1400.0 * 8.0 / 2e6);
    assert!(tally.sent > 5000 && tally.wrong == 0, "{tally:?}");
    assert!(tally.lost() <= tally.sent / 1000, "{tally:?}");
}

/// The client promises to take segments that a link on the way does not carry.
#[test]
fn a_server_hears_that_the_path_to_its_client_is_narrow() {
    let mut cluster = cluster(3);
    cluster.receive_at(&[1]).unwrap();
    let mut taught = Vec::new();
    // Whether its owner is the receiver of the error, or not.
    for owned_by_receiver in [true, false] {
        cluster.topology.narrow_way_back(1500).unwrap();
        let at_receiver = |ranked: &[u8]| (ranked[0] == 1) == owned_by_receiver;
        // A server that has learnt the size from another connection would have it from the start.
        let (port, mut caller) = ports(&cluster, tcp_flow, at_receiver)
            .take(50)
            .map(|port| {
                let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
                caller.echo().unwrap();
                (port, caller)
            })
            .find(|(_, caller)| !taught.contains(&caller.server()))
            .unwrap();
        taught.push(caller.server());
        let socket = server_socket(&cluster, caller.server(), port);
        assert!(socket.contains("pmtu:1600"), "{socket}");

        let before = counted(&cluster, Reason::DeliverQuote);
        cluster.topology.narrow_way_back(1300).unwrap();
        caller.echo().unwrap();
        caller.upload().unwrap();
        let socket = server_socket(&cluster, caller.server(), port);
        assert!(socket.contains("pmtu:1300"), "{socket}");
        assert!(counted(&cluster, Reason::DeliverQuote) > before);
        assert_eq!(counted(&cluster, Reason::DropQuote), 0);
    }
}

#[test]
fn a_client_whose_packets_do_not_fit_the_tunnel_is_told_the_size_that_does() {
    let mut cluster = built(3, |_| ());
    let hosts: Vec<_> = cluster.members.iter().map(|member| member.host.clone()).collect();
    hosts.iter().for_each(|host| cluster.topology.set_mtu(host, 1500).unwrap());
    cluster.start_members().unwrap();
    for port in 46_000..46_006 {
        let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
        caller.upload().unwrap();
        caller.echo().unwrap();
    }
    assert!(counted(&cluster, Reason::TooBigAnswered) > 0);
    let vip = VIP.to_string();
    let route = said(&cluster.topology.client, "ip", &["route", "get", &vip]);
    assert!(route.contains("mtu 1480"), "{route}");
}
