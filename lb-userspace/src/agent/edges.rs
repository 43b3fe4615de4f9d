//! The edges as the loop sees them: outputs are carried out, what happens becomes inputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::programs::tc::SchedClassifierLink;
use lb_common::{
    address::Address,
    check,
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6},
    maps,
};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{Options, fixed::Fixed, view};
use crate::{
    config::{self, Config, OnStop},
    control::Control,
    core::{Adopted, Core, Input, Key, Level, Output, PutMode, distribution::Proposal},
    io::{
        announce::Announcer,
        checks::{Checked, Checks, Subject, Tunnel},
        clock::now_ns,
        complaint::Complaint,
        datapath::{Datapath, Spec},
        events::EventRings,
        flows::{Deletion, FlowTable, Put},
        handshake::Trust,
        neighbours::{NextHops, Resolved},
        probes::Prober,
        sessions::Sessions,
        state::StateDirectory,
        sweep::{self, Swept},
        tables::Installed,
    },
};

/// Next hops that were found and not written yet.
const RESOLVED: usize = 256;
/// Reports of sessions taken in at a time, so that many small ones become one batch.
const REPORTS: usize = 16;
/// No more is taken in once this much was received: 1,300 records, each of which may become a write to a map. That
/// is a few milliseconds in which no probe is sent.
const RECEIVED_BYTES: usize = 64 << 10;
/// How often the tables are compared with what was written into them.
const HEAL_EVERY: Duration = Duration::from_secs(60);

/// Everything the agent acts through.
pub(super) struct Edges {
    datapath: Datapath,
    installed: Installed,
    flows: FlowTable<FlowKeyV4>,
    flows_v6: FlowTable<FlowKeyV6>,
    events: EventRings,
    prober: Prober,
    sessions: Sessions,
    next_hops: NextHops,
    resolved: mpsc::Receiver<Resolved>,
    checks: Checks,
    announcer: Option<Announcer>,
    /// Whether its VIPs are announced; none before it is ready for the first time: the announcements of the agent before stand.
    is_announced: Option<bool>,
    /// Where checks leave through the tunnel.
    check_links: Vec<SchedClassifierLink>,
    swept: mpsc::Receiver<Swept>,
    state: StateDirectory,
    fixed: Fixed,
    full: Complaint,
    healed_at: Instant,
    /// A configuration that a peer has, and that nobody has judged; the core has one at a time.
    proposal: Option<Box<Proposal>>,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Out,
    Stopped,
}

/// Something that happened at an edge.
pub(super) enum Happened {
    Session(Input),
    Checked(Checked),
    Events,
    Resolved(Resolved),
    Swept(Swept),
}

impl Edges {
    /// Opens everything; on the way out nothing is attached yet.
    pub(super) fn open(options: &Options, config: &Config) -> anyhow::Result<(Self, Adopted, u32)> {
        let fixed = Fixed::of(config);
        let (own, port) = (fixed.own, fixed.port);
        let state = StateDirectory::open(&options.state)?;
        let socket = SocketAddr::new(own, port);
        let at = || format!("cannot use {socket}; is it an address of this host, and the port free?");
        let prober = Prober::bind(own, port).with_context(at)?;
        let mut sessions = Sessions::listen(own, port).with_context(at)?;
        sessions.trust(&view::trust(config)).context("this member's key")?;
        let (pins, mode) = (options.pins.as_path(), options.mode);
        let Fixed { multi_buffer, flows_max, flows_v6_max, .. } = fixed;
        let spec = Spec { pins, interfaces: &fixed.interfaces, mode, multi_buffer, flows_max, flows_v6_max };
        let mut datapath = Datapath::load(&spec)?;
        let (mut installed, adopted) = Installed::open(&mut datapath)?;
        let others = config.cluster.members.iter().filter(|member| member.id != fixed.id);
        let peers: Vec<IpAddr> = others.map(|member| member.address).collect();
        datapath.check_way_to(&peers)?;
        installed.set_cluster_interface(datapath.cluster_ifindex())?;
        let flows = FlowTable::new(datapath.map(maps::FLOWS)?);
        let flows_v6 = FlowTable::new(datapath.map(maps::FLOWS_V6)?);
        let events = EventRings::open(&mut datapath)?;
        let (found, resolved) = mpsc::channel(RESOLVED);
        let next_hops = NextHops::start(found).context("next hops")?;
        let swept = sweep(&flows, &flows_v6).context("sweep")?;
        let tunnel = Tunnel::new(datapath.map(check::CHECK_WAYS)?).context("health checks")?;
        let checks = Checks::start(tunnel).context("health checks")?;
        let announcer = fixed.announce_table.map(Announcer::start).transpose().context("announcing VIPs")?;
        let incarnation = state.next_incarnation()?;
        let edges = Self {
            datapath,
            installed,
            flows,
            flows_v6,
            events,
            prober,
            sessions,
            next_hops,
            resolved,
            checks,
            announcer,
            is_announced: None,
            check_links: Vec::new(),
            swept,
            state,
            fixed,
            full: Complaint::default(),
            healed_at: Instant::now(),
            proposal: None,
        };
        Ok((edges, adopted, incarnation))
    }

    /// Packets are treated from now on.
    pub(super) fn attach(&mut self) -> anyhow::Result<()> {
        Ok(self.datapath.attach()?)
    }

    /// Believes whom the configuration names, and nobody else.
    pub(super) fn trust(&mut self, trust: &Trust) {
        if let Err(error) = self.sessions.trust(trust) {
            error!(%error, "the members' keys cannot be used; no session is opened");
        }
    }

    /// Checks the backends of the configuration, and nothing else.
    pub(super) fn check(&mut self, subjects: Vec<Subject>) {
        let wants_tunnel = subjects.iter().any(|subject| subject.sources.is_some());
        if !wants_tunnel {
            self.check_links.clear();
        } else if self.check_links.is_empty() {
            self.attach_checks();
        }
        self.checks.follow(subjects);
    }

    /// Attaches the program for checks through the tunnel anew.
    fn attach_checks(&mut self) {
        self.check_links.clear();
        match self.datapath.attach_checks(&self.fixed.interfaces) {
            Ok(links) => self.check_links = links,
            Err(error) => error!(%error, "health checks cannot leave through the tunnel, and fail"),
        }
    }

    /// Announces the VIPs, or takes that back, when the core has come to serve them or not to.
    pub(super) fn follow_readiness(&mut self, core: &Core) {
        let serves = core.serves();
        if self.announcer.is_some() && self.is_announced.unwrap_or(false) != serves {
            self.announce(core);
        }
    }

    /// Announces the VIPs that there are now, if this member serves them.
    pub(super) fn announce(&mut self, core: &Core) {
        let Some(announcer) = &self.announcer else { return };
        let serves = core.serves();
        if serves || self.is_announced.is_some() {
            self.is_announced = Some(serves);
            announcer.announce(if serves { core.vips().map(config::ip).collect() } else { BTreeSet::new() });
        }
    }

    /// Takes all announcements back; whether there is something to wait for.
    pub(super) fn withdraw(&mut self) -> bool {
        let Some(announcer) = self.announcer.take() else { return false };
        announcer.announce(BTreeSet::new());
        true
    }

    /// What a reload cannot change.
    pub(super) fn fixed(&self) -> &Fixed {
        &self.fixed
    }

    /// Finds out how `targets` are reached, besides those that packets are sent to now.
    pub(super) fn follow(&self, targets: &[Address]) {
        let addresses = self.installed.addresses().chain(targets.iter().copied()).collect();
        self.next_hops.follow(addresses, self.datapath.ifindexes());
    }

    /// Whether it is known how all of `targets` are reached.
    pub(super) fn reach(&self, targets: &[Address]) -> bool {
        self.installed.are_resolved(targets)
    }

    /// Finishes what failed, attaches again where an interface has come back, and heals the tables now and then.
    pub(super) fn upkeep(&mut self) {
        complain(self.installed.complete());
        match self.datapath.watch() {
            Ok(false) => {}
            Ok(true) => {
                complain(self.installed.set_cluster_interface(self.datapath.cluster_ifindex()));
                self.follow(&[]);
                self.attach_checks();
            }
            Err(error) => error!(%error, "cannot look after the interfaces"),
        }
        if let Err(error) = self.use_other_tables() {
            error!("the flow tables were replaced, and the new ones cannot be used: {error:#}");
        }
        if self.healed_at.elapsed() >= HEAL_EVERY {
            self.healed_at = Instant::now();
            match self.installed.heal() {
                Ok(0) => {}
                Ok(writes) => warn!(writes, "the tables were not as they had been written; they are again"),
                Err(error) => complain::<(), _>(Err(error)),
            }
        }
    }

    /// Works with the flow tables that are pinned now: `tandem datapath upgrade` and `rollback` replace them.
    fn use_other_tables(&mut self) -> anyhow::Result<()> {
        let Some((v4, v6)) = self.datapath.other_tables()? else { return Ok(()) };
        let (flows, flows_v6) = (FlowTable::new(v4), FlowTable::new(v6));
        // The sweep of before ends with its channel.
        self.swept = sweep(&flows, &flows_v6)?;
        (self.fixed.flows_max, self.fixed.flows_v6_max) = (flows.capacity()?, flows_v6.capacity()?);
        let (max, v6_max) = (self.fixed.flows_max, self.fixed.flows_v6_max);
        info!(flows_max = max, flows_v6_max = v6_max, "the flow tables were replaced by others; these are used now");
        (self.flows, self.flows_v6) = (flows, flows_v6);
        Ok(())
    }

    /// Carries out what the core wants, in its order, until it wants nothing more.
    pub(super) fn carry_out(&mut self, core: &mut Core, control: &Control) -> Carried {
        while let Some(output) = core.poll_output() {
            match output {
                Output::Install(tables) => self.install(*tables),
                Output::SetLiveness(liveness) => complain(self.installed.set_liveness(liveness)),
                Output::SendProbe { to, probe } => {
                    if let Some(to) = self.address(to) {
                        self.prober.send(to, &probe);
                    }
                }
                Output::PutFlow { key, entry, mode } => self.put_flow(core, key, entry, mode),
                Output::DeleteFlow { key, unless_seen_since } => self.delete_flow(core, key, unless_seen_since),
                Output::Dial { peer } => self.sessions.dial(peer),
                Output::Send { session, bytes } => self.sessions.send(session, bytes),
                Output::Defer { session } => self.sessions.defer(session),
                Output::Close { session } => self.sessions.close(session),
                Output::RaiseIncarnation(incarnation) => complain(self.state.record_incarnation(incarnation)),
                Output::Judge(proposal) => self.proposal = Some(proposal),
                Output::Report(event) => match event.level() {
                    Level::Info => {
                        info!("{event}");
                        control.tell("info", event.to_string());
                    }
                    Level::Warn => {
                        warn!("{event}");
                        control.tell("warn", event.to_string());
                    }
                },
                Output::Stopped => return Carried::Stopped,
            }
        }
        Carried::Out
    }

    /// A configuration that a peer has, and that nobody has judged.
    pub(super) fn proposal(&mut self) -> Option<Box<Proposal>> {
        self.proposal.take()
    }

    /// Shows the core what XDP heard from its peers, when it is time for that.
    pub(super) fn look(&self, core: &mut Core) {
        if now_ns() < core.next_look() {
            return;
        }
        for (&member, address) in self.installed.members() {
            if *address == config::address(self.fixed.own) {
                continue;
            }
            match self.installed.heard(member) {
                Ok(heard) => core.handle(now_ns(), Input::Heard { member, heard }),
                Err(error) => error!(%error, member, "cannot read what was heard"),
            }
        }
    }

    /// Waits for the next thing to happen at an edge. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Happened> {
        tokio::select! {
            input = self.sessions.next() => Ok(Happened::Session(input)),
            ready = self.events.ready() => ready.map(|()| Happened::Events),
            Some(resolved) = self.resolved.recv() => Ok(Happened::Resolved(resolved)),
            Some(swept) = self.swept.recv() => Ok(Happened::Swept(swept)),
            Some(checked) = self.checks.next() => Ok(Happened::Checked(checked)),
        }
    }

    /// Tells the core what happened, and what more of the same is there already.
    pub(super) fn take_in(&mut self, core: &mut Core, happened: Happened) {
        match happened {
            Happened::Session(input) => {
                let mut bytes = received(&input);
                core.handle(now_ns(), input);
                for _ in 0..REPORTS {
                    if bytes >= RECEIVED_BYTES {
                        break;
                    }
                    let Some(input) = self.sessions.try_next() else { break };
                    bytes += received(&input);
                    core.handle(now_ns(), input);
                }
            }
            Happened::Checked(Checked { service, backend, is_up }) => {
                core.handle(now_ns(), Input::Checked { service, backend, is_up });
            }
            Happened::Events => self.events.take(|key, entry| core.handle(now_ns(), Input::Observed { key, entry })),
            Happened::Resolved(resolved) => complain(self.installed.resolve(&resolved)),
            Happened::Swept(Swept::Chunk(entries)) => {
                for (key, entry) in entries {
                    core.handle(now_ns(), Input::Observed { key, entry });
                }
            }
            Happened::Swept(Swept::End) => core.handle(now_ns(), Input::Swept),
        }
    }

    /// Lets what was said go out, then leaves the datapath or takes it away.
    pub(super) async fn close(self, on_stop: OnStop) -> anyhow::Result<()> {
        self.sessions.finish().await;
        match on_stop {
            OnStop::Keep => info!("stopped; the datapath goes on"),
            OnStop::Detach => {
                self.datapath.remove()?;
                info!("stopped; the datapath is detached");
            }
        }
        Ok(())
    }

    fn install(&mut self, tables: crate::core::Tables) {
        if let Err(error) = self.installed.install(tables) {
            error!(%error, "the tables are not as configured; the next change tries again");
        }
        let members: BTreeMap<u8, IpAddr> =
            self.installed.members().keys().filter_map(|id| Some((*id, self.address(*id)?))).collect();
        self.sessions.set_members(members);
        self.follow(&[]);
    }

    fn put_flow(&mut self, core: &mut Core, key: Key, entry: FlowEntry, mode: PutMode) {
        let put = match &key {
            Key::V4(key) => self.flows.put(key, entry, mode),
            Key::V6(key) => self.flows_v6.put(key, entry, mode),
        };
        match put {
            Ok(Put::Done) => {}
            Ok(Put::Found(entry)) => core.handle(now_ns(), Input::Observed { key, entry }),
            Ok(Put::Full) => {
                let setting = if matches!(key, Key::V4(_)) { "node.flows_max" } else { "node.flows_v6_max" };
                if let Some(records) = self.full.note() {
                    warn!(records, "the flow table is full; records of peers found no room ({setting})");
                }
            }
            Err(error) => complain::<(), _>(Err(error)),
        }
    }

    fn delete_flow(&mut self, core: &mut Core, key: Key, unless_seen_since: u32) {
        let deletion = match &key {
            Key::V4(key) => self.flows.delete(key, unless_seen_since),
            Key::V6(key) => self.flows_v6.delete(key, unless_seen_since),
        };
        match deletion {
            Ok(Deletion::Done) => core.handle(now_ns(), Input::Deleted { key }),
            Ok(Deletion::Spared(entry)) => core.handle(now_ns(), Input::Observed { key, entry }),
            Err(error) => complain::<(), _>(Err(error)),
        }
    }

    fn address(&self, member: u8) -> Option<IpAddr> {
        self.installed.members().get(&member).map(|address| config::ip(*address))
    }
}

fn sweep(v4: &FlowTable<FlowKeyV4>, v6: &FlowTable<FlowKeyV6>) -> io::Result<mpsc::Receiver<Swept>> {
    let (chunks, swept) = mpsc::channel(sweep::CHUNKS);
    sweep::start(v4.map(), v6.map(), chunks)?;
    Ok(swept)
}

fn received(input: &Input) -> usize {
    match input {
        Input::Received { bytes, .. } => bytes.len(),
        _ => 0,
    }
}

/// A write to a map failed: the agent lives on, and the next write may succeed.
fn complain<T, E: std::fmt::Display>(result: Result<T, E>) {
    if let Err(error) = result {
        error!(%error, "a table is not as it should be");
    }
}
