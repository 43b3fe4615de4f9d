//! What the end and the renewal of an agent and its datapath cost: pairs of runs with and without it, so that the machine's own
//! losses cancel out.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    check::Check,
    cluster::{Cluster, READY_LIMIT, Shape},
    interrupt,
    member::{self, Member},
    traffic::{
        datagrams::{Pace, Stream},
        load::{Load, Plan},
    },
    variant::Variant,
};

const PAIRS: usize = 5;
const PACE: Pace = Pace { flows: 64, per_second: 5_000, bytes: 64 };
const VICTIM: u8 = 2;
/// Traffic before it happens, then without an agent: longer than its lease and the peers' patience; then with a new one.
const PHASES: [Duration; 3] = [Duration::from_millis(700), Duration::from_millis(1500), Duration::from_millis(800)];

/// What happens to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Its agent is killed.
    Kill,
    /// Its agent stops as planned, and leaves the datapath.
    Stop,
    /// Another version's program takes the place of its own; then its agent is killed, and the next one brings its own program.
    Upgrade,
}

/// What one run lost.
struct Outcome {
    lost: u64,
    handshakes_failed: u64,
    broken: usize,
}

pub(super) fn kill() -> Result<Vec<Check>> {
    pairs(Event::Kill)
}

pub(super) fn stop() -> Result<Vec<Check>> {
    pairs(Event::Stop)
}

pub(super) fn upgrade() -> Result<Vec<Check>> {
    pairs(Event::Upgrade)
}

fn pairs(event: Event) -> Result<Vec<Check>> {
    let mut cluster = Cluster::start(Shape { balancers: 3, servers: 4, naive: false }, |_| ())?;
    if event == Event::Upgrade {
        Variant::OtherVersion.object()?;
    }
    let mut differences = Vec::new();
    let (mut handshakes_failed, mut broken) = (0, 0);
    for _ in 0..PAIRS {
        let control = measure(&mut cluster, None)?;
        let with = measure(&mut cluster, Some(event))?;
        differences.push(with.lost as i64 - control.lost as i64);
        handshakes_failed += with.handshakes_failed;
        broken += with.broken;
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

fn measure(cluster: &mut Cluster, event: Option<Event>) -> Result<Outcome> {
    let load = Load::start(&cluster.topology.client, Plan { shorts_per_second: 50, ..Plan::quiet() })?;
    let stream = Stream::start(&cluster.topology.client, PACE)?;
    interrupt::pause(PHASES[0])?;
    match event {
        None => {}
        Some(Event::Kill) => cluster.member(VICTIM)?.kill()?,
        Some(Event::Stop) => cluster.member(VICTIM)?.stop(READY_LIMIT)?,
        Some(Event::Upgrade) => {
            other_version(cluster.member(VICTIM)?)?;
            cluster.member(VICTIM)?.kill()?;
        }
    }
    interrupt::pause(PHASES[1])?;
    if event.is_some() {
        let member = cluster.member(VICTIM)?;
        member.start()?;
        member.wait_ready(READY_LIMIT).context("afterwards")?;
    }
    interrupt::pause(PHASES[2])?;
    let tally = stream.finish()?;
    let ledger = load.finish();
    let shorts = ledger.shorts();
    Ok(Outcome { lost: tally.lost(), handshakes_failed: shorts.handshakes_failed, broken: shorts.broken.len() })
}

/// Upgrades the member's datapath, and leaves the watch to its agent.
fn other_version(member: &Member) -> Result<()> {
    let mut command = member.host.namespace.command(member::binary()?);
    command.args(["datapath", "upgrade", "--object"]).arg(Variant::OtherVersion.object()?);
    let mut command = command.arg("--pin-dir").arg(member.pins()).stdout(Stdio::null()).stdin(Stdio::null()).spawn()?;
    let previous = member.pins().join("prog_old");
    let before = crate::tables::program_id(&previous);
    let is_switched = || crate::tables::program_id(&previous) != before;
    let switched = interrupt::wait_until(READY_LIMIT, Duration::from_millis(5), is_switched);
    command.kill()?;
    command.wait()?;
    ensure!(switched?, "the datapath of {} was not upgraded", member.name());
    Ok(())
}
