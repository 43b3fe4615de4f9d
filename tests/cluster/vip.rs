//! What a VIP answers, and what its services may be told.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use lb_common::reason::Reason;
use tests::{
    cluster::Cluster,
    config::Config,
    topology::{VIP, VIP_V6},
    traffic::{
        caller::Caller,
        datagrams::{Pace, Stream},
        service::{OTHER_TCP_PORT, TCP_PORT},
    },
};

use crate::{cluster, counted, said, started};

#[test]
fn a_ping_of_any_size_is_answered_by_the_members() {
    let cluster = started(3, Config::add_vip_v6);
    let vips = [VIP.to_string(), VIP_V6.to_string()];
    // The second size is sent, and answered, as three fragments.
    for (vip, bytes, packets) in vips.iter().flat_map(|vip| [(vip, "56", 5), (vip, "3000", 15)]) {
        let before = counted(&cluster, Reason::PingAnswered);
        let ping = said(&cluster.topology.client, "ping", &["-c", "5", "-i", "0.05", "-W", "1", "-s", bytes, vip]);
        assert!(ping.contains("5 received"), "{ping}");
        assert!(!ping.contains("wrong data"), "{ping}");
        assert_eq!(counted(&cluster, Reason::PingAnswered) - before, packets, "{bytes} bytes to {vip}");
    }
}

#[test]
fn flows_of_one_client_share_a_server_where_the_service_says_so() {
    let spread = |cluster: &Cluster| {
        let ask = |port| {
            let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
            caller.ask().unwrap();
            caller.server()
        };
        (47_000..47_030).map(ask).collect::<BTreeSet<u32>>()
    };
    assert_eq!(spread(&cluster(2)).len(), 3, "30 flows, each with a server of its own");
    let sticky = started(2, |config| config.services[0].affinity = Some("source"));
    assert_eq!(spread(&sticky).len(), 1);
}

#[test]
fn a_service_of_every_port_takes_what_has_none_of_its_own() {
    let cluster = started(3, |config| {
        config.services[0].vip = vec![format!("{VIP}:any/tcp"), format!("{VIP}:any/udp")];
    });
    for (port, to) in (48_000..48_020).zip([TCP_PORT, OTHER_TCP_PORT].into_iter().cycle()) {
        let target = SocketAddr::from((VIP, to));
        let mut caller = Caller::open_to(&cluster.topology.client, target, port).unwrap();
        caller.ask().unwrap();
    }
    let stream = Stream::start(&cluster.topology.client, Pace { flows: 10, per_second: 500, bytes: 64 }).unwrap();
    thread::sleep(Duration::from_millis(500));
    let tally = stream.finish().unwrap();
    assert!(tally.received > 100 && tally.lost() <= 2, "{tally:?}");
}
