//! Local slots of backends and ring indexes of services: allocation, and what the tables shall hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    address::Address,
    flow::{FlowKey, PENDING_TICKS, ms_of_ticks},
    maps::{BACKENDS_MAX, PREVIOUS_RINGS},
    ring::Ring,
    service::{SERVICE_AFFINITY, SERVICE_ECHO, Service, ServiceKey, VipFilter},
    target::{TARGET_DOWN, TARGET_DRAINING, TARGET_REMOVED, TARGET_SERVING},
};

use super::{
    Adopted, Key,
    plan::{BackendSlot, Tables},
    ring::{self, Share},
    view,
};

/// How long a slot rests after the last record that named it: `pending` and events on their way may still name it.
const REST_NS: u64 = (ms_of_ticks(PENDING_TICKS) + 1000) * 1_000_000;

/// A packet that read the end of the grace time may still look its slot up.
const MARGIN_NS: u64 = 1_000_000_000;

/// Which slot is whose. A slot is not given to another backend while anything may refer to it.
#[derive(Default)]
pub(crate) struct Slots {
    /// Ring indexes of services that are configured or that a slot still belongs to.
    rings: BTreeMap<ServiceKey, u32>,
    /// With the `SERVICE_*` bits of each, `SERVICE_ECHO` included, which goes to the mark of its VIP.
    configured: BTreeMap<ServiceKey, u8>,
    slots: BTreeMap<u16, Slot>,
    /// Those that are to be freed when nothing refers to them any more.
    removed: BTreeSet<u16>,
    index: BTreeMap<(ServiceKey, Address), u16>,
    /// Rings of before the last change, of those that have changed, during the grace time.
    previous: BTreeMap<ServiceKey, Arc<Ring>>,
    /// Slots that they name do not rest for less.
    grace_until: u64,
    /// Rings as last built, with what they were built from.
    built: BTreeMap<u32, (Vec<Share>, Arc<Ring>)>,
}

struct Slot {
    /// `None` for an adopted slot of a service that is no longer configured: the first flow tells.
    service: Option<ServiceKey>,
    address: Address,
    ring: u32,
    state: u8,
    weight: u16,
    /// Records that name it.
    records: u32,
    rests_until: u64,
}

impl Slots {
    /// Takes over what an earlier agent has put into the tables; what `configure` does not name is then removed.
    pub(crate) fn adopt(&mut self, adopted: &Adopted) {
        // A mark of a VIP has no protocol.
        self.rings =
            adopted.services.iter().filter(|(key, _)| key.protocol != 0).map(|(key, s)| (*key, s.ring)).collect();
        let by_ring: BTreeMap<u32, ServiceKey> = self.rings.iter().map(|(key, ring)| (*ring, *key)).collect();
        for (slot, target) in &adopted.backends {
            if *slot == 0 || target.state == 0 {
                continue;
            }
            let service = by_ring.get(&target.ring).copied();
            let (address, ring) = (target.address, target.ring);
            let state = TARGET_REMOVED;
            self.slots.insert(*slot, Slot { service, address, ring, state, weight: 0, records: 0, rests_until: 0 });
            if let Some(service) = service {
                self.index.entry((service, address)).or_insert(*slot);
            }
        }
    }

    /// Gives every configured backend a slot, and marks the others as removed. Returns how many found none.
    ///
    /// Backends that are only `upcoming` have slots, too, for the flows of members that are ahead, and get no new flows.
    pub(crate) fn configure(&mut self, now: u64, services: &[view::Service], upcoming: [&[view::Service]; 2]) -> usize {
        let mut removed: BTreeSet<u16> = self.slots.keys().copied().collect();
        let mut homeless = 0;
        let taken = removed.clone();
        let mut free_slots = (1..BACKENDS_MAX as u16).filter(|slot| !taken.contains(slot));
        // Slots of forgotten services keep their ring's number to themselves.
        let taken: BTreeSet<u32> =
            self.rings.values().copied().chain(self.slots.values().map(|slot| slot.ring)).collect();
        let mut free_rings = (0..).filter(|ring| !taken.contains(ring));
        self.configured =
            services.iter().flat_map(|service| service.vips.iter().map(|vip| (*vip, flags(service)))).collect();
        for service in services {
            for key in &service.vips {
                let ring = *self.rings.entry(*key).or_insert_with(|| free_rings.next().unwrap_or_default());
                for backend in &service.backends {
                    let Some(slot) = self.slot_of(key, &backend.address, ring, &mut free_slots) else {
                        homeless += 1;
                        continue;
                    };
                    removed.remove(&slot);
                    if let Some(slot) = self.slots.get_mut(&slot) {
                        slot.state = state(backend);
                        slot.weight = backend.weight;
                    }
                }
            }
        }
        for service in upcoming.into_iter().flatten() {
            for key in &service.vips {
                let ring = *self.rings.entry(*key).or_insert_with(|| free_rings.next().unwrap_or_default());
                for backend in &service.backends {
                    let Some(slot) = self.slot_of(key, &backend.address, ring, &mut free_slots) else { continue };
                    let is_left_over = removed.remove(&slot);
                    let is_new = |slot: &&mut Slot| is_left_over || slot.state == TARGET_REMOVED;
                    if let Some(slot) = self.slots.get_mut(&slot).filter(is_new) {
                        (slot.state, slot.weight) = (TARGET_SERVING, 0);
                    }
                }
            }
        }
        let rests_until = self.grace_until.max(now + REST_NS);
        for slot in &removed {
            if let Some(slot) = self.slots.get_mut(slot) {
                slot.state = TARGET_REMOVED;
                slot.rests_until = slot.rests_until.max(rests_until);
            }
        }
        self.removed = removed;
        self.forget_services();
        homeless
    }

    /// The slot of a flow's backend.
    ///
    /// Of the service of its port, or of every port: of the one that the datapath places flows in first.
    pub(crate) fn find(&self, key: &Key, address: &Address) -> Option<u16> {
        let exact = key.service();
        let any = exact.any_port();
        let at = |service: ServiceKey| self.index.get(&(service, *address)).copied();
        if !self.configured.contains_key(&exact) && self.configured.contains_key(&any) {
            at(any).or_else(|| at(exact))
        } else {
            at(exact).or_else(|| at(any))
        }
    }

    /// The address of a flow's backend; `None` for a slot that nobody has.
    pub(crate) fn address(&mut self, slot: u16, key: &Key) -> Option<Address> {
        let entry = self.slots.get_mut(&slot)?;
        if entry.service.is_none() {
            entry.service = Some(key.service());
            self.rings.entry(key.service()).or_insert(entry.ring);
            self.index.entry((key.service(), entry.address)).or_insert(slot);
        }
        Some(entry.address)
    }

    /// Records that name a backend.
    pub(crate) fn flows_of(&self, service: &ServiceKey, address: &Address) -> usize {
        let slot = self.index.get(&(*service, *address)).and_then(|slot| self.slots.get(slot));
        slot.map_or(0, |slot| slot.records as usize)
    }

    /// A record names the slot.
    pub(crate) fn retain(&mut self, slot: u16) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.records += 1;
        }
    }

    /// A record no longer names the slot.
    pub(crate) fn release(&mut self, now: u64, slot: u16) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.records = slot.records.saturating_sub(1);
            slot.rests_until = slot.rests_until.max(now + REST_NS);
        }
    }

    /// Frees removed slots that nothing refers to any more; says whether there were any.
    pub(crate) fn free(&mut self, now: u64) -> bool {
        let is_free = |slot: &Slot| slot.records == 0 && now >= slot.rests_until;
        let free: Vec<u16> =
            self.removed.iter().copied().filter(|slot| self.slots.get(slot).is_none_or(is_free)).collect();
        if free.is_empty() {
            return false;
        }
        for slot in &free {
            self.removed.remove(slot);
            self.slots.remove(slot);
        }
        let slots = &self.slots;
        self.index.retain(|_, slot| slots.contains_key(slot));
        self.forget_services();
        true
    }

    /// The rings are about to change: flows that nobody has recorded follow those of now until `until`.
    pub(crate) fn begin_grace(&mut self, until: u64) {
        self.grace_until = until + MARGIN_NS;
        let ring = |(key, ring): (&ServiceKey, &u32)| Some((*key, Arc::clone(&self.built.get(ring)?.1)));
        self.previous = self.rings.iter().filter_map(ring).collect();
    }

    /// The grace time is over.
    pub(crate) fn end_grace(&mut self) {
        self.previous.clear();
    }

    /// Writes services, rings, backends and the VIP filter; builds the rings that changed.
    pub(crate) fn fill(&mut self, tables: &mut Tables) {
        let mut shares: BTreeMap<u32, Vec<Share>> = BTreeMap::new();
        for (&slot, backend) in self.slots.iter().filter(|(_, slot)| slot.state == TARGET_SERVING && slot.weight > 0) {
            let share = Share { address: backend.address, slot, weight: backend.weight };
            shares.entry(backend.ring).or_default().push(share);
        }
        let mut built = BTreeMap::new();
        for (key, &flags) in &self.configured {
            let Some(&ring) = self.rings.get(key) else { continue };
            let shares = shares.remove(&ring).unwrap_or_default();
            let known = self.built.remove(&ring).filter(|(from, _)| *from == shares);
            let (shares, table) = known.unwrap_or_else(|| {
                let table = Arc::new(ring::build(&shares));
                (shares, table)
            });
            tables.rings.insert(ring, Arc::clone(&table));
            if let Some(previous) = self.previous.get(key).filter(|previous| !Arc::ptr_eq(previous, &table)) {
                tables.rings.insert(ring + PREVIOUS_RINGS, Arc::clone(previous));
            }
            built.insert(ring, (shares, table));
            let service = Service { ring, flags: flags & !SERVICE_ECHO, padding: [0; 3] };
            tables.services.insert(*key, service);
            let mark = tables.services.entry(ServiceKey::vip(key.address)).or_insert(Service {
                ring: 0,
                flags: 0,
                padding: [0; 3],
            });
            mark.flags |= flags & SERVICE_ECHO;
            tables.vip_filter.insert(&key.address);
        }
        self.built = built;
        tables.backends = self
            .slots
            .iter()
            .map(|(&slot, b)| (slot, BackendSlot { address: b.address, ring: b.ring, state: b.state }))
            .collect();
        debug_assert!(tables.vip_filter != VipFilter::EMPTY || self.configured.is_empty());
    }

    fn slot_of(
        &mut self,
        key: &ServiceKey,
        address: &Address,
        ring: u32,
        free: &mut impl Iterator<Item = u16>,
    ) -> Option<u16> {
        if let Some(&slot) = self.index.get(&(*key, *address)) {
            return Some(slot);
        }
        let slot = free.next()?;
        let (service, state) = (Some(*key), TARGET_REMOVED);
        self.slots
            .insert(slot, Slot { service, address: *address, ring, state, weight: 0, records: 0, rests_until: 0 });
        self.index.insert((*key, *address), slot);
        Some(slot)
    }

    /// Forgets the rings of services that are neither configured nor named by a slot.
    fn forget_services(&mut self) {
        let named: BTreeSet<ServiceKey> = self.slots.values().filter_map(|slot| slot.service).collect();
        let configured = &self.configured;
        self.rings.retain(|key, _| configured.contains_key(key) || named.contains(key));
    }
}

/// A backend that is down takes no new flows, whether it drains or not; its UDP flows are placed anew.
fn state(backend: &view::Backend) -> u8 {
    match (backend.down, backend.drain) {
        (true, _) => TARGET_DOWN,
        (false, true) => TARGET_DRAINING,
        (false, false) => TARGET_SERVING,
    }
}

fn flags(service: &view::Service) -> u8 {
    let affinity = if service.affinity { SERVICE_AFFINITY } else { 0 };
    affinity | if service.echo { SERVICE_ECHO } else { 0 }
}
