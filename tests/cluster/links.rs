//! Links of other kinds than one Ethernet link of ordinary size.

use std::fs;

use lb_common::reason::Action;
use tests::{
    cluster::{Cluster, Shape, tcp_flow},
    netns::Namespace,
    topology::{INTERFACE, SERVER_INTERFACE},
    traffic::caller::Caller,
};

use crate::{built, ports, said, server_socket};

#[test]
fn jumbo_frames_pass_a_hand_off_in_native_mode() {
    let mut cluster = Cluster::build(Shape { balancers: 2, servers: 0, naive: false }, |_| ()).unwrap();
    let hosts: Vec<_> = cluster.members.iter().map(|member| member.host.clone()).collect();
    hosts.iter().for_each(|host| cluster.topology.set_mtu(host, 9100).unwrap());
    cluster.topology.set_client_mtu(9000).unwrap();
    let server = cluster.add_jumbo_server(1, 9100).unwrap();
    cluster.config.add_backend(&cluster.servers[server].host);
    cluster.write_config().unwrap();
    cluster.start_members().unwrap();
    cluster.receive_at(&[1]).unwrap();
    for owner in [1, 2] {
        let port = ports(&cluster, tcp_flow, |ranked| ranked[0] == owner).next().unwrap();
        let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
        for _ in 0..16 {
            caller.echo().unwrap();
            caller.upload().unwrap();
        }
        let socket = server_socket(&cluster, caller.server(), port);
        assert!(socket.contains("advmss:9048") || socket.contains("rcvmss:8"), "no large segments came: {socket}");
    }
    let link = said(&cluster.members[0].host.namespace, "ip", &["-details", "link", "show", INTERFACE]);
    assert!(link.contains("prog/xdp") && !link.contains("xdpgeneric"), "{link}");
}

#[test]
fn a_server_is_reached_by_another_interface_than_packets_come_in_by() {
    let mut cluster = built(2, |config| config.interfaces = vec![INTERFACE, SERVER_INTERFACE]);
    let hosts: Vec<_> = cluster.members.iter().map(|member| member.host.clone()).collect();
    hosts.iter().for_each(|host| cluster.topology.add_server_link(host).unwrap());
    cluster.start_members().unwrap();
    let mut callers: Vec<Caller> =
        (49_000..49_020).map(|port| Caller::open(&cluster.topology.client, port).unwrap()).collect();
    for caller in &mut callers {
        caller.upload().unwrap();
        caller.echo().unwrap();
    }
    for member in &cluster.members {
        let delivered = member.tables().packets().unwrap().ended_in(Action::Deliver);
        let left = sent_by(&member.host.namespace, SERVER_INTERFACE);
        assert!(delivered > 0 && left >= delivered, "{}: {left} of {delivered} left by it", member.name());
    }
}

/// Frames that an interface has sent, XDP's among them.
fn sent_by(namespace: &Namespace, interface: &str) -> u64 {
    let table = namespace.within(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:"))).unwrap();
    line.split_whitespace().nth(9).unwrap().parse().unwrap()
}
