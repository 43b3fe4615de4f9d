//! The lab itself, without balancers: what it loses or reports must come from what is tested in it.

use std::{sync::Arc, thread, time::Duration};

use tests::{
    run::Run,
    server::Server,
    topology::Topology,
    traffic::{
        datagrams::{Pace, Stream},
        load::{Load, Plan},
        record::Fault,
    },
};

/// The VIP routed straight to one server.
fn straight() -> (Server, Topology) {
    let run = Arc::new(Run::new().unwrap());
    let mut topology = Topology::new(Arc::clone(&run)).unwrap();
    let host = topology.add_server(1).unwrap();
    topology.announce(&host).unwrap();
    (Server::bare(1, host).unwrap(), topology)
}

#[test]
fn the_lab_by_itself_breaks_nothing() {
    let (_server, topology) = straight();
    let load = Load::start(&topology.client, Plan { shorts_per_second: 100, ..Plan::mixed(200) }).unwrap();
    load.wait_open(Duration::from_secs(10)).unwrap();
    thread::sleep(Duration::from_secs(1));
    load.wake_idle();
    let ledger = load.finish();
    assert!(ledger.broken().is_empty(), "{:?}", ledger.broken());
    let shorts = ledger.shorts();
    assert!(shorts.done >= 50, "{shorts:?}");
    assert_eq!(shorts.handshakes_failed, 0);
    assert!(ledger.longest_wait() < Duration::from_millis(200), "{:?}", ledger.longest_wait());
    assert!(ledger.long().iter().all(|record| record.facts().server == 1));
    println!("longest wait {:?}, {} shorts", ledger.longest_wait(), shorts.done);
}

#[test]
fn the_lab_by_itself_loses_no_paced_datagram() {
    let (_server, topology) = straight();
    let stream = Stream::start(&topology.client, Pace { flows: 50, per_second: 5000, bytes: 64 }).unwrap();
    thread::sleep(Duration::from_secs(2));
    let tally = stream.finish().unwrap();
    println!("{tally:?}");
    assert!(tally.sent > 5000);
    assert_eq!((tally.lost(), tally.doubled, tally.wrong), (0, 0, 0), "{tally:?}");
}

#[test]
fn a_server_that_goes_away_is_noticed() {
    let (server, topology) = straight();
    let load = Load::start(&topology.client, Plan { chatty: 10, idle: 2, ..Plan::quiet() }).unwrap();
    load.wait_open(Duration::from_secs(10)).unwrap();
    drop(server);
    thread::sleep(Duration::from_millis(300));
    let ledger = load.finish();
    assert_eq!(ledger.broken().len(), 12);
    for record in ledger.broken() {
        let (fault, _) = record.facts().fault.unwrap();
        assert!(matches!(fault, Fault::Closed | Fault::Reset), "{fault}");
    }
}

#[test]
fn a_connection_that_meets_another_server_is_broken() {
    let (_first, mut topology) = straight();
    let load = Load::start(&topology.client, Plan { chatty: 5, ..Plan::quiet() }).unwrap();
    load.wait_open(Duration::from_secs(10)).unwrap();
    let old = topology.add_server(2).unwrap();
    let _second = Server::bare(2, old.clone()).unwrap();
    let first = _first.host.clone();
    topology.announce(&old).unwrap();
    topology.withdraw(&first).unwrap();
    thread::sleep(Duration::from_millis(300));
    let ledger = load.finish();
    assert_eq!(ledger.broken().len(), 5, "a server resets what it does not know");
}
