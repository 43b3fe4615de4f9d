//! A member: host, datapath and agent, which fail separately.

use std::collections::{BTreeMap, VecDeque};

use lb_common::{
    address::Address,
    hash::{HashKey, mix},
    rank::bit,
    service::ServiceKey,
};
use lb_userspace::core::{self, Core, Input, Key, wire};

use crate::{
    agenda::Happening,
    configuration::{Cluster, MEMBERS, address},
    datapath::Datapath,
    epochs::Epochs,
    owners::Ownership,
    time::{MS, Ns, S},
    world::World,
};

/// One machine that balances.
pub(crate) struct Host {
    /// Its member id.
    pub(crate) id: u8,
    /// Whether it has power.
    pub(crate) up: bool,
    /// Its maps; none while it is down.
    pub(crate) datapath: Option<Datapath>,
    /// Whether the program is attached.
    pub(crate) attached: bool,
    /// The agent's process, if it runs.
    pub(crate) agent: Option<Agent>,
    /// When the agent last started, died, or woke from a pause.
    pub(crate) agent_changed: Ns,
    /// When it was last switched on or off, attached or detached.
    pub(crate) host_changed: Ns,
    /// Whether it has been ready since it was switched on: from then on the router may use it.
    pub(crate) announced: bool,
    /// The version of the configuration that its agent has, or had.
    pub(crate) version: usize,
    /// Since when its agent has had the others configured.
    pub(crate) acquainted: BTreeMap<u8, Ns>,
    /// Whether it is to be in the cluster at all.
    pub(crate) enlisted: bool,
    /// How often its tables were found full since it was switched on: then it does not know what others know.
    pub(crate) overfull: u64,
    /// When its agent last was ready.
    pub(crate) vouched_until: Ns,
    /// Since when, and until when, its CPUs do not run: packets wait in its NIC.
    pub(crate) frozen: (Ns, Ns),
    /// Packets that wait in its NIC.
    pub(crate) nic: Vec<Happening>,
    /// It crashes when its agent next has records to send.
    pub(crate) is_doomed: bool,
    /// The highest version of the protocol that its agent speaks.
    pub(crate) speaks: u8,
    /// The incarnation on its disk.
    incarnation: u32,
    /// Its monotonic clock at the simulation's beginning; negative after a start in it.
    clock: i128,
    /// When its clock stopped, if it stands still.
    clock_stopped: Option<Ns>,
}

/// The agent's process: the core, and the driver's half-done work.
pub(crate) struct Agent {
    /// The real core.
    pub(crate) core: Core,
    /// Number of this start, over all members.
    pub(crate) run: u64,
    /// What it has not handled yet.
    pub(crate) inbox: VecDeque<Input>,
    /// When it will run.
    pub(crate) wakes_at: Option<Ns>,
    /// It does not run before.
    pub(crate) paused_until: Ns,
    /// Flows that the sweep under way has still to read.
    pub(crate) sweep: VecDeque<Key>,
    /// Whether it last said that it may own new flows, and since when it says so.
    pub(crate) ready_since: Option<Ns>,
    /// Since when it has wanted to give its flows away.
    pub(crate) draining_since: Option<Ns>,
    /// What it has made of epochs.
    pub(crate) epochs: Epochs,
    /// When it started.
    pub(crate) started: Ns,
    /// What it knows of owners.
    pub(crate) ownership: Ownership,
    /// What its checks have told the core of the servers of each VIP.
    pub(crate) answers: BTreeMap<(ServiceKey, Address), bool>,
}

impl Host {
    /// A machine that is switched off.
    pub(crate) fn new(id: u8) -> Self {
        Self {
            id,
            up: false,
            datapath: None,
            attached: false,
            agent: None,
            agent_changed: 0,
            host_changed: 0,
            announced: false,
            version: 0,
            acquainted: BTreeMap::new(),
            enlisted: false,
            overfull: 0,
            vouched_until: 0,
            frozen: (0, 0),
            nic: Vec::new(),
            is_doomed: false,
            speaks: wire::VERSION,
            incarnation: 0,
            clock: 0,
            clock_stopped: None,
        }
    }

    /// Its monotonic clock.
    pub(crate) fn local(&self, now: Ns) -> u64 {
        u64::try_from(i128::from(self.clock_stopped.unwrap_or(now)) + self.clock).unwrap_or(1)
    }

    /// Its clock stands still.
    pub(crate) fn stop_clock(&mut self, now: Ns) {
        self.clock_stopped = Some(now);
    }

    /// Its clock goes on from where it stood.
    pub(crate) fn clock_goes_on(&mut self, now: Ns) {
        if let Some(stopped) = self.clock_stopped.take() {
            self.clock -= i128::from(now - stopped);
        }
    }

    /// When its clock will show `local`.
    pub(crate) fn global(&self, local: u64) -> Ns {
        u64::try_from(i128::from(local) - self.clock).unwrap_or(0)
    }

    /// Its agent has this version of the configuration now.
    pub(crate) fn take_version(&mut self, version: usize, cluster: &Cluster, now: Ns) {
        self.version = version;
        self.acquainted.retain(|id, _| cluster.members.contains(id));
        for &id in &cluster.members {
            self.acquainted.entry(id).or_insert(now);
        }
    }

    /// Whether packets that reach it are balanced, and it has been fit for it.
    pub(crate) fn serves(&self) -> bool {
        self.up && self.attached && self.announced
    }

    /// Keeps an incarnation on disk.
    pub(crate) fn keep_incarnation(&mut self, incarnation: u32) {
        self.incarnation = self.incarnation.max(incarnation);
    }

    /// Whether its agent has vouched for it since `since` without a break.
    pub(crate) fn ready_since(&self, since: Ns) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.ready_since.is_some_and(|at| at <= since))
    }
}

impl World {
    /// Switches a member on: empty maps, another clock, and the agent starts.
    pub(crate) fn boot(&mut self, member: u8) {
        let clock = match self.rng.below(4) {
            0 => 1 + self.rng.below(S),
            1 => self.rng.below(40 * 24 * 3600 * S),
            // The ticks of `FlowEntry` wrap during the simulation.
            2 => (1 << 52) - self.rng.below(12 * S),
            _ => self.rng.below(3600 * S),
        };
        let rng = self.rng.fork();
        let (now, sizes, mutation) = (self.now, self.plan.sizes, self.mutation);
        let host = self.hosts.entry(member).or_insert_with(|| Host::new(member));
        if host.up {
            return;
        }
        host.clock = i128::from(clock) - i128::from(now);
        host.up = true;
        host.attached = true;
        host.announced = false;
        host.frozen = (0, 0);
        host.clock_stopped = None;
        host.is_doomed = false;
        host.overfull = 0;
        host.host_changed = now;
        host.datapath = Some(Datapath::new(sizes, mutation, rng));
        self.oracle.forget_member(member);
        self.start_agent(member);
    }

    /// Starts the agent with the newest configuration, over whatever maps there are.
    pub(crate) fn start_agent(&mut self, member: u8) {
        let version = self.configs.len() - 1;
        let Some(view) = self.view(member, version) else { return };
        let (now, run) = (self.now, self.next_run);
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let Some(datapath) = host.datapath.as_ref().filter(|_| host.up && host.agent.is_none()) else { return };
        let adopted = datapath.adopted();
        let entries = datapath.flows.borrow().len();
        self.stats.count(match entries {
            0 => "start with an empty table",
            n if n >= self.plan.sizes.flows => "start with a full table",
            _ => "start with a table in use",
        });
        self.next_run += 1;
        host.incarnation += 1;
        host.take_version(version, &self.configs[version], now);
        host.agent_changed = now;
        host.attached = true;
        let core = Core::new(host.local(now), view, host.incarnation, mix(run + 1), &adopted).speaking(host.speaks);
        let agent = Agent {
            core,
            run,
            inbox: VecDeque::new(),
            wakes_at: None,
            paused_until: 0,
            sweep: VecDeque::new(),
            ready_since: None,
            draining_since: None,
            epochs: Epochs::default(),
            started: now,
            ownership: Ownership::default(),
            answers: BTreeMap::new(),
        };
        host.agent = Some(agent);
        self.wake_at(member, now);
        self.agenda.plan(now, Happening::Sweep { member, run });
        if self.health.checked.is_some() {
            self.agenda.plan(now, Happening::Check { member, run });
        }
        self.trace(|| format!("member {member}: agent starts, run {run}"));
    }

    /// Kills the agent; its datapath goes on.
    pub(crate) fn kill_agent(&mut self, member: u8) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let Some(agent) = host.agent.take() else { return };
        host.agent_changed = now;
        if agent.ready_since.is_some() {
            host.vouched_until = now;
        }
        if let Some(datapath) = &host.datapath {
            datapath.flows.borrow_mut().forget_waiting();
        }
        self.trace(|| format!("member {member}: agent dies, run {}", agent.run));
        self.abandon_streams(member, agent.run);
    }

    /// Switches a member off: everything in its memory is gone, and nobody is told.
    pub(crate) fn crash(&mut self, member: u8) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.up) else { return };
        host.up = false;
        host.attached = false;
        host.agent = None;
        host.datapath = None;
        host.nic.clear();
        host.agent_changed = now;
        host.host_changed = now;
        self.trace(|| format!("member {member}: host crashes"));
        self.oracle.forget_member(member);
        // What it has seen of them it knows no more.
        self.clients
            .values_mut()
            .filter(|client| client.delivered_by == member)
            .for_each(|client| client.delivered_by = 0);
        self.lose_unsent(member);
        self.tell_router(member, false, 300 * MS);
    }

    /// Takes the program off the interface, or puts it back.
    pub(crate) fn set_attached(&mut self, member: u8, attached: bool) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.up && host.attached != attached) else {
            return;
        };
        host.attached = attached;
        host.host_changed = now;
        self.trace(|| format!("member {member}: attached {attached}"));
        self.tell_router(member, attached, 200 * MS);
    }

    /// Whether start `run` of a member's agent still runs.
    pub(crate) fn is_running(&self, member: u8, run: u64) -> bool {
        self.hosts.get(&member).and_then(|host| host.agent.as_ref()).is_some_and(|agent| agent.run == run)
    }

    /// Whether `member`'s datapath has `other` configured.
    pub(crate) fn knows_member(&self, member: u8, other: u8) -> bool {
        self.hosts
            .get(&member)
            .and_then(|host| host.datapath.as_ref())
            .is_some_and(|datapath| datapath.installed.node.configured & bit(other) != 0)
    }

    /// A probe or an echo reaches a member's datapath.
    pub(crate) fn probe_arrives(&mut self, to: u8, from: u8, probe: &lb_common::liveness::Probe) {
        if !self.knows_member(to, from) {
            return;
        }
        if self.waits_in_nic(to, || Happening::Probe { to, from, probe: *probe }) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&to).filter(|host| host.up && host.attached) else { return };
        let local = host.local(self.now);
        let Some(echo) = host.datapath.as_mut().and_then(|datapath| datapath.take_probe(local, from, probe)) else {
            return;
        };
        let at = self.network.carry(self.now, to, from);
        self.record_probe(at, to, from, &echo);
        self.arrive(at, Happening::Probe { to: from, from: to, probe: echo });
    }
}

/// The tunnel and agent address of a member.
pub(crate) fn address_of(member: u8) -> Address {
    address(false, MEMBERS, member)
}

/// A member as the configuration of `me` names it.
pub(crate) fn named(me: u8, id: u8, drain: bool) -> core::view::Member {
    core::view::Member {
        id,
        name: format!("lb{id}"),
        address: address_of(id),
        second_address: None,
        drain,
        hand_off_source: None,
        probe_keys: [pair_key(me, id), [0; 2]],
    }
}

/// The key of the probes between two members.
fn pair_key(one: u8, other: u8) -> HashKey {
    let pair = u64::from(one.min(other)) << 8 | u64::from(one.max(other));
    [mix(pair), mix(!pair)]
}
