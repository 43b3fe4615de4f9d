//! The kernel decides as the model does; `cargo xtask accept differential` sends twenty times as many packets.

use model::Model;
use tests::differential;

const CASES: u64 = 50_000;

#[test]
fn the_kernel_decides_as_the_model_does() {
    let seed = std::env::var("TANDEM_SEED").map_or_else(|_| random(), |text| text.parse().expect("a number"));
    println!("replay with TANDEM_SEED={seed}");
    let report = differential::run(seed, CASES).unwrap_or_else(|difference| panic!("{difference:#}"));
    for (reason, count) in &report.reasons {
        println!("{count:>6} {}", reason.name());
    }
    println!("{:.0} packets a second", report.rate());
    // A test that never sees an outcome proves nothing of it.
    assert_eq!(report.unseen(), [""; 0]);
}

#[test]
fn a_model_that_decides_otherwise_is_found_out() {
    let faults: [fn(&mut Model); 6] = [
        |model| model.node.hash_key[0] ^= 1,
        |model| model.node.flags ^= 1,
        |model| model.liveness.eligible ^= 1,
        |model| model.backends.values_mut().for_each(|backend| backend.next_hop.mtu = 41),
        |model| model.node.incarnation += 1,
        |model| model.node.delivery_sources[1].spread = [0xff, 0, 0, 0],
    ];
    for (nth, fault) in faults.into_iter().enumerate() {
        assert!(differential::finds(fault).expect("the programs run"), "fault {nth}");
    }
}

fn random() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_nanos() as u64 % 1_000_000_007
}
