//! What breaks, for how long, and how it is mended.

use lb_userspace::core::wire;

use crate::{
    agenda::Happening,
    configuration::{Backend, Cluster, server},
    freezes::Frozen,
    partitions::Partition,
    time::{MS, Ns, S},
    world::World,
};

/// Something that breaks or is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Chance hits: a fault happens, its repair and the next hit are planned.
    Strike,
    /// An agent that was killed is started again.
    StartAgent(u8),
    /// A member that crashed is switched on again.
    Boot(u8),
    /// A member that left is switched off.
    SwitchOff(u8),
    /// A host that stood still goes on.
    Thaw(u8),
    /// A detached program is attached again.
    Attach(u8),
    /// A member's agent is told to stop.
    Stop(u8),
    /// A member hears nobody for a while.
    Deafen(u8),
    /// One direction works again.
    Mend(u8, u8),
    /// Links lose as little as before.
    EndLoss,
    /// Nothing arrives twice any more.
    EndTwins,
    /// The router takes a member back that it had lost sight of.
    Recall(u8),
    /// All is mended; nothing breaks any more.
    Heal,
    /// Clients have nothing more to say.
    Silence,
}

/// The kinds that chance picks from, the frequent ones more than once.
#[derive(Clone, Copy, Debug)]
enum Kind {
    KillAgent,
    PauseAgent,
    Freeze(Frozen),
    Crash,
    CrashInFlush,
    Detach,
    Cut(Partition),
    Loss,
    Twins,
    Reshuffle,
    LoseSight,
    AddBackend,
    DrainBackend,
    RemoveBackend,
    AddMember,
    RemoveMember,
    DrainMember,
    DeafenInChange,
}

const KINDS: [Kind; 32] = [
    Kind::KillAgent,
    Kind::KillAgent,
    Kind::PauseAgent,
    Kind::Freeze(Frozen::Datapath),
    Kind::Freeze(Frozen::Host),
    Kind::Freeze(Frozen::HostAndClock),
    Kind::Crash,
    Kind::Crash,
    Kind::CrashInFlush,
    Kind::CrashInFlush,
    Kind::Detach,
    Kind::Cut(Partition::Pair),
    Kind::Cut(Partition::OneWay),
    Kind::Cut(Partition::Member),
    Kind::Cut(Partition::Halves),
    Kind::Cut(Partition::Deaf),
    Kind::Cut(Partition::Tangle),
    Kind::Loss,
    Kind::Twins,
    Kind::Reshuffle,
    Kind::Reshuffle,
    Kind::LoseSight,
    Kind::AddBackend,
    Kind::AddBackend,
    Kind::DrainBackend,
    Kind::RemoveBackend,
    Kind::AddMember,
    Kind::RemoveMember,
    Kind::DrainMember,
    Kind::DeafenInChange,
    Kind::DeafenInChange,
    Kind::DeafenInChange,
];

/// Every fault that a long enough run must have seen.
pub(crate) const FAULTS: [&str; 67] = [
    "agent killed",
    "agent paused",
    "datapath paused",
    "host paused",
    "host and clock paused",
    "host crashed",
    "host crashed within a flush",
    "start with an empty table",
    "start with a table in use",
    "start with a full table",
    "agent upgraded",
    "agent downgraded",
    "session between versions",
    "reload staggered by seconds",
    "backend changed with another fault",
    "program detached",
    "link cut",
    "link cut one way",
    "member isolated",
    "cluster split in two",
    "member hears nobody",
    "member is heard by nobody",
    "partition that is not transitive",
    "links lose packets",
    "packet delivered twice",
    "router reshuffles",
    "router loses sight of a member",
    "backend added",
    "backend drained",
    "backend removed",
    "server ill",
    "server out of one member's reach",
    "server taken out",
    "server drained by hand",
    "server no longer drained by hand",
    "member added",
    "member removed",
    "member drained",
    "member no longer drained",
    "member drained to the end",
    "epoch began",
    "epoch began without some",
    "member behind an epoch",
    "packet by the servers of before",
    "owners changed",
    "write between read and write",
    "event lost",
    "insertion into a full table",
    "false alarm",
    "spoofed FIN",
    "spoofed RST",
    "spoofed SYN",
    "probe replayed",
    "probe reflected",
    "probe forged",
    "record forged",
    "newcomer of a flood",
    "ICMP error",
    "datagram in fragments",
    "direct delivery",
    "hand_off_second_chance",
    "deliver_second_chance",
    "direct delivery of a dead owner's flow",
    "session broken",
    "connection held, and not that for bulk",
    "connection for bulk held alone",
    "connection for bulk broken alone",
];

const BACKENDS_MAX: usize = 9;
/// How long before the others a member takes over a configuration that is to be the first.
pub(crate) const FIRST_BY: Ns = 40 * MS;

impl World {
    /// Something breaks, or is mended.
    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Strike => self.strike(),
            Fault::StartAgent(member) | Fault::Attach(member) | Fault::Stop(member) if self.is_frozen(member) => {
                let at = self.hosts.get(&member).map_or(0, |host| host.frozen.1);
                self.agenda.plan(at.max(self.now + 1), Happening::Fault(fault));
            }
            Fault::StartAgent(member) => self.start_agent(member),
            Fault::Boot(member) => self.boot_if_enlisted(member),
            Fault::SwitchOff(member) => {
                if self.hosts.get(&member).is_some_and(|host| !host.enlisted) {
                    self.crash(member);
                }
            }
            Fault::Thaw(member) => self.thaw(member),
            Fault::Attach(member) => self.set_attached(member, true),
            Fault::Stop(member) => {
                if self.hosts.get(&member).is_some_and(|host| !host.enlisted) {
                    self.input(member, lb_userspace::core::Input::Stop);
                }
            }
            Fault::Deafen(member) => self.deafen(member),
            Fault::Mend(a, b) => self.network.mend(self.now, a, b),
            Fault::EndTwins => self.network.twins_permille = 0,
            Fault::EndLoss => self.network.lose(self.now, 0),
            Fault::Recall(member) => self.route(member, true),
            Fault::Heal => self.heal(),
            Fault::Silence => self.silent = true,
        }
    }

    fn strike(&mut self) {
        if self.calm {
            return;
        }
        // Backends change at the very moment of whatever else happens.
        if self.rng.chance(100) {
            self.stats.count("backend changed with another fault");
            let kind = self.rng.pick(&[Kind::AddBackend, Kind::DrainBackend, Kind::RemoveBackend]);
            self.change_backends(kind.unwrap_or(Kind::AddBackend), None);
        }
        let gap = self.plan.fault_gap;
        let at = self.now + self.rng.below(2 * gap);
        self.agenda.plan(at, Happening::Fault(Fault::Strike));
        let running: Vec<u8> =
            self.hosts.values().filter(|host| host.enlisted && host.up).map(|host| host.id).collect();
        let (Some(kind), Some(member)) = (self.rng.pick(&KINDS), self.rng.pick(&running)) else { return };
        self.trace(|| format!("fault {kind:?} at {member}"));
        match kind {
            Kind::KillAgent | Kind::PauseAgent | Kind::Crash | Kind::CrashInFlush | Kind::Detach => {
                self.strike_member(kind, member);
            }
            Kind::Freeze(what) => self.freeze(member, what),
            Kind::Cut(partition) => self.partition(partition, member),
            Kind::Twins => {
                self.network.twins_permille = self.rng.pick(&[20, 200]).unwrap_or(20);
                self.mend_later(Fault::EndTwins, 2 * S);
            }
            Kind::Loss => {
                self.stats.count("links lose packets");
                let permille = self.rng.pick(&[10, 50, 200]).unwrap_or(10);
                self.network.lose(self.now, permille);
                self.mend_later(Fault::EndLoss, 2 * S);
            }
            Kind::Reshuffle => {
                self.stats.count("router reshuffles");
                self.router.reshuffle(self.rng.next());
            }
            Kind::LoseSight => {
                self.stats.count("router loses sight of a member");
                self.route(member, false);
                self.mend_later(Fault::Recall(member), 2 * S);
            }
            Kind::AddBackend | Kind::DrainBackend | Kind::RemoveBackend => self.change_backends(kind, None),
            Kind::AddMember => self.add_member(),
            Kind::RemoveMember => self.remove_member(member),
            Kind::DrainMember => self.drain_member(member),
            Kind::DeafenInChange => self.deafen_in_change(),
        }
    }

    fn strike_member(&mut self, kind: Kind, member: u8) {
        match kind {
            // Nothing happens on a host that stands still, but its end.
            _ if self.is_frozen(member) && !matches!(kind, Kind::Crash) => {}
            Kind::KillAgent => {
                self.stats.count("agent killed");
                self.kill_agent(member);
                self.exchange_program(member);
                // An upgrade is over in no time.
                let within = self.rng.pick(&[50 * MS, 4 * S]).unwrap_or(S);
                self.mend_later(Fault::StartAgent(member), within);
            }
            Kind::PauseAgent => {
                self.stats.count("agent paused");
                let until = self.now + self.rng.between(10 * MS, 2 * S);
                if let Some(host) = self.hosts.get_mut(&member) {
                    host.agent_changed = host.agent_changed.max(until);
                    if let Some(agent) = &mut host.agent {
                        agent.paused_until = agent.paused_until.max(until);
                    }
                }
            }
            Kind::Crash => {
                self.stats.count("host crashed");
                self.crash(member);
                let at = self.now + self.rng.between(S, 4 * S);
                self.agenda.plan(at, Happening::Fault(Fault::Boot(member)));
            }
            Kind::CrashInFlush => {
                if let Some(host) = self.hosts.get_mut(&member) {
                    host.is_doomed = true;
                }
            }
            _ => {
                self.stats.count("program detached");
                self.set_attached(member, false);
                self.mend_later(Fault::Attach(member), 2 * S);
            }
        }
    }

    /// The agent that starts next may be of another version.
    fn exchange_program(&mut self, member: u8) {
        let (is_mixed, speaks) = (self.plan.is_mixed, self.rng.pick(&[1, wire::VERSION]).unwrap_or(1));
        let Some(host) = self.hosts.get_mut(&member).filter(|_| is_mixed) else { return };
        if host.speaks != speaks {
            self.stats.count(if host.speaks < speaks { "agent upgraded" } else { "agent downgraded" });
            host.speaks = speaks;
        }
    }

    /// Another set of servers; a member may be the first by far to take it over.
    fn change_backends(&mut self, kind: Kind, first: Option<u8>) {
        let mut cluster = self.newest().clone();
        let serving = cluster.backends.iter().filter(|backend| !backend.drain).count();
        let at = self.rng.below(cluster.backends.len() as u64) as usize;
        let name = match kind {
            Kind::AddBackend if cluster.backends.len() < BACKENDS_MAX => {
                self.next_backend += 1;
                cluster.backends.push(Backend { address: server(self.next_backend), drain: false });
                "backend added"
            }
            Kind::DrainBackend if serving > 1 && !cluster.backends[at].drain => {
                cluster.backends[at].drain = true;
                "backend drained"
            }
            Kind::RemoveBackend if serving > 1 => {
                cluster.backends.remove(at);
                if cluster.backends.iter().all(|backend| backend.drain) {
                    return;
                }
                "backend removed"
            }
            _ => return,
        };
        self.stats.count(name);
        self.reconfigure_after(cluster, first);
    }

    /// A member that has told of its new servers hears nobody any more, before the others have them: whoever proposes the
    /// change waits for its acknowledgement.
    fn deafen_in_change(&mut self) {
        // The first in order is the one to propose it.
        let Some(last) = self.hosts.values().filter(|host| host.enlisted).map(|host| host.id).max() else { return };
        let kind = self.rng.pick(&[Kind::AddBackend, Kind::RemoveBackend]).unwrap_or(Kind::AddBackend);
        self.change_backends(kind, Some(last));
        self.agenda.plan(self.now + FIRST_BY / 2, Happening::Fault(Fault::Deafen(last)));
    }

    fn add_member(&mut self) {
        let mut cluster = self.newest().clone();
        let absent = (1..=self.plan.members_max)
            .find(|id| !cluster.members.contains(id) && self.hosts.get(id).is_none_or(|host| !host.up));
        let Some(id) = absent else { return };
        self.stats.count("member added");
        cluster.members.push(id);
        cluster.members.sort_unstable();
        self.reconfigure(cluster);
        self.hosts.entry(id).or_insert_with(|| crate::member::Host::new(id)).enlisted = true;
        self.mend_later(Fault::Boot(id), S);
    }

    fn remove_member(&mut self, member: u8) {
        let mut cluster = self.newest().clone();
        if cluster.members.len() <= 2 {
            return;
        }
        cluster.members.retain(|&id| id != member);
        cluster.drained.retain(|&id| id != member);
        if !cluster.has_owners() {
            return;
        }
        self.stats.count("member removed");
        if let Some(host) = self.hosts.get_mut(&member) {
            host.enlisted = false;
            host.announced = false;
        }
        self.route(member, false);
        self.agenda.plan(self.now + 50 * MS, Happening::Fault(Fault::Stop(member)));
        self.agenda.plan(self.now + 300 * MS, Happening::Fault(Fault::SwitchOff(member)));
        self.reconfigure(cluster);
    }

    /// A member is to give its flows away, or not any more.
    fn drain_member(&mut self, member: u8) {
        let mut cluster = self.newest().clone();
        // Every other time one that is drained, if there is any.
        let drained = self.rng.pick(&cluster.drained).filter(|_| self.rng.chance(500));
        let member = drained.unwrap_or(member);
        let is_drained = cluster.drained.contains(&member);
        if is_drained {
            cluster.drained.retain(|&id| id != member);
        } else {
            cluster.drained.push(member);
        }
        if !cluster.has_owners() {
            return;
        }
        self.stats.count(if is_drained { "member no longer drained" } else { "member drained" });
        self.reconfigure(cluster);
    }

    /// Mends everything; from now on nothing breaks.
    fn heal(&mut self) {
        self.trace(|| "all is mended".into());
        self.calm = true;
        self.network.mend_all(self.now);
        let version = self.configs.len() - 1;
        let members: Vec<u8> = self.hosts.values().filter(|host| host.enlisted).map(|host| host.id).collect();
        for member in members {
            self.thaw(member);
            if let Some(host) = self.hosts.get_mut(&member) {
                host.is_doomed = false;
            }
            if let Some(agent) = self.hosts.get_mut(&member).and_then(|host| host.agent.as_mut()) {
                agent.paused_until = 0;
            }
            self.wake_at(member, self.now);
            // A machine takes longer to start than its peers to notice that it is gone.
            let on_at = self.hosts.get(&member).map_or(0, |host| host.host_changed + S).max(self.now);
            self.agenda.plan(on_at, Happening::Fault(Fault::Boot(member)));
            self.set_attached(member, true);
            self.start_agent(member);
            self.configure(member, version);
            self.tell_router(member, true, MS);
        }
    }

    fn boot_if_enlisted(&mut self, member: u8) {
        if self.hosts.get(&member).is_some_and(|host| host.enlisted) {
            self.boot(member);
        }
    }

    pub(crate) fn newest(&self) -> &Cluster {
        &self.configs[self.configs.len() - 1]
    }

    fn mend_later(&mut self, repair: Fault, within: Ns) {
        let at = self.now + self.rng.between(20 * MS, within);
        self.agenda.plan(at, Happening::Fault(repair));
    }
}
