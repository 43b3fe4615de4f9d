//! What the members' state costs: how fast records are applied, a joiner is filled, equal tables are compared.
//!
//! Two cores, which are the agent's own, in this process; what the receiver wants written goes into a real flow map, as
//! the agent writes it. There is no network between them: what it adds is its own bandwidth and delay. Only how long a
//! change waits is measured with connections, see `delay`.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, MapData};
use lb_common::{
    address::mapped,
    flow::{FlowEntry, FlowKey as _, FlowKeyV4, STATE_ESTABLISHED, TCP, WITNESSED, tick},
    service::ServiceKey,
};
use lb_userspace::{
    core::{
        Adopted, Core, Input, Key, Output, PutMode, Session, View,
        view::{Backend, Limits, Member, Probing, Service, Timeouts},
    },
    io::{clock::now_ns, flows::FlowTable},
};
use serde::Serialize;
use zerocopy::FromZeros as _;

use super::delay;

const VIP: [u8; 4] = [203, 0, 113, 10];
/// Flows in the table of a member that has many.
pub(super) const FLOWS: u32 = 1_000_000;

/// Events that the agent takes at a time.
const BATCH: u32 = 512;
/// Between two rounds of the cores.
const ROUND_MS: u64 = 20;
/// A frame of digests.
const DIGESTS_BYTES: usize = 4096 * 8;

/// One figure beside what it must reach.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// The figure.
    pub figure: f64,
    /// What it must be, in the same unit.
    pub bound: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Whether the bound is the least, not the most.
    pub at_least: bool,
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
}

impl Row {
    /// Whether the figure is as it must be.
    pub fn is_met(&self) -> bool {
        if self.at_least { self.figure >= self.bound } else { self.figure <= self.bound }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let (bound, met) =
                (if row.at_least { "at least" } else { "at most" }, if row.is_met() { "" } else { "  NOT MET" });
            writeln!(f, "{:<58} {:>12.1} {:<8} {bound} {}{met}", row.what, row.figure, row.unit, row.bound)?;
        }
        Ok(())
    }
}

/// Measures all rows; takes half a minute and 600 MB.
pub fn run() -> Result<Figures> {
    let mut rows = Vec::new();
    let mut pair = Pair::of_ready_members()?;
    let applied = pair.tell(FLOWS)?;
    let a_second = f64::from(FLOWS) / applied.as_secs_f64();
    rows.push(row("new flows applied by one receiver, its map written", a_second, 200_000.0, "/s", true));

    let (bytes, took) = pair.compare()?;
    rows.push(row("two equal tables of 1,000,000 compared, on the wire", bytes as f64 / 1024.0, 40.0, "KiB", false));
    rows.push(row("two equal tables of 1,000,000 compared", ms(took), 100.0, "ms", false));

    pair.replace_second()?;
    let took = pair.join(FLOWS)?;
    rows.push(row("1,000,000 flows to a joiner, until it knows all", took.as_secs_f64(), 3.0, "s", false));
    drop(pair);

    let delays = delay::measure()?;
    for (what, permille, bound) in [("p50", 500, 1000.0), ("p99", 990, 5000.0)] {
        let [busy, quiet] = [&delays.busy, &delays.quiet].map(|delays| delay::quantile(delays, permille));
        let [during, beside] = match what {
            "p50" => ["change to its other owner during a snapshot, p50", "the same without a snapshot, p50"],
            _ => ["change to its other owner during a snapshot, p99", "the same without a snapshot, p99"],
        };
        rows.push(row(during, busy, bound, "us", false));
        rows.push(row(beside, quiet, bound, "us", false));
    }
    Ok(Figures { rows })
}

const fn row(what: &'static str, figure: f64, bound: f64, unit: &'static str, at_least: bool) -> Row {
    Row { what, figure, bound, unit, at_least }
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// Two members and a session between them; time stands still unless it is moved on.
struct Pair {
    now: u64,
    cores: [Core; 2],
    /// Of the second one.
    map: FlowTable<FlowKeyV4>,
    written: u32,
    sent: usize,
    sessions: u64,
    /// The first session of the two.
    control: Session,
}

impl Pair {
    fn of_ready_members() -> Result<Self> {
        let mut now = now_ns();
        let cores = [1, 2].map(|id| Core::new(now, view(id), 1, u64::from(id), &Adopted::default()));
        let mut pair = Self { now, cores, map: map()?, written: 0, sent: 0, sessions: 0, control: Session(0) };
        for member in 0..2 {
            pair.cores[member].handle(now, Input::Swept);
        }
        for _ in 0..100 {
            now += ROUND_MS * 1_000_000;
            pair.now = now;
            pair.tick()?;
        }
        ensure!(pair.cores.iter().all(|core| core.status().ready), "two members that start are not ready after 2 s");
        Ok(pair)
    }

    /// The first one has dialled: for its session, and then for the other one of the pair, for bulk.
    fn connect(&mut self) {
        self.sessions += 1;
        if !self.cores[0].status().peers.iter().any(|peer| peer.connected) {
            self.control = Session(self.sessions);
        }
        for (member, peer) in [(0, 2), (1, 1)] {
            let (session, dialled) = (Session(self.sessions), member == 0);
            self.cores[member].handle(self.now, Input::Connected { peer, session, dialled });
        }
    }

    /// The first member sees so many new flows; the second one hears of them and writes them into its map.
    fn tell(&mut self, flows: u32) -> Result<Duration> {
        let mut took = Duration::ZERO;
        for n in 0..flows {
            let (key, entry) = flow(n, self.now);
            self.cores[0].handle(self.now, Input::Observed { key: key.into(), entry });
            if n % BATCH == BATCH - 1 || n == flows - 1 {
                self.cores[0].handle(self.now, Input::Tick);
                took += self.settle()?;
            }
        }
        ensure!(self.written == flows, "{} flows of {flows} were written", self.written);
        Ok(took)
    }

    /// What one direction sends in the time from one comparison to the next, and the longest round in it: the digests of
    /// both, each computed and judged.
    fn compare(&mut self) -> Result<(usize, Duration)> {
        let repaired = |pair: &Self| pair.cores.iter().map(|core| core.status().repaired).sum::<u64>();
        let (sent, before) = (self.sent, repaired(self));
        let mut longest = Duration::ZERO;
        for _ in 0..5_000 / ROUND_MS {
            self.now += ROUND_MS * 1_000_000;
            let (sent, began) = (self.sent, Instant::now());
            self.tick()?;
            if self.sent - sent >= DIGESTS_BYTES {
                longest = longest.max(began.elapsed());
            }
        }
        ensure!(repaired(self) == before, "equal tables were found to differ");
        ensure!(longest > Duration::ZERO, "nothing was compared in 5 s");
        Ok(((self.sent - sent) / 2, longest))
    }

    /// The second member loses all.
    fn replace_second(&mut self) -> Result<()> {
        self.cores[0].handle(self.now, Input::Closed { session: self.control });
        while self.cores[0].poll_output().is_some() {}
        // By now it may be dialled again.
        self.now += 1_000_000_000;
        self.cores[1] = Core::new(self.now, view(2), 2, 3, &Adopted::default());
        self.map = map()?;
        self.written = 0;
        self.settle()?;
        Ok(())
    }

    /// From the connection until the second member has all flows in its map, and has found all buckets to be equal.
    fn join(&mut self, flows: u32) -> Result<Duration> {
        let began = Instant::now();
        self.cores[1].handle(self.now, Input::Swept);
        self.tick()?;
        for _ in 0..200 {
            if self.written >= flows && self.cores[1].status().peers.iter().all(|peer| peer.agrees) {
                break;
            }
            self.now += ROUND_MS * 1_000_000;
            self.tick()?;
        }
        let took = began.elapsed();
        ensure!(self.written == flows, "{} flows of {flows} were written", self.written);
        ensure!(self.cores[1].status().peers.iter().all(|peer| peer.agrees), "the joiner does not know all");
        Ok(took)
    }

    fn tick(&mut self) -> Result<()> {
        let now = self.now;
        for member in 0..2 {
            self.cores[member].handle(now, Input::Tick);
        }
        self.settle()?;
        Ok(())
    }

    /// Carries out what both want until there is nothing more; returns what the second one's part of it took.
    fn settle(&mut self) -> Result<Duration> {
        let mut receiver = Duration::ZERO;
        loop {
            let mut is_quiet = true;
            for member in 0..2 {
                while let Some(output) = self.cores[member].poll_output() {
                    is_quiet = false;
                    match output {
                        Output::Send { session, bytes } => {
                            let length = bytes.len();
                            self.sent += length;
                            let began = Instant::now();
                            self.cores[1 - member].handle(self.now, Input::Received { session, bytes });
                            if member == 0 {
                                receiver += began.elapsed();
                            }
                            self.cores[member].handle(self.now, Input::Drained { session, bytes: length });
                        }
                        Output::Dial { .. } => self.connect(),
                        Output::PutFlow { key: Key::V4(key), entry, mode } if member == 1 => {
                            let began = Instant::now();
                            self.write(&key, entry, mode)?;
                            receiver += began.elapsed();
                        }
                        _ => {}
                    }
                }
            }
            for member in 0..2 {
                if self.cores[member].next_deadline().is_some_and(|due| due <= self.now) {
                    is_quiet = false;
                    self.cores[member].handle(self.now, Input::Tick);
                }
            }
            if is_quiet {
                return Ok(receiver);
            }
        }
    }

    fn write(&mut self, key: &FlowKeyV4, entry: FlowEntry, mode: PutMode) -> Result<()> {
        self.map.put(key, entry, mode).context("cannot write the flow map")?;
        self.written += 1;
        Ok(())
    }
}

/// An established flow of the first member, which the second one backs up.
pub(super) fn flow(n: u32, now: u64) -> (FlowKeyV4, FlowEntry) {
    let key = FlowKeyV4::new(n.to_be_bytes(), VIP, 40_000_u16.to_be_bytes(), 80_u16.to_be_bytes(), TCP);
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
    (key, entry)
}

pub(super) fn view(me: u8) -> View {
    let member = |id: u8| Member {
        id,
        name: format!("lb{id}"),
        address: mapped([10, 0, 1, id]),
        second_address: None,
        hand_off_source: None,
        drain: false,
        probe_keys: [[1, 2], [0; 2]],
    };
    let vip = ServiceKey { address: mapped(VIP), port: 80_u16.to_be_bytes(), protocol: TCP, padding: 0 };
    let backend =
        Backend { name: "web-1".into(), address: mapped([10, 0, 2, 1]), weight: 100, drain: false, down: false };
    View {
        me,
        members: vec![member(1), member(2)],
        cluster: "bench".into(),
        generation: 1,
        hash: 7,
        hash_key: [1, 2],
        port: 7400,
        probing: Probing::default(),
        first_packet: false,
        direct: false,
        drop_other: false,
        drop_oversized: false,
        delivery_sources: [None; 2],
        timeouts: Timeouts::default(),
        grace: Duration::from_secs(60),
        takeover_after: Duration::from_secs(30),
        budgets: [1000; 5],
        services: vec![Service {
            name: "web".into(),
            vips: vec![vip],
            backends: vec![backend],
            affinity: false,
            echo: false,
            idle_timeout: None,
            checked: None,
        }],
        limits: Limits::default(),
    }
}

pub(super) fn map() -> Result<FlowTable<FlowKeyV4>> {
    let map: HashMap<MapData, FlowKeyV4, FlowEntry> =
        HashMap::create(FLOWS * 5 / 4, 0).context("cannot create a flow map; run as root")?;
    Ok(FlowTable::new(map))
}
