//! The claims, one test each, on real packets with `replicate = "first-packet"` and `handoff = "owner"`.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use lb_common::{
    flow::{FlowKeyV4, UDP},
    reason::{Action, Reason},
};
use tests::{
    cluster::{Cluster, flow, tcp_flow},
    interrupt,
    tables::{Packets, ranking},
    topology::VIP,
    traffic::{caller::Caller, service::UDP_PORT},
};

use crate::{REPLICATION_LIMIT, claims_cluster, entries_everywhere, ports};

fn udp_flow(port: u16) -> FlowKeyV4 {
    flow(port, UDP_PORT, UDP)
}

/// One datagram to the service and its answer: exactly one packet through the balancers.
fn one_datagram(cluster: &Cluster, port: u16) {
    let socket = cluster.topology.client.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.send_to(b"the only packet", (VIP, UDP_PORT)).unwrap();
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer).expect("the datagram is answered");
    assert_eq!((&answer[..length], from.ip()), (b"the only packet".as_slice(), VIP.into()));
}

fn counted(cluster: &Cluster) -> Vec<(u8, Packets)> {
    cluster.members.iter().map(|member| (member.id, member.tables().packets().unwrap())).collect()
}

/// Packets that each member handed off and delivered since `earlier`.
fn moved(cluster: &Cluster, earlier: &[(u8, Packets)]) -> Vec<(u8, u64, u64)> {
    let difference = |((id, now), (_, before)): ((u8, Packets), &(u8, Packets))| {
        let since = now.since(before);
        (id, since.ended_in(Action::HandOff), since.ended_in(Action::Deliver))
    };
    counted(cluster).into_iter().zip(earlier).map(difference).collect()
}

/// Claims 21, 24, 29, 32: the receiver determines primary and backup.
#[test]
fn the_receiver_of_a_packet_determines_primary_and_backup() {
    let mut cluster = claims_cluster(3);
    for receiver in 1..=3 {
        cluster.receive_at(&[receiver]).unwrap();
        // A flow of which the receiver is neither: it must have found out who is.
        let port = ports(&cluster, udp_flow, |ranked| ranked[2] == receiver).nth(usize::from(receiver)).unwrap();
        let ranked = ranking(&cluster.member(receiver).unwrap().tables().node().unwrap(), &udp_flow(port));
        let before = counted(&cluster);
        one_datagram(&cluster, port);
        for (id, handed_off, delivered) in moved(&cluster, &before) {
            assert_eq!((handed_off, delivered), (u64::from(id == receiver), u64::from(id == ranked[0])), "member {id}");
        }
        for (id, entry) in entries_everywhere(&cluster, &udp_flow(port)) {
            assert_eq!((entry.primary, entry.backup), (ranked[0], ranked[1]), "on member {id}");
        }
    }
}

/// Claims 21, 24, 29, 32: the identity of both is stored in each balancer.
#[test]
fn primary_and_backup_are_stored_in_each_balancer_at_the_first_packet() {
    let cluster = claims_cluster(3);
    for port in 30_000..30_020 {
        one_datagram(&cluster, port);
        let entries = entries_everywhere(&cluster, &udp_flow(port));
        let (_, first) = entries[0];
        assert!(first.primary != 0 && first.backup != 0 && first.primary != first.backup, "{first:?}");
        let address = |(id, entry): &(u8, lb_common::flow::FlowEntry)| {
            let member = cluster.members.iter().find(|member| member.id == *id).unwrap();
            member.tables().backend(entry.backend).unwrap().address
        };
        for entry in &entries {
            assert_eq!((entry.1.primary, entry.1.backup), (first.primary, first.backup), "on member {}", entry.0);
            assert_eq!(address(entry), address(&entries[0]), "the server, on member {}", entry.0);
        }
    }
}

/// Claims 21, 24, 29, 32: the packet is forwarded to the primary, which transmits it to a server.
#[test]
fn the_packet_is_forwarded_to_the_primary_which_transmits_it_to_a_server() {
    let mut cluster = claims_cluster(3);
    cluster.receive_at(&[1]).unwrap();
    // Kept open: the end of the first connection would be counted with the second.
    let mut callers = Vec::new();
    for primary in [2, 3] {
        let port = ports(&cluster, tcp_flow, |ranked| ranked[0] == primary).next().unwrap();
        let before = counted(&cluster);
        let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
        for _ in 0..10 {
            caller.ask().unwrap();
        }
        assert!((1..=3).contains(&caller.server()));
        let moved = moved(&cluster, &before);
        let of =
            |id: u8| moved.iter().find(|moved| moved.0 == id).map(|(_, off, delivered)| (*off, *delivered)).unwrap();
        let (handed_off, delivered_by_receiver) = of(1);
        assert!(handed_off >= 12, "{moved:?}");
        assert_eq!(delivered_by_receiver, 0, "{moved:?}");
        assert_eq!(of(primary), (0, handed_off), "{moved:?}");
        assert_eq!(of(5 - primary), (0, 0), "{moved:?}");
        callers.push(caller);
    }
}

/// Claims 21, 24, 29, 32: without the primary, the backup determined before transmits the packet.
#[test]
fn when_the_primary_is_not_available_the_backup_determined_before_transmits_the_packet() {
    let mut cluster = claims_cluster(3);
    // Once member 4 is there, a fresh ranking without the primary would have it instead of the stored backup.
    cluster.add_balancer(4).unwrap();
    let node = cluster.members[0].tables().node().unwrap();
    let mut later = node;
    later.configured |= 1 << 3;
    let differs = |port: &u16| {
        let (old, new) = (ranking(&node, &tcp_flow(*port)), ranking(&later, &tcp_flow(*port)));
        let fresh = new.iter().find(|id| **id != old[0]);
        fresh == Some(&4)
    };
    let port = (20_000..60_000).find(differs).unwrap();
    let stored = ranking(&node, &tcp_flow(port));
    let (primary, backup, receiver) = (stored[0], stored[1], stored[2]);

    let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
    caller.ask().unwrap();
    let server = caller.server();
    for member in cluster.members.iter().filter(|member| member.id != 4) {
        let is_known = || member.tables().flow(&tcp_flow(port)).unwrap().is_some();
        let came = interrupt::wait_until(REPLICATION_LIMIT, Duration::from_millis(5), is_known).unwrap();
        assert!(came, "member {} does not know the flow", member.id);
    }
    cluster.reconfigure().unwrap();
    let newcomer = cluster.member(4).unwrap();
    newcomer.start().unwrap();
    newcomer.wait_ready(tests::cluster::READY_LIMIT).unwrap();
    for (id, entry) in entries_everywhere(&cluster, &tcp_flow(port)) {
        assert_eq!((entry.primary, entry.backup), (primary, backup), "on member {id}");
    }

    cluster.receive_at(&[receiver]).unwrap();
    cluster.cut(primary).unwrap();
    caller.ask().unwrap();
    let survivors = |cluster: &Cluster| -> Vec<(u8, Packets)> {
        cluster.others(primary).map(|member| (member.id, member.tables().packets().unwrap())).collect()
    };
    let before = survivors(&cluster);
    for _ in 0..5 {
        caller.ask().unwrap();
    }
    for ((id, now), (_, before)) in survivors(&cluster).iter().zip(&before) {
        let since = now.since(before);
        let (handed_off, delivered) = (since.of(Reason::HandOffKnown), since.of(Reason::DeliverKnown));
        assert_eq!(handed_off >= 5, *id == receiver, "member {id} handed off {handed_off}");
        assert_eq!(delivered >= 5, *id == backup, "member {id} delivered {delivered}; the stored backup is {backup}");
    }
    assert_eq!(caller.server(), server);
}

/// Claims 22, 25, 30, 33: one score per balancer, ranked; the highest is primary, the second highest backup.
#[test]
fn the_highest_score_is_the_primarys_and_the_second_highest_the_backups() {
    let cluster = claims_cluster(4);
    let mut pairs = std::collections::BTreeSet::new();
    for port in 31_000..31_064 {
        one_datagram(&cluster, port);
        for (id, entry) in entries_everywhere(&cluster, &udp_flow(port)) {
            let node = cluster.members[usize::from(id) - 1].tables().node().unwrap();
            let ranked = ranking(&node, &udp_flow(port));
            assert_eq!(ranked.len(), 4);
            assert_eq!([entry.primary, entry.backup], ranked[..2], "port {port} on member {id}");
            pairs.insert((entry.primary, entry.backup));
        }
    }
    assert!(pairs.len() > 8, "only {} of the 12 pairs came up in 64 flows", pairs.len());
}

/// Claims 23, 28, 31, 34: a receiver that is itself the primary transmits the packet to a server directly.
#[test]
fn a_receiver_that_is_the_primary_transmits_to_a_server_directly() {
    let mut cluster = claims_cluster(3);
    for receiver in 1..=3 {
        cluster.receive_at(&[receiver]).unwrap();
        let port = ports(&cluster, tcp_flow, |ranked| ranked[0] == receiver).next().unwrap();
        let before = counted(&cluster);
        let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
        for _ in 0..10 {
            caller.ask().unwrap();
        }
        for (id, handed_off, delivered) in moved(&cluster, &before) {
            assert_eq!(handed_off, 0, "by member {id}");
            assert_eq!(delivered >= 12, id == receiver, "member {id} delivered {delivered}");
            assert_eq!(delivered == 0, id != receiver, "member {id} delivered {delivered}");
        }
    }
}
