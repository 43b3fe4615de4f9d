//! What members find of the backends, and what the cluster makes of it: `docs/design/0014-health.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{address::Address, hash::siphash13, maps::BACKENDS_MAX, service::ServiceKey, target::TARGET_DOWN};

use super::{
    Adopted, Core, Session,
    event::Event,
    link::{Link, Stage, nanos},
    view::{AllDown, Service},
    wire::{CONDITION_MAX, Condition, Frame, Opinion, Register},
};

/// The version of the protocol that conditions came with.
const SINCE: u8 = 3;
/// Conditions that are held, and opinions of one peer, those of backends that are not configured here included.
const HELD_MAX: usize = 2 * BACKENDS_MAX as usize;

/// After a member has decided, the one whose place it is looks again: so two who both take it for theirs, and see others,
/// contradict each other once a second at most.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// A backend of a VIP, on the wire.
pub type BackendId = u64;

/// The id of the backend at `address` of `service`.
pub fn backend_id(service: &ServiceKey, address: &Address) -> BackendId {
    let halves = |address: &Address| {
        let value = u128::from_be_bytes(*address);
        [(value >> 64) as u64, value as u64]
    };
    let ([vip_high, vip_low], [high, low]) = (halves(&service.address), halves(address));
    let port = u64::from(u16::from_be_bytes(service.port)) << 8 | u64::from(service.protocol);
    // No secret: nobody gains by ids that collide who can write a configuration.
    siphash13(&[0, 0], &[vip_high, vip_low, port, high, low])
}

/// What this member knows of backends.
#[derive(Default)]
pub(crate) struct Conditions {
    /// What its own checks say: whether they are up.
    opinions: BTreeMap<BackendId, bool>,
    held: BTreeMap<(BackendId, Register), Value>,
    /// The configured backends.
    places: BTreeMap<BackendId, Place>,
    /// Those to be decided anew, if it is this member's place.
    due: BTreeSet<BackendId>,
    /// The members that were asked last, as a mask; all is due when others are.
    voters: u64,
    /// When all is due again: somebody has decided, and may have heard less than the others.
    second_look_at: Option<u64>,
}

#[derive(Clone, Copy)]
struct Value {
    number: u32,
    is_set: bool,
}

/// Where a backend is in the configuration.
#[derive(Clone, Copy)]
struct Place {
    service: usize,
    vip: usize,
    backend: usize,
}

/// A backend of a VIP, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// The service's name.
    pub service: String,
    /// The VIP.
    pub vip: ServiceKey,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Address,
    /// Whether the configuration drains it.
    pub drained_by_file: bool,
    /// Whether an operator has drained it.
    pub drained: bool,
    /// Whether most members' checks fail.
    pub down: bool,
    /// What this member's own checks say.
    pub answers: Option<bool>,
    /// Flows that have a record naming it.
    pub flows: usize,
}

/// What a session has heard, and is to be told.
#[derive(Default)]
pub(crate) struct Hearsay {
    opinions: BTreeMap<BackendId, bool>,
    owed_opinions: BTreeSet<BackendId>,
    owed_conditions: BTreeSet<(BackendId, Register)>,
}

impl Hearsay {
    /// Whether there is something to tell.
    pub(crate) fn is_due(&self) -> bool {
        !self.owed_opinions.is_empty() || !self.owed_conditions.is_empty()
    }
}

impl Conditions {
    /// What an earlier agent has left in the datapath's tables.
    pub(crate) fn adopt(&mut self, adopted: &Adopted) {
        let by_ring: BTreeMap<u32, ServiceKey> =
            adopted.services.iter().filter(|(key, _)| key.protocol != 0).map(|(key, s)| (s.ring, *key)).collect();
        // Not those that drain: whether it was a file or an operator that said so cannot be seen.
        for (_, target) in adopted.backends.iter().filter(|(_, target)| target.state == TARGET_DOWN) {
            if let Some(service) = by_ring.get(&target.ring) {
                let at = (backend_id(service, &target.address), Register::Down);
                self.held.insert(at, Value { number: 1, is_set: true });
            }
        }
    }

    fn is_set(&self, id: BackendId, register: Register) -> bool {
        self.held.get(&(id, register)).is_some_and(|value| value.is_set)
    }

    fn number(&self, id: BackendId, register: Register) -> u32 {
        self.held.get(&(id, register)).map_or(0, |value| value.number)
    }

    /// Takes over what is newer; says whether it was.
    fn merge(&mut self, condition: &Condition) -> bool {
        let at = (condition.backend, condition.register);
        let known = self.held.get(&at).map_or((0, false), |value| (value.number, value.is_set));
        if (condition.number, condition.is_set) <= known {
            return false;
        }
        if self.held.len() >= HELD_MAX && !self.held.contains_key(&at) {
            let places = &self.places;
            self.held.retain(|(id, _), _| places.contains_key(id));
            if self.held.len() >= HELD_MAX {
                return false;
            }
        }
        self.held.insert(at, Value { number: condition.number, is_set: condition.is_set });
        true
    }

    /// The configured services in their conditions; one that has any is split into its VIPs.
    fn apply(&self, services: &[Service]) -> Vec<Service> {
        let mut applied = Vec::with_capacity(services.len());
        for service in services {
            let of = |vip: &ServiceKey| -> Vec<(bool, bool)> {
                let condition = |address: &Address| {
                    let id = backend_id(vip, address);
                    let is_down = service.checked.is_some() && self.is_set(id, Register::Down);
                    (is_down, self.is_set(id, Register::Drained))
                };
                service.backends.iter().map(|backend| condition(&backend.address)).collect()
            };
            let conditions: Vec<_> = service.vips.iter().map(of).collect();
            if conditions.iter().flatten().all(|condition| *condition == (false, false)) {
                applied.push(service.clone());
                continue;
            }
            for (vip, conditions) in service.vips.iter().zip(conditions) {
                let mut one = Service { vips: vec![*vip], ..service.clone() };
                for (backend, (down, drained)) in one.backends.iter_mut().zip(conditions) {
                    (backend.down, backend.drain) = (down, backend.drain || drained);
                }
                applied.push(one);
            }
        }
        applied
    }
}

impl Core {
    /// There is another configuration: what was said of its backends is judged anew.
    pub(crate) fn place_backends(&mut self) {
        let conditions = &mut self.conditions;
        conditions.places = places(&self.view.services);
        let places = &conditions.places;
        conditions.opinions.retain(|id, _| places.contains_key(id));
        conditions.due = places.keys().copied().collect();
    }

    /// Makes the set in hand of the configuration and what is known beside it.
    pub(crate) fn apply_conditions(&mut self) {
        self.services = self.conditions.apply(&self.view.services);
    }

    /// This member's checks have come to another result.
    pub(crate) fn checked(&mut self, now: u64, service: &ServiceKey, address: &Address, is_up: bool) {
        let id = backend_id(service, address);
        let conditions = &mut self.conditions;
        if !conditions.places.contains_key(&id) || conditions.opinions.insert(id, is_up) == Some(is_up) {
            return;
        }
        conditions.due.insert(id);
        for link in self.links.values_mut().filter(|link| link.speaks_of_conditions()) {
            link.hearsay.owed_opinions.insert(id);
        }
        self.review_epochs(now);
    }

    /// An operator wants a backend drained, at the VIPs of `service` or at all, or not any more.
    pub(crate) fn drain_backend(&mut self, now: u64, name: &str, service: Option<&str>, drain: bool) {
        let (conditions, register) = (&self.conditions, Register::Drained);
        let ids = self.named(name, service).filter(|id| conditions.is_set(*id, register) != drain);
        let condition = |id| Condition {
            backend: id,
            register,
            number: (conditions.number(id, register) + 1).min(CONDITION_MAX),
            is_set: drain,
        };
        let changed: Vec<Condition> = ids.map(condition).collect();
        self.take_conditions(now, &changed);
    }

    /// Backends of this name, each counted once for each VIP.
    pub fn backends_named(&self, name: &str, service: Option<&str>) -> usize {
        self.named(name, service).count()
    }

    /// All configured backends, by VIP.
    pub fn backends(&self) -> Vec<BackendStatus> {
        let mut all = Vec::new();
        for service in &self.view.services {
            for vip in &service.vips {
                all.extend(service.backends.iter().map(|backend| {
                    let id = backend_id(vip, &backend.address);
                    BackendStatus {
                        service: service.name.clone(),
                        vip: *vip,
                        name: backend.name.clone(),
                        address: backend.address,
                        drained_by_file: backend.drain,
                        drained: self.conditions.is_set(id, Register::Drained),
                        down: service.checked.is_some() && self.conditions.is_set(id, Register::Down),
                        answers: self.conditions.opinions.get(&id).copied(),
                        flows: self.slots.flows_of(vip, &backend.address),
                    }
                }));
            }
        }
        all
    }

    fn named(&self, name: &str, service: Option<&str>) -> impl Iterator<Item = BackendId> {
        let wanted = move |candidate: &&Service| service.is_none_or(|service| candidate.name == service);
        self.view.services.iter().filter(wanted).flat_map(move |service| {
            let named = service.backends.iter().filter(move |backend| backend.name == name);
            named.flat_map(|backend| service.vips.iter().map(|vip| backend_id(vip, &backend.address)))
        })
    }

    /// A peer says what its checks say.
    pub(crate) fn heard_opinions(&mut self, now: u64, session: Session, opinions: &[Opinion]) {
        let Some(link) = self.links.get_mut(&session) else { return };
        for opinion in opinions {
            let is_here = self.conditions.places.contains_key(&opinion.backend);
            // Of backends that are configured there already, and here soon; it is said once.
            if is_here || link.hearsay.opinions.len() < HELD_MAX {
                link.hearsay.opinions.insert(opinion.backend, opinion.is_up);
            }
            if is_here {
                self.conditions.due.insert(opinion.backend);
            }
        }
        self.review_epochs(now);
    }

    /// What is newer is taken over, told to the others, and put into force.
    pub(crate) fn take_conditions(&mut self, now: u64, conditions: &[Condition]) {
        let mut has_changed = false;
        for condition in conditions {
            if !self.conditions.merge(condition) {
                continue;
            }
            has_changed = true;
            match condition.register {
                Register::Down => _ = self.conditions.second_look_at.get_or_insert(now + nanos(SECOND_LOOK)),
                // One that was kept because no other was left may go once another takes new flows again.
                Register::Drained => self.reconsider_beside(condition.backend),
            }
            for link in self.links.values_mut().filter(|link| link.speaks_of_conditions()) {
                link.hearsay.owed_conditions.insert((condition.backend, condition.register));
            }
            if let (Some(place), Register::Down) = (self.conditions.places.get(&condition.backend), condition.register)
            {
                let service = &self.view.services[place.service];
                let event = Event::Backend {
                    service: service.name.clone(),
                    backend: service.backends[place.backend].name.clone(),
                    is_down: condition.is_set,
                };
                self.report(event);
            }
        }
        if has_changed {
            self.hold();
            self.apply_services(now);
            self.review_epochs(now);
        }
    }

    /// A session has opened: the peer is to be told everything.
    pub(crate) fn introduce_conditions(&mut self, session: Session) {
        let Some(link) = self.links.get_mut(&session).filter(|link| link.speaks_of_conditions()) else { return };
        link.hearsay.owed_opinions = self.conditions.opinions.keys().copied().collect();
        link.hearsay.owed_conditions = self.conditions.held.keys().copied().collect();
        // What was judged while it was asked and could not answer.
        self.conditions.voters = 0;
    }

    /// A frame of what a peer is to be told.
    pub(crate) fn tell_conditions(&mut self, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        let owed = &mut link.hearsay;
        let frame = if owed.owed_conditions.is_empty() {
            let ids: Vec<BackendId> = owed.owed_opinions.iter().take(Opinion::FRAME_MAX).copied().collect();
            ids.iter().for_each(|id| _ = owed.owed_opinions.remove(id));
            let opinion = |&id: &BackendId| Some(Opinion { backend: id, is_up: *self.conditions.opinions.get(&id)? });
            Frame::Opinions(ids.iter().filter_map(opinion).collect())
        } else {
            let ids: Vec<_> = owed.owed_conditions.iter().take(Condition::FRAME_MAX).copied().collect();
            ids.iter().for_each(|at| _ = owed.owed_conditions.remove(at));
            let condition = |&(backend, register): &(BackendId, Register)| {
                let value = self.conditions.held.get(&(backend, register))?;
                Some(Condition { backend, register, number: value.number, is_set: value.is_set })
            };
            Frame::Conditions(ids.iter().filter_map(condition).collect())
        };
        Some(frame.encode(link.version))
    }

    /// Decides what is due, if that is this member's place: the ready members `peers` and this one are asked.
    pub(crate) fn decide(&mut self, now: u64, peers: &[u8], is_its_place: bool) {
        let asked = peers.iter().fold(0, |mask, id| mask | lb_common::rank::bit(*id));
        let conditions = &mut self.conditions;
        let is_second_look = conditions.second_look_at.take_if(|at| *at <= now).is_some();
        if conditions.voters != asked || is_second_look {
            conditions.voters = asked;
            conditions.due = conditions.places.keys().copied().collect();
        }
        if conditions.due.is_empty() || !is_its_place || !self.ready {
            return;
        }
        let sessions: Vec<Option<&Link>> = peers.iter().map(|id| self.links.get(&self.peers.get(id)?.open?)).collect();
        if sessions.iter().flatten().any(|link| !link.speaks_of_conditions()) {
            return;
        }
        let due = std::mem::take(&mut self.conditions.due);
        let mut changes: BTreeMap<BackendId, bool> = BTreeMap::new();
        for id in due {
            let Some(place) = self.conditions.places.get(&id).copied() else { continue };
            let Some(all_down) = self.view.services[place.service].checked else { continue };
            let own = self.conditions.opinions.get(&id);
            let heard = sessions.iter().map(|link| link.as_ref().and_then(|link| link.hearsay.opinions.get(&id)));
            let opinions: Vec<Option<bool>> = heard.chain([own]).map(Option::<&bool>::copied).collect();
            let hold = |is_up| opinions.iter().filter(|opinion| **opinion == Some(is_up)).count() * 2 > opinions.len();
            let is_down = self.conditions.is_set(id, Register::Down);
            if is_down && hold(true) {
                changes.insert(id, false);
            } else if !is_down && hold(false) && (all_down == AllDown::Drop || self.is_spared(&place, &changes)) {
                changes.insert(id, true);
            }
        }
        let condition = |(&backend, &is_set): (&BackendId, &bool)| Condition {
            backend,
            register: Register::Down,
            number: (self.conditions.number(backend, Register::Down) + 1).min(CONDITION_MAX),
            is_set,
        };
        let changes: Vec<Condition> = changes.iter().map(condition).collect();
        // Those that were kept because no other was left may go once another is back.
        changes.iter().for_each(|change| self.reconsider_beside(change.backend));
        self.take_conditions(now, &changes);
    }

    /// All backends of the VIP that has this one are to be decided anew.
    fn reconsider_beside(&mut self, backend: BackendId) {
        let Some(place) = self.conditions.places.get(&backend) else { return };
        let service = &self.view.services[place.service];
        let vip = &service.vips[place.vip];
        let all = service.backends.iter().map(|backend| backend_id(vip, &backend.address));
        self.conditions.due.extend(all);
    }

    /// Whether the service has another backend that takes new flows.
    fn is_spared(&self, place: &Place, changes: &BTreeMap<BackendId, bool>) -> bool {
        let service = &self.view.services[place.service];
        let vip = &service.vips[place.vip];
        service.backends.iter().enumerate().filter(|(number, _)| *number != place.backend).any(|(_, other)| {
            let id = backend_id(vip, &other.address);
            let is_down = changes.get(&id).copied().unwrap_or_else(|| self.conditions.is_set(id, Register::Down));
            other.weight > 0 && !other.drain && !is_down && !self.conditions.is_set(id, Register::Drained)
        })
    }
}

impl Link {
    /// Whether the peer understands opinions and conditions.
    pub(crate) fn speaks_of_conditions(&self) -> bool {
        self.stage == Stage::Open && self.version >= SINCE
    }
}

fn places(services: &[Service]) -> BTreeMap<BackendId, Place> {
    let mut places = BTreeMap::new();
    for (number, service) in services.iter().enumerate() {
        for (vip, key) in service.vips.iter().enumerate() {
            let ids = service.backends.iter().map(|backend| backend_id(key, &backend.address));
            places.extend(ids.enumerate().map(|(backend, id)| (id, Place { service: number, vip, backend })));
        }
    }
    places
}
