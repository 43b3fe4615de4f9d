//! How fast records go through the core: `cargo test --release -- --ignored --nocapture core::tests::pace`.

#![expect(clippy::disallowed_types, reason = "it measures")]

use std::time::Instant;

use super::*;

const FLOWS: u32 = 1_000_000;

fn flow(n: u32) -> FlowKeyV4 {
    FlowKeyV4 {
        source: n.to_be_bytes(),
        destination: [203, 0, 113, 10],
        source_port: 40_000_u16.to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol: TCP,
        padding: FromZeros::new_zeroed(),
    }
}

fn say(what: &str, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    println!("{what}: {:.2} M/s, {:.0} ns each", f64::from(FLOWS) / seconds / 1e6, seconds * 1e9 / f64::from(FLOWS));
}

#[test]
#[ignore = "a measurement, of use in a release build only"]
fn records_per_second() {
    let mut net = Net::idle();
    for id in 1..=2 {
        let limits = Limits { window: usize::MAX, queue: usize::MAX, ..Limits::default() };
        net.add(View { limits, ..view(id, 2) });
        net.start(id);
    }
    net.run(2 * S);
    let now = net.now;
    let mut cores: Vec<Core> = (1..=2).filter_map(|id| net.host(id).core.take()).collect();
    let sessions: Vec<Session> =
        cores.iter().map(|core| core.peers.values().next().and_then(|p| p.open).expect("open")).collect();

    let began = Instant::now();
    for n in 0..FLOWS {
        let key = flow(n);
        let entry = FlowEntry {
            last_seen: tick(now),
            created: tick(now),
            tag: key.tag(),
            creator_incarnation: 1,
            backend: 1,
            state: STATE_ESTABLISHED,
            creator: 1 | WITNESSED,
            primary: 1,
            backup: 2,
            ..FlowEntry::new_zeroed()
        };
        cores[0].handle(now, Input::Observed { key: key.into(), entry });
    }
    say("observed", began);

    let began = Instant::now();
    cores[0].handle(now, Input::Tick);
    let frames: Vec<Vec<u8>> = std::iter::from_fn(|| cores[0].poll_output())
        .filter_map(|output| match output {
            Output::Send { bytes, .. } => Some(bytes),
            _ => None,
        })
        .collect();
    say("encoded", began);

    let began = Instant::now();
    let mut puts = 0;
    for bytes in frames {
        cores[1].handle(now, Input::Received { session: sessions[1], bytes });
        puts += std::iter::from_fn(|| cores[1].poll_output()).filter(|o| matches!(o, Output::PutFlow { .. })).count();
    }
    say("applied", began);
    assert_eq!(puts, FLOWS as usize);
    assert_eq!(cores[1].status().records, FLOWS as usize);

    let began = Instant::now();
    for round in 1..=100 {
        cores[1].handle(now + round * 20 * MS, Input::Tick);
    }
    say("scanned", began);
    println!("a row is {} bytes", size_of::<crate::core::table::Row>());
}
