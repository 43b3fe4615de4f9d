//! IPv6 to clients, to members and to servers, in every mixture with IPv4.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use lb_common::reason::{Action, Reason};
use tests::{
    topology::{
        Family::{self, V4, V6},
        VIP, VIP_V6,
    },
    traffic::{
        caller::Caller,
        datagrams::{Pace, Stream},
        load::{Load, Plan},
        service::TCP_PORT,
    },
};

use crate::{counted, started};

/// Members with addresses of one family, servers of one, clients of both.
fn both_vips_work(underlay: Family, behind: Family) {
    let cluster = started(3, |config| {
        (config.underlay, config.behind) = (underlay, behind);
        config.add_vip_v6();
    });
    for vip in [IpAddr::from(VIP), IpAddr::from(VIP_V6)] {
        let target = SocketAddr::from((vip, TCP_PORT));
        let plan = Plan { target, shorts_per_second: 20, ..Plan::mixed(30) };
        let load = Load::start(&cluster.topology.client, plan).unwrap();
        load.wait_open(Duration::from_secs(10)).unwrap();
        let pace = Pace { flows: 20, per_second: 500, bytes: 64 };
        let stream = Stream::start_to(&cluster.topology.client, vip, pace).unwrap();
        let large = Stream::start_to(&cluster.topology.client, vip, Pace { per_second: 100, bytes: 4000, ..pace });
        thread::sleep(Duration::from_secs(1));
        for tally in [stream.finish().unwrap(), large.unwrap().finish().unwrap()] {
            // Routers do not fragment IPv6: of each of the three servers the first answer that the client's link does not carry
            // is lost, and the server is told.
            assert!(
                tally.received > 50 && tally.lost() <= 3 + tally.sent / 100 && tally.wrong == 0,
                "{vip}: {tally:?}"
            );
        }
        let ledger = load.finish();
        assert!(ledger.broken().is_empty(), "{vip}: {:#?}", ledger.broken());
        assert_eq!(ledger.shorts().handshakes_failed, 0, "{vip}");
        let mut caller = Caller::open_to(&cluster.topology.client, target, 44_000).unwrap();
        caller.upload().unwrap();
        caller.echo().unwrap();
    }
    for member in &cluster.members {
        let packets = member.tables().packets().unwrap();
        assert!(packets.ended_in(Action::HandOff) > 0 && packets.ended_in(Action::Deliver) > 0, "{packets:?}");
    }
    assert!(counted(&cluster, Reason::DeliverQuote) > 0, "no server was told of the client's link");
    assert_eq!(counted(&cluster, Reason::DropTooBig) + counted(&cluster, Reason::TooBigAnswered), 0);
}

#[test]
fn members_and_servers_of_v4_carry_both() {
    both_vips_work(V4, V4);
}

#[test]
fn members_of_v4_and_servers_of_v6_carry_both() {
    both_vips_work(V4, V6);
}

#[test]
fn members_of_v6_and_servers_of_v4_carry_both() {
    both_vips_work(V6, V4);
}

#[test]
fn members_and_servers_of_v6_carry_both() {
    both_vips_work(V6, V6);
}
