//! The demo: a cluster loses a member under real TCP while a server joins and another leaves.
//!
//! The same schedule runs with members that share nothing (`naive`), to show what the difference is.

mod census;
mod picture;
mod receipt;
mod screen;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use self::{
    census::Census,
    picture::{Scene, State},
};
pub use self::{receipt::Receipt, screen::Screen};
use crate::{
    cluster::{Cluster, READY_LIMIT, Shape},
    detection::Watch,
    interrupt,
    traffic::{
        load::{Ledger, Load, Plan},
        record::Record,
    },
};

const BALANCERS: u8 = 3;
const SERVERS: u8 = 4;
/// The server that leaves.
const DRAINED: u32 = 2;
/// Short connections opened per second, all the time.
const SHORTS_PER_SECOND: u32 = 50;
/// How often the display is drawn.
const FRAME: Duration = Duration::from_millis(200);

/// What dies in the middle of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kill {
    /// The member that owns most connections: agent, datapath and link.
    Primary,
    /// Only that member's agent.
    Agent,
    /// Nothing; only the servers change.
    None,
}

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What dies.
    pub kill: Kill,
    /// Long-lived connections.
    pub connections: usize,
    /// How long traffic runs once all connections are open.
    pub seconds: u32,
    /// Members that share nothing.
    pub naive: bool,
}

/// Runs the demo from building the lab to taking it down.
///
/// # Errors
/// When the lab cannot be built, a member does not get ready, or a signal arrives. Broken
/// connections are no error; they are in the receipt.
pub fn run(options: Options, screen: &mut Screen) -> Result<Receipt> {
    screen.event("building the lab: client, router, 3 balancers, 4 servers and a spare one");
    let mut cluster = Cluster::build(Shape { balancers: BALANCERS, servers: SERVERS, naive: options.naive }, |_| ())?;
    cluster.add_server(SERVERS + 1)?;
    let started = Instant::now();
    cluster.start_members()?;
    let how =
        if options.naive { "each a cluster of its own: same key, same ring, nothing shared" } else { "one cluster" };
    let took = started.elapsed().as_secs_f64();
    screen.event(&format!("3 agents (`tandem run`) ready after {took:.1} s: {how}"));

    let plan = Plan { shorts_per_second: SHORTS_PER_SECOND, ..Plan::mixed(options.connections) };
    let load = Load::start(&cluster.topology.client, plan)?;
    load.wait_open(Duration::from_secs(20)).context("before anything was killed")?;
    screen.event(&format!(
        "{} connections open ({} chatty, {} idle, {} uploading), and {SHORTS_PER_SECOND} short ones a second",
        options.connections, plan.chatty, plan.idle, plan.uploading
    ));
    let show = Show::new(options, cluster, load, screen);
    show.perform()
}

/// The running demo.
struct Show<'a> {
    // Before the cluster: the traffic ends before the lab does.
    load: Load,
    cluster: Cluster,
    options: Options,
    screen: &'a mut Screen,
    members: BTreeMap<u8, State>,
    servers: BTreeMap<u32, State>,
}

/// What was done to the cluster, and what was known just before.
struct Strike {
    victim: Option<u8>,
    at: Instant,
    before: Census,
    protected: BTreeSet<u64>,
    watch: Option<Watch>,
}

impl<'a> Show<'a> {
    fn new(options: Options, cluster: Cluster, load: Load, screen: &'a mut Screen) -> Self {
        let members = cluster.members.iter().map(|member| (member.id, State::Up)).collect();
        let state = |number| if number > u32::from(SERVERS) { State::Spare } else { State::Up };
        let servers = cluster.servers.iter().map(|server| (server.number, state(server.number))).collect();
        Self { load, cluster, options, screen, members, servers }
    }

    fn perform(mut self) -> Result<Receipt> {
        let whole = Duration::from_secs(u64::from(self.options.seconds));
        self.watch_for(whole / 4)?;
        let strike = self.strike()?;
        // While the others take over, those that were silent speak too.
        self.watch_for(Duration::from_millis(50))?;
        self.load.wake_idle();
        self.watch_for(whole * 3 / 8)?;
        self.bring_back(strike.victim)?;
        self.watch_for(whole * 3 / 8)?;
        self.screen.event("every connection answers once more, then closes");
        self.finish(strike)
    }

    /// The moment of the demo: a member dies, a server joins, another leaves.
    fn strike(&mut self) -> Result<Strike> {
        let before = self.census(true);
        let most = before.by_primary().into_iter().max_by_key(|(_, flows)| *flows);
        let (victim, owned) = most.context("no member's table has any of the connections")?;
        let victim = (self.options.kill != Kill::None).then_some(victim);
        let dies = self.options.kill == Kill::Primary;
        let watch = match victim {
            Some(victim) if dies && !self.options.naive => Some(Watch::start(self.cluster.others(victim), victim)?),
            _ => None,
        };
        self.cluster.config.add_backend(&self.cluster.servers[usize::from(SERVERS)].host);
        let drained = self.name_of_server(DRAINED);
        self.cluster.config.drain(&drained);

        let before = if watch.is_some() { self.census(true) } else { before };
        // Members that share nothing have no other protection than their own tables: all of them count.
        let protected = before.protected(victim.filter(|_| !self.options.naive));
        let at = Instant::now();
        match (self.options.kill, victim) {
            (Kill::Primary, Some(victim)) => drop(self.cluster.cut(victim)?),
            (Kill::Agent, Some(victim)) => self.cluster.member(victim)?.kill()?,
            _ => {}
        }
        self.cluster.reconfigure()?;
        let within = at.elapsed();
        self.note_strike(victim, owned, within)?;
        Ok(Strike { victim, at, before, protected, watch })
    }

    fn note_strike(&mut self, victim: Option<u8>, owned: u64, within: Duration) -> Result<()> {
        let style = self.screen.style();
        if let Some(victim) = victim {
            let name = self.cluster.member(victim)?.name().to_owned();
            let (state, what) = match self.options.kill {
                Kill::Agent => (State::Headless, "only its agent (kill -9)"),
                _ => (State::Dead, "agent (kill -9), datapath and link"),
            };
            self.members.insert(victim, state);
            let killed = style.bad(&format!("{name} is killed"));
            self.screen.event(&format!("{killed}, primary of {owned} connections: {what}"));
        }
        self.servers.insert(DRAINED, State::Draining);
        self.servers.insert(u32::from(SERVERS) + 1, State::Up);
        let (new, old) = (self.name_of_server(u32::from(SERVERS) + 1), self.name_of_server(DRAINED));
        self.screen.event(&format!("{new} joins and {old} is drained (SIGHUP), all within {} ms", within.as_millis()));
        Ok(())
    }

    /// The victim returns.
    fn bring_back(&mut self, victim: Option<u8>) -> Result<()> {
        let Some(victim) = victim else { return Ok(()) };
        let name = self.cluster.member(victim)?.name().to_owned();
        let began = Instant::now();
        if self.options.kill == Kill::Primary {
            self.cluster.revive(victim)?;
        } else {
            self.cluster.member(victim)?.start()?;
        }
        self.members.insert(victim, State::Starting);
        self.screen.event(&format!("{name} comes back"));
        while !self.cluster.member(victim)?.is_ready() {
            if began.elapsed() > READY_LIMIT {
                // Says why, with the end of the log.
                self.cluster.member(victim)?.wait_ready(Duration::ZERO)?;
            }
            self.frame(Duration::from_millis(20))?;
        }
        self.cluster.announce(victim)?;
        self.members.insert(victim, State::Up);
        self.screen.event(&format!("{name} is ready after {} ms and gets traffic again", began.elapsed().as_millis()));
        Ok(())
    }

    fn finish(self, strike: Strike) -> Result<Receipt> {
        let Self { load, cluster, options, screen, .. } = self;
        let ledger = load.finish();
        interrupt::check()?;
        screen.close();
        let detection = strike.watch.map(|watch| watch.finish(strike.at)).unwrap_or_default();
        let name = |id: u8| format!("lb{id}");
        let broken = ledger.broken();
        let is_protected = |record: &&Arc<Record>| strike.protected.contains(&record.id);
        let shorts = ledger.shorts();
        let mut flows: BTreeMap<String, u64> = cluster.members.iter().map(|member| (name(member.id), 0)).collect();
        flows.extend(strike.before.by_primary().into_iter().map(|(id, count)| (name(id), count)));
        Ok(Receipt {
            naive: options.naive,
            kill: options.kill,
            victim: strike.victim.map(name),
            connections: ledger.long().len(),
            protected: ledger.long().iter().filter(is_protected).count(),
            broken: broken.iter().filter(is_protected).count() as u64,
            broken_young: broken.iter().filter(|record| !is_protected(record)).count() as u64,
            oldest_young_ms: broken.iter().filter(|record| !is_protected(record)).map(age_ms).fold(0.0, f64::max),
            faults: count_faults(&ledger),
            short_connections: shorts.done,
            handshakes_failed: shorts.handshakes_failed,
            slowest_handshake_ms: in_ms(shorts.slowest_handshake),
            longest_stall_ms: in_ms(longest_stall(&ledger)),
            detection_ms: detection.into_iter().map(|(name, after)| (name, after.map(in_ms))).collect(),
            flows_per_member: flows,
            bytes_checked: ledger.long().iter().map(|record| record.facts().bytes).sum(),
        })
    }

    fn watch_for(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.frame(left.min(FRAME))?;
        }
    }

    /// Draws where things stand, and waits.
    fn frame(&mut self, pause: Duration) -> Result<()> {
        let carried = self.census(false).by_carrier();
        let scene = Scene {
            cluster: &self.cluster,
            ledger: self.load.ledger(),
            members: &self.members,
            servers: &self.servers,
            carried: &carried,
        };
        let standing = scene.draw(self.screen.style());
        self.screen.show(standing);
        interrupt::pause(pause)
    }

    /// The connections in the tables of the members that have a datapath; with `shorts`, also those open now.
    fn census(&self, shorts: bool) -> Census {
        let present = |(id, state): (&u8, &State)| (!matches!(state, State::Dead)).then_some(*id);
        let members: Vec<u8> = self.members.iter().filter_map(present).collect();
        let ledger = self.load.ledger();
        let short = if shorts { ledger.shorts().open } else { BTreeMap::new() };
        let records = ledger.long().iter().chain(short.values()).map(AsRef::as_ref);
        Census::take(&self.cluster, &members, records)
    }

    fn name_of_server(&self, number: u32) -> String {
        let server = self.cluster.servers.iter().find(|server| server.number == number);
        server.map_or_else(String::new, |server| server.name().to_owned())
    }
}

fn count_faults(ledger: &Ledger) -> BTreeMap<String, u64> {
    let mut faults = BTreeMap::new();
    for (fault, _) in ledger.broken().iter().filter_map(|record| record.facts().fault) {
        *faults.entry(fault.to_string()).or_insert(0) += 1;
    }
    faults
}

/// The longest wait of a connection that did not break; one that broke has no bound.
fn longest_stall(ledger: &Ledger) -> Duration {
    let facts = ledger.long().iter().map(|record| record.facts());
    facts.filter(|facts| facts.fault.is_none()).map(|facts| facts.longest_wait).max().unwrap_or_default()
}

/// How old a connection was when it broke.
fn age_ms(record: &Arc<Record>) -> f64 {
    let facts = record.facts();
    let (Some(opened), Some((_, broke))) = (facts.opened, facts.fault) else { return 0.0 };
    in_ms(broke.saturating_duration_since(opened))
}

/// In milliseconds, to a tenth: nothing here is known better.
fn in_ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
