//! What kill -9 of an agent costs: pairs of runs with and without it, so that the machine's own losses cancel out.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{
    check::Check,
    cluster::{Cluster, READY_LIMIT, Shape},
    interrupt,
    traffic::{
        datagrams::{Pace, Stream},
        load::{Load, Plan},
    },
};

const PAIRS: usize = 5;
const PACE: Pace = Pace { flows: 64, per_second: 5_000, bytes: 64 };
const VICTIM: u8 = 2;
/// Traffic before the kill, then without an agent: longer than its lease and the peers' patience; then with a new one.
const PHASES: [Duration; 3] = [Duration::from_millis(700), Duration::from_millis(1500), Duration::from_millis(800)];

/// What one run lost.
struct Outcome {
    lost: u64,
    handshakes_failed: u64,
    broken: usize,
}

pub(super) fn run() -> Result<Vec<Check>> {
    let mut cluster = Cluster::start(Shape { balancers: 3, servers: 4, naive: false }, |_| ())?;
    let mut differences = Vec::new();
    let (mut handshakes_failed, mut broken) = (0, 0);
    for _ in 0..PAIRS {
        let control = measure(&mut cluster, false)?;
        let killed = measure(&mut cluster, true)?;
        differences.push(killed.lost as i64 - control.lost as i64);
        handshakes_failed += killed.handshakes_failed;
        broken += killed.broken;
    }
    differences.sort_unstable();
    let median = differences[PAIRS / 2];
    let figure = format!("{median} {differences:?}");
    Ok(vec![
        Check::new("datagrams lost, median of the differences", figure, "≤ 0".to_owned(), median <= 0),
        Check::count_at_most("handshakes failed", handshakes_failed, 0),
        Check::count_at_most("connections broken", broken as u64, 0),
    ])
}

fn measure(cluster: &mut Cluster, kill: bool) -> Result<Outcome> {
    let load = Load::start(&cluster.topology.client, Plan { shorts_per_second: 50, ..Plan::quiet() })?;
    let stream = Stream::start(&cluster.topology.client, PACE)?;
    interrupt::pause(PHASES[0])?;
    if kill {
        cluster.member(VICTIM)?.kill()?;
    }
    interrupt::pause(PHASES[1])?;
    if kill {
        let member = cluster.member(VICTIM)?;
        member.start()?;
        member.wait_ready(READY_LIMIT).context("after the kill")?;
    }
    interrupt::pause(PHASES[2])?;
    let tally = stream.finish()?;
    let ledger = load.finish();
    let shorts = ledger.shorts();
    Ok(Outcome { lost: tally.lost(), handshakes_failed: shorts.handshakes_failed, broken: shorts.broken.len() })
}
