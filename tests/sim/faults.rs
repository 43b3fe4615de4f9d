//! What breaks, for how long, and how it is mended.

use crate::{
    agenda::Happening,
    configuration::{Backend, Cluster, server},
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
    /// A detached program is attached again.
    Attach(u8),
    /// A member's agent is told to stop.
    Stop(u8),
    /// One direction works again.
    Mend(u8, u8),
    /// Links lose as little as before.
    EndLoss,
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
    Crash,
    Detach,
    CutBoth,
    CutOneWay,
    Isolate,
    Loss,
    Reshuffle,
    LoseSight,
    AddBackend,
    DrainBackend,
    RemoveBackend,
    AddMember,
    RemoveMember,
}

const KINDS: [Kind; 19] = [
    Kind::KillAgent,
    Kind::KillAgent,
    Kind::PauseAgent,
    Kind::Crash,
    Kind::Crash,
    Kind::Detach,
    Kind::CutBoth,
    Kind::CutOneWay,
    Kind::Isolate,
    Kind::Loss,
    Kind::Reshuffle,
    Kind::Reshuffle,
    Kind::LoseSight,
    Kind::AddBackend,
    Kind::AddBackend,
    Kind::DrainBackend,
    Kind::RemoveBackend,
    Kind::AddMember,
    Kind::RemoveMember,
];

/// Every fault that a long enough run must have seen.
pub(crate) const FAULTS: [&str; 33] = [
    "agent killed",
    "agent paused",
    "host crashed",
    "program detached",
    "link cut",
    "link cut one way",
    "member isolated",
    "links lose packets",
    "router reshuffles",
    "router loses sight of a member",
    "backend added",
    "backend drained",
    "backend removed",
    "member added",
    "member removed",
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
    "newcomer of a flood",
    "ICMP error",
    "datagram in fragments",
    "direct delivery",
    "hand_off_second_chance",
    "deliver_second_chance",
    "direct delivery of a dead owner's flow",
    "session broken",
];

const MEMBERS_MAX: usize = 5;
const BACKENDS_MAX: usize = 9;

impl World {
    /// Something breaks, or is mended.
    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Strike => self.strike(),
            Fault::StartAgent(member) => self.start_agent(member),
            Fault::Boot(member) => self.boot_if_enlisted(member),
            Fault::SwitchOff(member) => {
                if self.hosts.get(&member).is_some_and(|host| !host.enlisted) {
                    self.crash(member);
                }
            }
            Fault::Attach(member) => self.set_attached(member, true),
            Fault::Stop(member) => {
                if self.hosts.get(&member).is_some_and(|host| !host.enlisted) {
                    self.input(member, lb_userspace::core::Input::Stop);
                }
            }
            Fault::Mend(a, b) => self.network.mend(self.now, a, b),
            Fault::EndLoss => self.network.loss_permille = 0,
            Fault::Recall(member) => self.route(member, true),
            Fault::Heal => self.heal(),
            Fault::Silence => self.silent = true,
        }
    }

    fn strike(&mut self) {
        if self.calm {
            return;
        }
        let gap = self.plan.fault_gap;
        let at = self.now + self.rng.below(2 * gap);
        self.agenda.plan(at, Happening::Fault(Fault::Strike));
        let running: Vec<u8> =
            self.hosts.values().filter(|host| host.enlisted && host.up).map(|host| host.id).collect();
        let (Some(kind), Some(member)) = (self.rng.pick(&KINDS), self.rng.pick(&running)) else { return };
        self.trace(|| format!("fault {kind:?} at {member}"));
        match kind {
            Kind::KillAgent | Kind::PauseAgent | Kind::Crash | Kind::Detach => self.strike_member(kind, member),
            Kind::CutBoth | Kind::CutOneWay | Kind::Isolate => self.strike_links(kind, member),
            Kind::Loss => {
                self.stats.count("links lose packets");
                self.network.loss_permille = self.rng.pick(&[10, 50, 200]).unwrap_or(10);
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
            Kind::AddBackend | Kind::DrainBackend | Kind::RemoveBackend => self.change_backends(kind),
            Kind::AddMember => self.add_member(),
            Kind::RemoveMember => self.remove_member(member),
        }
    }

    fn strike_member(&mut self, kind: Kind, member: u8) {
        match kind {
            Kind::KillAgent => {
                self.stats.count("agent killed");
                self.kill_agent(member);
                self.mend_later(Fault::StartAgent(member), 4 * S);
            }
            Kind::PauseAgent => {
                self.stats.count("agent paused");
                let until = self.now + self.rng.between(10 * MS, 2 * S);
                if let Some(host) = self.hosts.get_mut(&member) {
                    host.agent_changed = until;
                    if let Some(agent) = &mut host.agent {
                        agent.paused_until = until;
                    }
                }
            }
            Kind::Crash => {
                self.stats.count("host crashed");
                self.crash(member);
                let at = self.now + self.rng.between(S, 4 * S);
                self.agenda.plan(at, Happening::Fault(Fault::Boot(member)));
            }
            _ => {
                self.stats.count("program detached");
                self.set_attached(member, false);
                self.mend_later(Fault::Attach(member), 2 * S);
            }
        }
    }

    fn strike_links(&mut self, kind: Kind, member: u8) {
        let others: Vec<u8> = self.hosts.keys().copied().filter(|&id| id != member).collect();
        let Some(other) = self.rng.pick(&others) else { return };
        let (cuts, name): (Vec<(u8, u8)>, _) = match kind {
            Kind::CutBoth => (vec![(member, other), (other, member)], "link cut"),
            Kind::CutOneWay => (vec![(member, other)], "link cut one way"),
            _ => (others.iter().flat_map(|&id| [(member, id), (id, member)]).collect(), "member isolated"),
        };
        self.stats.count(name);
        let length = self.rng.between(20 * MS, 4 * S);
        for (from, to) in cuts {
            self.network.cut(self.now, from, to);
            self.agenda.plan(self.now + length, Happening::Fault(Fault::Mend(from, to)));
        }
    }

    fn change_backends(&mut self, kind: Kind) {
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
        self.reconfigure(cluster);
    }

    fn add_member(&mut self) {
        let mut cluster = self.newest().clone();
        let absent = (1..=MEMBERS_MAX as u8)
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
        self.stats.count("member removed");
        cluster.members.retain(|&id| id != member);
        if let Some(host) = self.hosts.get_mut(&member) {
            host.enlisted = false;
            host.announced = false;
        }
        self.route(member, false);
        self.agenda.plan(self.now + 50 * MS, Happening::Fault(Fault::Stop(member)));
        self.agenda.plan(self.now + 300 * MS, Happening::Fault(Fault::SwitchOff(member)));
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

    fn newest(&self) -> &Cluster {
        &self.configs[self.configs.len() - 1]
    }

    fn mend_later(&mut self, repair: Fault, within: Ns) {
        let at = self.now + self.rng.between(20 * MS, within);
        self.agenda.plan(at, Happening::Fault(repair));
    }
}
