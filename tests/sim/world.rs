//! The simulated world: its state, and the loop that makes things happen in it.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::address::Address;
use lb_userspace::core::{Key, wire};

use crate::{
    agenda::{Agenda, Happening},
    attacker::Liar,
    bulk::Mishaps,
    client::{Client, ConnId},
    configuration::{Backend, Cluster, server},
    faults::Fault,
    health::Health,
    invariants::{Invariant, Violation},
    member::Host,
    mutation::Mutation,
    network::Network,
    oracle::Oracle,
    owners::Owned,
    plan::{Plan, Scale},
    rng::Rng,
    router::Router,
    server::Server,
    statistics::Statistics,
    stream::Stream,
    time::{MS, Ns, S},
    traitor::Traitor,
};

/// Between two looks of the oracle at all tables.
const INSPECTION: Ns = 200 * MS;
/// When the first clients come: members that start together are ready by then.
const OPENING: Ns = 2 * S + 500 * MS;

/// Far more than any seed needs.
const HAPPENINGS_MAX: u64 = 100_000_000;

/// Everything.
pub(crate) struct World {
    /// Time since the beginning.
    pub(crate) now: Ns,
    /// What is to come.
    pub(crate) agenda: Agenda,
    /// Chance.
    pub(crate) rng: Rng,
    /// The circumstances.
    pub(crate) plan: Plan,
    /// What is broken on purpose.
    pub(crate) mutation: Mutation,
    /// Members, past and present.
    pub(crate) hosts: BTreeMap<u8, Host>,
    /// Links between them.
    pub(crate) network: Network,
    /// Connections between their agents.
    pub(crate) streams: BTreeMap<u64, Stream>,
    /// In front of them.
    pub(crate) router: Router,
    /// All clients that ever were.
    pub(crate) clients: BTreeMap<ConnId, Client>,
    /// What servers know.
    pub(crate) servers: BTreeMap<Address, Server>,
    /// All versions of the configuration; the last one is the newest.
    pub(crate) configs: Vec<Cluster>,
    /// Who knew what since when.
    pub(crate) oracle: Oracle,
    /// Members that place new flows differently, and since when.
    pub(crate) differing: BTreeMap<(u8, u8), Ns>,
    /// All owners of flows that any agent has ever seen or named.
    pub(crate) owned: BTreeSet<(Key, Owned)>,
    /// How often what happened.
    pub(crate) stats: Statistics,
    /// Nothing breaks any more.
    pub(crate) calm: bool,
    /// Clients send nothing new.
    pub(crate) silent: bool,
    /// Number of the next connection.
    pub(crate) next_conn: ConnId,
    /// Number of the newest datagram in fragments.
    pub(crate) next_datagram: u32,
    /// Number of the next stream.
    pub(crate) next_stream: u64,
    /// Number of the next agent's start.
    pub(crate) next_run: u64,
    /// Number of the newest server.
    pub(crate) next_backend: u8,
    /// Between the members.
    pub(crate) liar: Liar,
    /// Who speaks in a member's name, with its key.
    pub(crate) traitor: Traitor,
    pub(crate) mishaps: Mishaps,
    pub(crate) health: Health,
    /// When every agent that runs has the newest configuration.
    pub(crate) reconfigured: Ns,
    violation: Option<Violation>,
    tracing: bool,
    happenings: u64,
    digest: u64,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The first invariant that did not hold.
    pub(crate) violation: Option<Violation>,
    /// How often what happened.
    pub(crate) stats: Statistics,
    /// A fingerprint of everything that happened, in order.
    pub(crate) digest: u64,
}

/// Runs one seed to its end, or to the first violation.
pub(crate) fn run(seed: u64, scale: Scale, mutation: Mutation, tracing: bool) -> Outcome {
    let mut world = World::new(seed, scale, mutation, tracing);
    world.begin();
    while world.violation.is_none() {
        if world.happenings > HAPPENINGS_MAX {
            world
                .violate(Invariant::Bounded, || format!("more than {HAPPENINGS_MAX} happenings: somebody never rests"));
            break;
        }
        let Some((at, happening)) = world.agenda.next(world.plan.ends_at) else { break };
        world.now = at;
        world.note(at, &happening);
        world.happen(happening);
    }
    if world.violation.is_none() {
        world.now = world.plan.ends_at;
        world.judge_end();
    }
    let happenings = world.happenings;
    world.stats.add("happening", happenings);
    world.stats.add("virtual second", world.now / S);
    world.gather();
    Outcome { violation: world.violation, stats: world.stats, digest: world.digest }
}

impl World {
    fn new(seed: u64, scale: Scale, mutation: Mutation, tracing: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng, scale);
        let network = Network::new(plan.delay.0, plan.delay.1, rng.fork());
        let members = (1..=plan.members).collect();
        let backends = (1..=plan.backends).map(|n| Backend { address: server(n), drain: false }).collect();
        Self {
            now: 0,
            agenda: Agenda::default(),
            rng,
            mutation,
            hosts: BTreeMap::new(),
            network,
            streams: BTreeMap::new(),
            router: Router::default(),
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            configs: vec![Cluster { members, drained: Vec::new(), backends }],
            oracle: Oracle::default(),
            differing: BTreeMap::new(),
            owned: BTreeSet::new(),
            stats: Statistics::default(),
            calm: false,
            silent: false,
            next_conn: 1,
            next_datagram: 0,
            next_stream: 1,
            next_run: 1,
            next_backend: plan.backends,
            liar: Liar::new(seed),
            traitor: Traitor::new(seed),
            mishaps: Mishaps::new(seed),
            health: Health::new(seed, plan.is_mixed),
            reconfigured: 0,
            violation: None,
            tracing,
            happenings: 0,
            digest: 0,
            plan,
        }
    }

    fn begin(&mut self) {
        self.trace_plan();
        for member in 1..=self.plan.members {
            let speaks = if self.plan.is_mixed && self.rng.chance(500) { 1 } else { wire::VERSION };
            let host = self.hosts.entry(member).or_insert_with(|| Host::new(member));
            (host.enlisted, host.speaks) = (true, speaks);
            let at = self.rng.below(500 * MS);
            self.agenda.plan(at, Happening::Fault(Fault::Boot(member)));
        }
        self.agenda.plan(OPENING, Happening::NewClient);
        self.agenda.plan(OPENING, Happening::Attack);
        self.agenda.plan(INSPECTION, Happening::Inspect);
        self.agenda.plan(self.plan.faults_from, Happening::Fault(Fault::Strike));
        if self.health.checked.is_some() {
            self.agenda.plan(self.plan.faults_from, Happening::Befall);
        }
        self.agenda.plan(self.plan.healed_at, Happening::Fault(Fault::Heal));
        self.agenda.plan(self.plan.silent_at, Happening::Fault(Fault::Silence));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake { member, run } => self.wake(member, run),
            Happening::Sweep { member, run } => self.sweep(member, run),
            Happening::Write { member, run, key } => self.write(member, run, &key),
            Happening::Probe { to, from, probe } => self.probe_arrives(to, from, &probe),
            Happening::Packet { member, segment } => self.packet_arrives(member, segment),
            Happening::AtServer { segment, backend } => self.serve(&segment, backend),
            Happening::AtClient { reply } => self.answer(reply),
            Happening::Client { id, stamp } => self.client_timer(id, stamp),
            Happening::NewClient => self.new_client(),
            Happening::Attack => self.attack(),
            Happening::Send { segment } => self.send_to_vip(segment),
            Happening::Pump { stream, from } => self.pump(stream, from),
            Happening::Dialled { member, run, peer } => self.dialled(member, run, peer),
            Happening::StreamEnded { stream, end } => self.stream_ended(stream, end),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Configure { member, version } => self.configure(member, version),
            Happening::Route { member, usable } => self.route(member, usable),
            Happening::Befall => self.befall_server(),
            Happening::Check { member, run } => self.check(member, run),
            Happening::Inspect => {
                self.inspect();
                self.inspect_epochs();
                self.inspect_health();
                self.agenda.plan(self.now + INSPECTION, Happening::Inspect);
            }
        }
    }

    /// A packet arrives at `at`, if it does; the network may deliver it twice.
    pub(crate) fn arrive(&mut self, at: Option<Ns>, happening: Happening) {
        let Some(at) = at else { return };
        if let Some(again) = self.network.twin(at) {
            self.stats.count("packet delivered twice");
            self.agenda.plan(again, happening.clone());
        }
        self.agenda.plan(at, happening);
    }

    /// An invariant does not hold; the first one counts.
    pub(crate) fn violate(&mut self, invariant: Invariant, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let violation = Violation { invariant, at: self.now, text: text() };
            self.trace(|| format!("VIOLATION {violation}"));
            self.violation = Some(violation);
        }
    }

    /// Prints a line of the story, when one seed is replayed.
    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if self.tracing {
            eprintln!("{:>12.6} {}", self.now as f64 / S as f64, line());
        }
    }

    fn trace_plan(&self) {
        self.trace(|| format!("{:#?}", self.plan));
    }

    fn note(&mut self, at: Ns, happening: &Happening) {
        self.happenings += 1;
        let kind = match happening {
            Happening::Wake { member, .. } => 1 + u64::from(*member) * 32,
            Happening::Packet { member, segment } => 2 + u64::from(*member) * 32 + u64::from(segment.conn) * 4096,
            Happening::AtServer { backend, .. } => 3 + u64::from(backend[15]) * 32,
            Happening::Pump { stream, .. } => 4 + stream * 32,
            _ => 0,
        };
        self.digest = lb_common::hash::mix(self.digest ^ at.rotate_left(7) ^ kind);
    }
}
