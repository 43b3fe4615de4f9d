//! Several cores in one address space: no wire, no map, no clock but the ones here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use lb_common::{
    address::{Address, mapped},
    flow::{FlowEntry, FlowKey, FlowKeyV4, STATE_ESTABLISHED, TCP, WITNESSED, tick},
    liveness::{Heard, LIVENESS_DIFFERS, Liveness, PROBE_READY, Probe},
    rank::{bit, rank},
    service::ServiceKey,
};
use zerocopy::FromZeros;

use super::{
    Adopted, Core, Event, Input, Key, Output, PutMode, Session, Tables,
    distribution::Proposal,
    records::{self, is_after},
    view::{Backend, Limits, Member, Probing, Service, Timeouts, View},
};

mod acknowledging;
mod authority;
mod bulk;
mod conditions;
mod configuration;
mod convergence;
mod damage;
mod digests;
mod distribution;
mod epochs;
mod expiry;
mod liveness;
mod merging;
mod pace;
mod sessions;
mod takeover;
mod versions;
mod wire;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// A host: its agent (if it runs), its datapath (if it is up), its maps.
struct Host {
    core: Option<Core>,
    view: View,
    incarnation: u32,
    is_up: bool,
    flows: BTreeMap<Key, FlowEntry>,
    heard: BTreeMap<u8, Heard>,
    liveness: Liveness,
    tables: Option<Tables>,
    reports: Vec<(u64, Event)>,
    /// What it was given to judge, and has not.
    proposals: Vec<Proposal>,
    stopped_at: Option<u64>,
    puts: usize,
}

/// The hosts and what is between them; everything takes no time.
struct Net {
    now: u64,
    hosts: BTreeMap<u8, Host>,
    /// Directions in which nothing passes.
    cut: BTreeSet<(u8, u8)>,
    /// Ends of connections: whose it is, and the other end.
    ends: BTreeMap<Session, (u8, Session)>,
    next_session: u64,
    /// Sessions whose acknowledgements do not arrive.
    deaf: BTreeSet<Session>,
    /// Bytes that members have sent.
    sent: BTreeMap<u8, u64>,
    /// Bytes sent by hosts that are stalled: not drained, not delivered.
    stalled: BTreeSet<u8>,
    /// The same of single sessions.
    slow: BTreeSet<Session>,
    held: VecDeque<(Session, Vec<u8>)>,
    /// Bytes on their way: they arrive when everybody has done what is to be done.
    mail: VecDeque<(Session, Option<Vec<u8>>)>,
    depth: usize,
    /// Hosts whose outputs are being carried out: what an answer to one adds comes after the others, in the same loop.
    busy: BTreeSet<u8>,
    /// Bytes that met a cut: TCP sends them again.
    stuck: VecDeque<(Session, Vec<u8>)>,
}

fn backend(last: u8) -> Backend {
    Backend { name: format!("web-{last}"), address: server(last), weight: 100, drain: false, down: false }
}

fn server(last: u8) -> Address {
    mapped([10, 0, 2, last])
}

fn vip() -> ServiceKey {
    ServiceKey { address: mapped([203, 0, 113, 10]), port: 80_u16.to_be_bytes(), protocol: TCP, padding: 0 }
}

fn web(backends: Vec<Backend>) -> Service {
    let (vips, idle_timeout) = (vec![vip()], None);
    Service { name: "web".into(), vips, backends, affinity: false, echo: false, idle_timeout, checked: None }
}

/// One key for each pair.
fn pair_keys(one: u8, other: u8) -> [[u64; 2]; 2] {
    [[u64::from(one.min(other)), u64::from(one.max(other))], [0; 2]]
}

fn view(me: u8, members: u8) -> View {
    View {
        me,
        members: (1..=members)
            .map(|id| Member {
                id,
                name: format!("lb{id}"),
                address: mapped([10, 0, 1, id]),
                second_address: None,
                drain: false,
                hand_off_source: None,
                probe_keys: pair_keys(me, id),
            })
            .collect(),
        cluster: "test".into(),
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
        services: vec![web(vec![backend(1), backend(2)])],
        limits: Limits { flows: 1000, flows_v6: 200, tombstones: 100, parked: 10, queue: 500, window: 1 << 18 },
    }
}

fn key(client: u16) -> Key {
    let [high, low] = client.to_be_bytes();
    Key::V4(FlowKeyV4 {
        source: [198, 51, high, low],
        destination: [203, 0, 113, 10],
        source_port: 40_000_u16.to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol: TCP,
        padding: FromZeros::new_zeroed(),
    })
}

impl Net {
    /// A cluster whose agents have been running for four seconds: the haste after their first epoch is over.
    fn new(members: u8) -> Self {
        let mut net = Self::idle();
        for id in 1..=members {
            net.add(view(id, members));
            net.start(id);
        }
        net.run(4 * S);
        net
    }

    fn idle() -> Self {
        Self {
            now: 1000 * S,
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            ends: BTreeMap::new(),
            next_session: 0,
            deaf: BTreeSet::new(),
            sent: BTreeMap::new(),
            stalled: BTreeSet::new(),
            slow: BTreeSet::new(),
            held: VecDeque::new(),
            mail: VecDeque::new(),
            depth: 0,
            busy: BTreeSet::new(),
            stuck: VecDeque::new(),
        }
    }

    fn add(&mut self, view: View) {
        let host = Host {
            core: None,
            incarnation: 0,
            is_up: true,
            flows: BTreeMap::new(),
            heard: BTreeMap::new(),
            liveness: Liveness::new_zeroed(),
            tables: None,
            reports: Vec::new(),
            proposals: Vec::new(),
            stopped_at: None,
            puts: 0,
            view,
        };
        self.hosts.insert(host.view.me, host);
    }

    /// Starts an agent on the maps that are there.
    fn start(&mut self, id: u8) {
        let now = self.now;
        let host = self.host(id);
        let adopted = host.tables.as_ref().map(adopt).unwrap_or_default();
        host.incarnation += 1;
        host.stopped_at = None;
        let nonce = now << 8 | u64::from(id);
        host.core = Some(Core::new(now, host.view.clone(), host.incarnation, nonce, &adopted));
        self.sweep(id);
    }

    /// The agent is killed; its connections break.
    fn kill(&mut self, id: u8) {
        self.host(id).core = None;
        let gone: Vec<Session> = self.ends.iter().filter(|(_, end)| end.0 == id).map(|(&s, _)| s).collect();
        for session in gone {
            self.hang_up(session);
        }
    }

    fn host(&mut self, id: u8) -> &mut Host {
        self.hosts.get_mut(&id).expect("a host of the test")
    }

    fn core(&self, id: u8) -> &Core {
        self.hosts[&id].core.as_ref().expect("a running agent")
    }

    /// Cuts a host off in both directions.
    fn isolate(&mut self, id: u8) {
        for other in self.hosts.keys().copied().filter(|&other| other != id) {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    fn run(&mut self, duration: u64) {
        let end = self.now + duration;
        loop {
            let next = self.hosts.iter().filter_map(|(&id, h)| Some((h.core.as_ref()?.next_deadline()?, id))).min();
            let Some((due, id)) = next.filter(|&(due, _)| due <= end) else { break };
            self.now = self.now.max(due);
            let stuck = std::mem::take(&mut self.stuck);
            stuck.into_iter().for_each(|(session, bytes)| self.deliver(session, bytes));
            self.tick(id);
        }
        self.now = end;
    }

    fn tick(&mut self, id: u8) {
        let now = self.now;
        let core = self.hosts[&id].core.as_ref().expect("a running agent");
        if now >= core.next_look() {
            for (member, heard) in self.hosts[&id].heard.clone() {
                self.input(id, Input::Heard { member, heard });
            }
        }
        self.input(id, Input::Tick);
    }

    fn input(&mut self, id: u8, input: Input) {
        let now = self.now;
        let Some(core) = self.hosts.get_mut(&id).and_then(|host| host.core.as_mut()) else { return };
        core.handle(now, input);
        self.carry_out(id);
    }

    fn sweep(&mut self, id: u8) {
        for (key, entry) in self.host(id).flows.clone() {
            self.input(id, Input::Observed { key, entry });
        }
        self.input(id, Input::Swept);
    }

    fn sweep_all(&mut self) {
        let ids: Vec<u8> = self.hosts.keys().copied().collect();
        ids.into_iter().for_each(|id| self.sweep(id));
    }

    fn carry_out(&mut self, id: u8) {
        self.depth += 1;
        self.carry_out_one_by_one(id);
        // What arrives may be answered: not from within, however long the conversation becomes.
        while self.depth == 1
            && let Some((session, bytes)) = self.mail.pop_front()
        {
            match bytes {
                Some(bytes) => self.deliver(session, bytes),
                None => self.hang_up(session),
            }
        }
        self.depth -= 1;
    }

    fn carry_out_one_by_one(&mut self, id: u8) {
        if !self.busy.insert(id) {
            return;
        }
        while let Some(output) = self.host(id).core.as_mut().and_then(Core::poll_output) {
            let now = self.now;
            match output {
                Output::Install(tables) => self.host(id).tables = Some(*tables),
                Output::SetLiveness(liveness) => self.host(id).liveness = liveness,
                Output::SendProbe { to, probe } => self.probe(id, to, &probe),
                Output::PutFlow { key, entry, mode } => self.put(id, key, entry, mode),
                Output::DeleteFlow { key, unless_seen_since } => match self.hosts[&id].flows.get(&key).copied() {
                    Some(entry) if is_after(entry.last_seen, unless_seen_since) => {
                        self.input(id, Input::Observed { key, entry });
                    }
                    _ => {
                        self.host(id).flows.remove(&key);
                        self.input(id, Input::Deleted { key });
                    }
                },
                Output::Dial { peer } => self.dial(id, peer),
                Output::Send { session, bytes } => {
                    *self.sent.entry(id).or_default() += bytes.len() as u64;
                    if self.stalled.contains(&id) || self.slow.contains(&session) {
                        self.held.push_back((session, bytes));
                    } else {
                        self.mail.push_back((session, Some(bytes)));
                    }
                }
                Output::Close { session } => self.mail.push_back((session, None)),
                Output::Defer { .. } => {}
                Output::RaiseIncarnation(to) => self.host(id).incarnation = to,
                Output::Judge(proposal) => self.host(id).proposals.push(*proposal),
                Output::Report(event) => self.host(id).reports.push((now, event)),
                Output::Stopped => self.host(id).stopped_at = Some(now),
            }
        }
        self.busy.remove(&id);
    }

    fn put(&mut self, id: u8, key: Key, entry: FlowEntry, mode: PutMode) {
        let host = self.host(id);
        host.puts += 1;
        match (host.flows.get(&key).copied(), mode) {
            (Some(entry), PutMode::Insert) => self.input(id, Input::Observed { key, entry }),
            (Some(existing), PutMode::Amend) => {
                host.flows.insert(key, records::amend(&existing, &entry));
            }
            (Some(existing), PutMode::Restore) => {
                host.flows.insert(key, records::restore(&existing, &entry));
            }
            (None, _) => {
                host.flows.insert(key, entry);
            }
        }
    }

    fn probe(&mut self, from: u8, to: u8, probe: &Probe) {
        if !self.hosts.get(&to).is_some_and(|host| host.is_up) || self.cut.contains(&(from, to)) {
            return;
        }
        let Some(echo) = self.take_probe(to, from, probe) else { return };
        if self.host(from).is_up && !self.cut.contains(&(to, from)) {
            self.take_probe(from, to, &echo);
        }
    }

    /// What a host's datapath does with a probe or an echo; the echo that it sends.
    fn take_probe(&mut self, at: u8, from: u8, probe: &Probe) -> Option<Probe> {
        let now = self.now;
        let host = self.host(at);
        let node = &host.tables.as_ref()?.node;
        host.heard.entry(from).or_insert_with(Heard::new_zeroed).take(node, from, probe, now).1
    }

    fn dial(&mut self, from: u8, to: u8) {
        let is_cut = self.cut.contains(&(from, to)) || self.cut.contains(&(to, from));
        if is_cut || self.hosts.get(&to).is_none_or(|host| host.core.is_none()) {
            self.input(from, Input::DialFailed { peer: to });
            return;
        }
        let (here, there) = self.connect(from, to);
        self.input(to, Input::Connected { peer: from, session: there, dialled: false });
        self.input(from, Input::Connected { peer: to, session: here, dialled: true });
    }

    fn connect(&mut self, from: u8, to: u8) -> (Session, Session) {
        self.next_session += 2;
        let (here, there) = (Session(self.next_session), Session(self.next_session + 1));
        self.ends.insert(here, (from, there));
        self.ends.insert(there, (to, here));
        (here, there)
    }

    fn deliver(&mut self, session: Session, bytes: Vec<u8>) {
        let Some(&(from, there)) = self.ends.get(&session) else { return };
        let Some(&(to, _)) = self.ends.get(&there) else { return };
        if self.cut.contains(&(from, to)) || self.stuck.iter().any(|(other, _)| *other == session) {
            self.stuck.push_back((session, bytes));
            return;
        }
        let length = bytes.len();
        if self.deaf.contains(&there) && bytes.get(5) == Some(&25) {
            self.input(from, Input::Drained { session, bytes: length });
            return;
        }
        self.input(to, Input::Received { session: there, bytes });
        self.input(from, Input::Drained { session, bytes: length });
    }

    fn release(&mut self, id: u8) {
        self.stalled.remove(&id);
        let held = std::mem::take(&mut self.held);
        held.into_iter().for_each(|(session, bytes)| self.deliver(session, bytes));
    }

    fn hang_up(&mut self, session: Session) {
        let Some((_, there)) = self.ends.remove(&session) else { return };
        if let Some((to, _)) = self.ends.remove(&there) {
            self.input(to, Input::Closed { session: there });
        }
    }

    /// A client's flow begins: the acting owner's XDP makes an entry and an event. Returns who that is.
    fn begin(&mut self, client: u16, state: u8) -> u8 {
        let key = key(client);
        let node = self.core(1).node;
        let owners = rank(key.hash(&node.hash_key), &node.seeds, node.members, u64::MAX);
        let owner = if self.hosts[&owners.primary].is_up { owners.primary } else { owners.backup };
        self.begin_at(owner, client, state);
        owner
    }

    /// A packet of an unknown flow is delivered at a host: its XDP makes an entry and an event.
    fn begin_at(&mut self, id: u8, client: u16, state: u8) {
        let (key, now) = (key(client), tick(self.now));
        let host = self.host(id);
        let Some(tables) = host.tables.as_ref() else { return };
        let owners = rank(key.hash(&tables.node.hash_key), &tables.node.seeds, tables.node.members, u64::MAX);
        let entry = FlowEntry {
            last_seen: now,
            created: now,
            tag: key.tag(),
            creator_incarnation: host.incarnation,
            backend: tables.backends.keys().copied().next().expect("a backend"),
            state,
            packets: 2,
            creator: id | WITNESSED,
            primary: owners.primary,
            backup: owners.backup,
            ..FlowEntry::new_zeroed()
        };
        host.flows.insert(key, entry);
        self.input(id, Input::Observed { key, entry });
    }

    /// A packet of the flow passes at a host, whose XDP writes the time.
    fn packet(&mut self, id: u8, client: u16) {
        let now = tick(self.now);
        self.host(id).flows.get_mut(&key(client)).expect("a flow").last_seen = now;
    }

    fn records(&self, id: u8) -> usize {
        self.core(id).status().records
    }

    fn reports(&self, id: u8, wanted: impl Fn(&Event) -> bool) -> usize {
        self.hosts[&id].reports.iter().filter(|(_, event)| wanted(event)).count()
    }

    fn is_ready(&self, id: u8) -> bool {
        self.core(id).status().ready
    }
}

fn adopt(tables: &Tables) -> Adopted {
    let target = |b: &super::BackendSlot| lb_common::target::Target {
        address: b.address,
        ring: b.ring,
        state: b.state,
        ..lb_common::target::Target::NONE
    };
    Adopted {
        services: tables.services.iter().map(|(key, service)| (*key, *service)).collect(),
        backends: tables.backends.iter().map(|(slot, backend)| (*slot, target(backend))).collect(),
    }
}
