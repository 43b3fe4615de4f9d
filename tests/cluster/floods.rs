//! The acceptance rows of floods, in short.

use std::time::Duration;

use tests::{acceptance::floods::Ground, traffic::flood::Kind};

#[test]
#[ignore = "its rate is the machine's: rows flood-syn, flood-handshake and flood-udp of `cargo xtask accept`"]
fn a_flood_takes_nothing_from_those_before_it_and_those_who_come_meanwhile() {
    let mut ground = Ground::lay().unwrap();
    let mut failed = Vec::new();
    // Handshakes last: what they leave expires, and would hide what another flood leaves.
    for kind in [Kind::Syn, Kind::Udp, Kind::Handshake] {
        for check in ground.flood(kind, Duration::from_secs(3)).unwrap() {
            println!("{kind:?}: {} {} ({})", check.name, check.figure, check.bound);
            failed.extend((!check.passed).then_some((kind, check)));
        }
    }
    assert_eq!(ground.finish(), 0, "live connections did not answer at the end");
    assert!(failed.is_empty(), "{failed:#?}");
}
