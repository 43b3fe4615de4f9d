//! Servers fall ill, for all members or on the way from one of them, and operators drain servers by hand.
//!
//! `docs/design/0014-health.md` says what members make of it. With chance of its own, in some seeds only, so that the others
//! keep their stories; and on after all is mended, for only then is it certain what must come of it.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{address::Address, hash::mix, rank::bit, ring::ring_slot, service::ServiceKey};
use lb_userspace::core::{Input, event::Event, view::AllDown};

use crate::{
    agenda::Happening,
    configuration::{Backend, WEB, service_key},
    invariants::{Invariant, SETTLED},
    member::Host,
    rng::Rng,
    time::{MS, Ns, S},
    world::World,
};

/// Seeds of a thousand, of those without agents of other versions: beside such a one no condition changes.
const SEEDS: u64 = 500;
/// The longest between two looks of a member's checks.
const CHECK: Ns = 400 * MS;
/// Until all members that are well follow what most checks say, or an operator: a check, words, a change of servers that
/// waits for one who has just been silent.
const BOUND: Ns = 5 * S;
/// For how long members that are well may differ about a server: a word is on its way.
const CHANGE: Ns = S;
/// Servers that a ring is asked for at each look.
const SAMPLES: u64 = 256;

/// What is wrong with servers, whoever knows it.
pub(crate) struct Health {
    rng: Rng,
    /// What becomes of a service whose servers are all down, in seeds with checks.
    pub(crate) checked: Option<AllDown>,
    servers: BTreeMap<Address, Condition>,
    /// Since when members that are well have differed.
    differing_since: Option<Ns>,
}

/// What is wrong with a server.
#[derive(Clone, Copy, Default)]
struct Condition {
    /// Members whose checks fail, as a mask, and since when it is so.
    failing: u64,
    since: Ns,
    /// What an operator ordered last, when, and whether everybody was well, so that it must have come to pass.
    drained: bool,
    ordered: Ns,
    is_certain: bool,
}

/// What befalls a server.
#[derive(Clone, Copy)]
enum Kind {
    Ill,
    OutOfReach,
    Well,
    Drain,
    Undrain,
}

const KINDS: [Kind; 8] =
    [Kind::Ill, Kind::Ill, Kind::OutOfReach, Kind::Well, Kind::Well, Kind::Drain, Kind::Drain, Kind::Undrain];

impl Health {
    pub(crate) fn new(seed: u64, is_mixed: bool) -> Self {
        let mut rng = Rng::new(seed.rotate_left(32) ^ 3);
        let all_down = rng.pick(&[AllDown::Keep, AllDown::Drop]);
        let has_checks = rng.chance(SEEDS) && !is_mixed;
        Self { rng, checked: all_down.filter(|_| has_checks), servers: BTreeMap::new(), differing_since: None }
    }

    fn of(&self, backend: &Backend) -> Condition {
        self.servers.get(&backend.address).copied().unwrap_or_default()
    }

    fn takes_new(&self, backend: &Backend) -> bool {
        let condition = self.of(backend);
        !backend.drain && !condition.drained && condition.failing == 0
    }
}

impl Host {
    /// The servers that new connections to a VIP go to.
    fn rings(&self, key: &ServiceKey) -> BTreeSet<Address> {
        let Some(datapath) = &self.datapath else { return BTreeSet::new() };
        (0..SAMPLES).filter_map(|sample| datapath.stateless(key, ring_slot(mix(sample)))).collect()
    }
}

impl World {
    /// Something befalls a server, now and then.
    pub(crate) fn befall_server(&mut self) {
        let last_at = self.plan.ends_at.saturating_sub(BOUND + 2 * S);
        let at = self.now + self.health.rng.between(100 * MS, 2 * S);
        if at < last_at {
            self.agenda.plan(at, Happening::Befall);
        }
        // Whatever was left without a server by several hands at once takes connections again.
        if self.calm && !self.newest().backends.iter().any(|backend| self.health.takes_new(backend)) {
            let all = self.newest().backends.clone();
            for backend in all {
                self.set_failing(&backend, 0);
                self.order(&backend, false);
            }
            return;
        }
        let (Some(backend), Some(kind)) =
            (self.health.rng.pick(&self.newest().backends.clone()), self.health.rng.pick(&KINDS))
        else {
            return;
        };
        let others = self.newest().backends.iter().filter(|other| other.address != backend.address);
        let is_spared = others.clone().any(|other| self.health.takes_new(other));
        match kind {
            Kind::Ill if is_spared || self.health.checked == Some(AllDown::Keep) => {
                self.stats.count("server ill");
                self.set_failing(&backend, u64::MAX);
            }
            Kind::OutOfReach if is_spared => {
                self.stats.count("server out of one member's reach");
                let members = self.newest().members.clone();
                let member = self.health.rng.pick(&members).unwrap_or(1);
                self.set_failing(&backend, bit(member));
            }
            Kind::Well => self.set_failing(&backend, 0),
            Kind::Drain if is_spared => self.order(&backend, true),
            Kind::Undrain => {
                let drained: Vec<Backend> =
                    self.newest().backends.iter().filter(|backend| self.health.of(backend).drained).copied().collect();
                let backend = self.health.rng.pick(&drained).unwrap_or(backend);
                self.order(&backend, false);
            }
            Kind::Ill | Kind::OutOfReach | Kind::Drain => {}
        }
    }

    fn set_failing(&mut self, backend: &Backend, failing: u64) {
        let now = self.now;
        let condition = self.health.servers.entry(backend.address).or_default();
        if condition.failing != failing {
            (condition.failing, condition.since) = (failing, now);
            self.trace(|| format!("server {}: checks fail at {failing:#x}", backend.address[15]));
        }
    }

    /// An operator drains a server at some member, or not any more.
    fn order(&mut self, backend: &Backend, drain: bool) {
        let (now, since) = (self.now, self.now.saturating_sub(SETTLED));
        let condition = self.health.of(backend);
        let running: Vec<u8> =
            self.hosts.values().filter(|host| host.enlisted && host.ready_since(since)).map(|host| host.id).collect();
        let Some(member) = self.health.rng.pick(&running) else { return };
        let was_certain = condition.is_certain || condition.ordered == 0;
        if condition.drained == drain && was_certain {
            return;
        }
        // Two orders at a time contradict each other; and where members do not hear each other, they may do so later.
        let is_certain = self.calm && self.is_of_one_mind_since(since) && condition.ordered < since;
        let ordered = Condition { drained: drain, ordered: now, is_certain, ..condition };
        self.health.servers.insert(backend.address, ordered);
        self.stats.count(if drain { "server drained by hand" } else { "server no longer drained by hand" });
        let name = name(backend.address);
        self.trace(|| format!("member {member}: an operator has {name} drained: {drain}"));
        self.input(member, Input::DrainBackend { backend: name, service: None, drain });
    }

    /// A member's checks look at all servers, and tell the core what is news.
    pub(crate) fn check(&mut self, member: u8, run: u64) {
        if !self.is_running(member, run) {
            return;
        }
        let at = self.now + self.health.rng.between(CHECK / 4, CHECK);
        self.agenda.plan(at, Happening::Check { member, run });
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member).filter(|host| !host.is_frozen(now)) else { return };
        let backends = &self.configs[host.version].backends;
        let Some(agent) = host.agent.as_mut().filter(|agent| agent.paused_until <= now) else { return };
        agent.answers.retain(|(_, address), _| backends.iter().any(|backend| backend.address == *address));
        let mut news = Vec::new();
        for backend in backends {
            let is_up = self.health.of(backend).failing & bit(member) == 0;
            for service in [false, true].map(|is_v6| service_key(is_v6, WEB, self.plan.protocol)) {
                if agent.answers.insert((service, backend.address), is_up) != Some(is_up) {
                    news.push(Input::Checked { service, backend: backend.address, is_up });
                }
            }
        }
        for input in news {
            self.input(member, input);
        }
    }

    /// An agent reports something; of servers it is counted.
    pub(crate) fn note_server(&mut self, event: &Event) {
        if let Event::Backend { is_down, .. } = event {
            self.stats.count(if *is_down { "server taken out" } else { "server taken back" });
        }
    }

    /// Members that are well know the same of all servers, and it is what most checks say.
    pub(crate) fn inspect_health(&mut self) {
        if self.health.checked.is_none() {
            return;
        }
        let now = self.now;
        if !self.is_of_one_mind_since(now.saturating_sub(SETTLED)) {
            self.health.differing_since = None;
            return;
        }
        let members = self.hosts.values().filter(|host| host.enlisted);
        let known = members.map(|host| (host.id, self.known(host))).collect::<Vec<_>>();
        let differing = known.iter().find(|(_, other)| *other != known[0].1);
        let Some((other, _)) = differing else {
            self.health.differing_since = None;
            if self.is_of_one_mind_since(now.saturating_sub(BOUND)) {
                self.judge_servers();
            }
            return;
        };
        let since = *self.health.differing_since.get_or_insert(now);
        if now - since >= CHANGE {
            let (one, other) = (known[0].0, *other);
            self.violate(Invariant::OneCondition, || {
                format!(
                    "members {one} and {other} have known different things of servers for {} ms",
                    (now - since) / MS
                )
            });
        }
    }

    /// What a member knows of each server of each VIP: whether it is drained by hand, and down.
    fn known(&self, host: &Host) -> BTreeMap<(ServiceKey, Address), (bool, bool)> {
        let backends = host.agent.as_ref().map(|agent| agent.core.backends()).unwrap_or_default();
        backends.into_iter().map(|backend| ((backend.vip, backend.address), (backend.drained, backend.down))).collect()
    }

    /// Whether all members have been well, ready, and of the newest configuration.
    fn is_of_one_mind_since(&self, since: Ns) -> bool {
        let newest = self.configs.len() - 1;
        let is_ready = |host: &Host| host.version == newest && host.ready_since(since);
        self.reconfigured <= since
            && self.is_well_since(since)
            && self.hosts.values().filter(|host| host.enlisted).all(is_ready)
    }

    /// All members have been well for long: what most checks say is so, and what an operator ordered.
    fn judge_servers(&mut self) {
        let long_ago = self.now.saturating_sub(BOUND);
        let all = self.hosts.values().filter(|host| host.enlisted).fold(0, |mask, host| mask | bit(host.id));
        let fails = |condition: &Condition| (condition.failing & all).count_ones() * 2 > all.count_ones();
        let succeeds = |condition: &Condition| (!condition.failing & all).count_ones() * 2 > all.count_ones();
        let is_settled = |condition: &Condition| condition.since <= long_ago && condition.ordered <= long_ago;
        let backends = self.newest().backends.clone();
        let mut wrong = None;
        for backend in &backends {
            let condition = self.health.of(backend);
            if !is_settled(&condition) {
                continue;
            }
            let takes_its_place = |other: &&Backend| {
                let condition = self.health.of(other);
                let takes_new = !other.drain && !condition.drained && (condition.is_certain || condition.ordered == 0);
                other.address != backend.address && is_settled(&condition) && succeeds(&condition) && takes_new
            };
            let is_spared = self.health.checked == Some(AllDown::Drop) || backends.iter().any(|b| takes_its_place(&b));
            let must_be_down = fails(&condition) && is_spared;
            let must_be_up = succeeds(&condition);
            for host in self.hosts.values().filter(|host| host.enlisted) {
                for ((vip, _), (drained, down)) in
                    self.known(host).iter().filter(|((_, address), _)| *address == backend.address)
                {
                    let is_checked = vip.address[15] == WEB;
                    let takes_new = host.rings(vip).contains(&backend.address);
                    let has_ring = !(backend.drain || *drained || *down);
                    if is_checked && (must_be_down && !down || must_be_up && *down)
                        || condition.is_certain && *drained != condition.drained
                        || takes_new != has_ring
                    {
                        wrong = Some((host.id, backend.address, condition.failing, *down, *drained, takes_new));
                    }
                }
            }
        }
        self.stats.count("conditions judged");
        if let Some((member, server, failing, down, drained, takes_new)) = wrong {
            self.violate(Invariant::MostChecksCount, || {
                format!(
                    "member {member} has server {}, whose checks fail at {failing:#x}, down {down}, drained by hand {drained}, \
                     and gives it new connections: {takes_new}",
                    server[15]
                )
            });
        }
    }
}

/// A server's name in configurations.
pub(crate) fn name(server: Address) -> String {
    format!("server-{}", server[15])
}
