//! Where a packet goes: the decision, and what the delivering member remembers of it.
//!
//! Pure over `Tables` and `Flows`; never touches the packet. The laws cited are those of
//! ARCHITECTURE.md.

mod fragment;
mod owner;
mod unknown;

use self::{
    fragment::Meeting,
    owner::{acting_owner, forwarding, hand_off_target, living_owner},
    unknown::{place_anew, steer_unknown},
};
use crate::{
    address::{Address, Words},
    flow::{EVENT_ASKED, FlowEntry, FlowKey, Fragment, Pending, STATE_ESTABLISHED, UDP, tick},
    lifecycle::{Kind, Lifecycle, next_step},
    liveness::{Liveness, heard_lately},
    node::{NODE_DIRECT, NODE_DROP_OTHER, Node},
    packet::{FIN, Packet, Part, RST, SYN},
    rank::Owners,
    reason::Reason,
    service::{Service, ServiceKey},
    target::Target,
};

/// The tables that a decision reads.
pub trait Tables {
    /// The monotonic clock, in nanoseconds; a few milliseconds behind at most.
    fn now_ns(&self) -> u64;
    /// This member.
    fn node(&self) -> &Node;
    /// What the agent renews all the time.
    fn liveness(&self) -> &Liveness;
    /// When the last probe of member `id` arrived that did not call its maps empty; 0 for never.
    fn probe_heard_ns(&self, id: u8) -> u64;
    /// Members whose last probe is at most `Node::silence_ns` old; read only while the lease has lapsed.
    #[inline(always)]
    fn heard_lately(&self) -> u64 {
        heard_lately(self.node(), self.now_ns(), |id| self.probe_heard_ns(id))
    }
    /// False: surely neither a VIP nor an address of this member.
    fn may_be_ours(&self, address: Words) -> bool;
    /// The id of the member whose hand-offs come from this address.
    fn member_at(&self, address: &Address) -> Option<u8>;
    /// The service, or the mark of a VIP.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The backend slot in slot `slot` of ring `ring`; 0 for none.
    fn ring(&self, ring: u32, slot: usize) -> u16;
    /// The backend in local slot `slot`.
    fn backend(&self, slot: u16) -> Option<&Target>;
    /// Member `id`.
    fn member(&self, id: u8) -> Option<&Target>;
    /// The two best-ranked members among `candidates`.
    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners;
    /// Takes one of a `BUDGET_*` class from this CPU's budget.
    fn take_budget(&self, class: usize) -> bool;
}

/// The tables of one address family's flows.
pub trait Flows<K>: Tables {
    /// A found entry.
    type Flow: Copy;
    /// Finds the entry of a flow.
    fn flow(&self, key: &K) -> Option<Self::Flow>;
    /// Reads a found entry.
    fn entry(&self, flow: Self::Flow) -> FlowEntry;
    /// Writes `last_seen` alone, under the same condition as `touch`.
    #[inline(always)]
    fn seen(&self, flow: Self::Flow, tag: u32, now: u32) {
        let FlowEntry { revision, state, packets, .. } = self.entry(flow);
        self.touch(flow, tag, Lifecycle { last_seen: now, revision, state, packets });
    }
    /// Writes `last_seen` and the lifecycle fields of a found entry, unless it has come to belong to another tuple than `tag`'s.
    fn touch(&self, flow: Self::Flow, tag: u32, step: Lifecycle);
    /// Adds an entry where there is none.
    fn insert(&self, key: &K, entry: &FlowEntry) -> Inserted;
    /// Replaces an entry as a whole.
    fn replace(&self, key: &K, entry: &FlowEntry);
    /// What is remembered of a tuple without an entry.
    fn pending(&self, key: &K) -> Option<Pending>;
    /// Remembers it.
    fn set_pending(&self, key: &K, pending: &Pending);
    /// What the first fragment of a datagram told; the key is `FlowKey::datagram`'s.
    fn fragment(&self, datagram: &K) -> Option<Fragment>;
    /// Remembers it.
    fn set_fragment(&self, datagram: &K, fragment: &Fragment);
    /// Tells the agent; may be lost, the sweep finds the same.
    fn emit(&self, key: &K, entry: &FlowEntry);
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The entry is in the table.
    Yes,
    /// Another CPU or the agent was faster; its entry stays.
    Exists,
    /// The table is full; nothing is evicted for a newcomer (law 4).
    Full,
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'t> {
    /// Where it goes.
    pub way: Way<'t>,
    /// Why.
    pub reason: Reason,
    /// Its service, as `Service::ring`; `NO_SERVICE` where none is known.
    pub service: u32,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<'t> {
    /// To the backend in this slot.
    Deliver(&'t Target, u16),
    /// To this member, of this id.
    HandOff(&'t Target, u8),
    /// It ends here.
    End,
}

/// Stands for "no service" in a verdict.
pub const NO_SERVICE: u32 = u32::MAX;

impl<'t> Verdict<'t> {
    #[inline(always)]
    const fn end(reason: Reason, service: u32) -> Self {
        Self { way: Way::End, reason, service }
    }

    /// The verdict as one word: service, index of the target, reason, way.
    #[inline(always)]
    pub fn pack(&self) -> u64 {
        let (way, index) = match self.way {
            Way::End => (0, 0),
            Way::Deliver(_, slot) => (1, slot),
            Way::HandOff(_, id) => (2, u16::from(id)),
        };
        u64::from(self.service) << 32 | u64::from(index) << 16 | (self.reason as u64) << 8 | way
    }

    /// The verdict from its word, with the target looked up again.
    #[inline(always)]
    pub fn unpack<T: Tables>(packed: u64, tables: &'t T) -> Self {
        let (service, index) = ((packed >> 32) as u32, (packed >> 16) as u16);
        let reason = Reason::from_index((packed >> 8) as u8);
        let way = match packed as u8 {
            1 => tables.backend(index).map(|backend| Way::Deliver(backend, index)),
            2 => tables.member(index as u8).map(|member| Way::HandOff(member, index as u8)),
            _ => Some(Way::End),
        };
        match way {
            Some(way) => Self { way, reason, service },
            None => Self::end(Reason::DropNoBackend, service),
        }
    }
}

/// Decides where `packet` goes, and remembers what law 3 says is worth it. A later fragment is given its ports.
#[inline(always)]
pub fn steer<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &mut Packet<K>) -> Verdict<'t> {
    match steer_quickly(tables, packet) {
        Some(verdict) => verdict,
        None => steer_rest(tables, packet),
    }
}

/// The packets of established flows that only go on, nearly all there are; none for others.
///
/// A known flow needs no look-up of its service: the backend in its entry names it.
#[inline(always)]
pub fn steer_quickly<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>) -> Option<Verdict<'t>> {
    if !matches!(packet.part, Part::Whole) || packet.flags & (SYN | FIN | RST) != 0 || packet.is_marked() {
        return None;
    }
    // A copy for the look-up to point to, so that the packet itself stays in registers.
    let key = packet.key;
    let flow = tables.flow(&key)?;
    let entry = tables.entry(flow);
    // The element may have been recycled since it was found: then its backend is another flow's.
    if entry.tag != packet.key.tag() || entry.state != STATE_ESTABLISHED {
        return None;
    }
    let node = tables.node();
    let backend = tables.backend(entry.backend)?;
    let service = backend.ring;
    let is_others = !packet.via_peer && entry.primary != node.id;
    if is_others && node.flags & NODE_DIRECT == 0 {
        let owner = living_owner(Owners { primary: entry.primary, backup: entry.backup }, forwarding(tables))?;
        if let Some(peer) = hand_off_target(tables, owner) {
            return Some(Verdict { way: Way::HandOff(peer, owner), reason: Reason::HandOffKnown, service });
        }
    }
    if !backend.is_in_service() {
        return None;
    }
    let now = tick(tables.now_ns());
    // `next_step` would change nothing but the time.
    if now != entry.last_seen {
        tables.seen(flow, entry.tag, now);
    }
    Some(Verdict { way: Way::Deliver(backend, entry.backend), reason: Reason::DeliverKnown, service })
}

/// Everything that `steer_quickly` leaves: packets that are not whole, whose flow is not known, that are news of it, or
/// whose owners or backend are gone.
#[inline(always)]
pub fn steer_rest<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &mut Packet<K>) -> Verdict<'t> {
    let mut stays = packet.via_peer;
    if matches!(packet.part, Part::FirstFragment | Part::LaterFragment) {
        // The ports that decide are in the first one alone; of the others only the VIP can be told here.
        let has_ports = !packet.via_peer && matches!(packet.part, Part::FirstFragment);
        let service = if has_ports {
            service_of(tables, &packet.key)
        } else {
            tables.service(&ServiceKey::vip(packet.key.service().address))
        };
        if service.is_none() {
            return Verdict::end(no_service(tables, packet), NO_SERVICE);
        }
        match fragment::meet(tables, packet) {
            Meeting::Here(key) => packet.key = key,
            Meeting::Elsewhere(verdict) => return verdict,
        }
        stays = true;
    }
    if let Some(flow) = tables.flow(&packet.key) {
        let entry = tables.entry(flow);
        if entry.tag == packet.key.tag() {
            return steer_known(tables, packet, stays, flow, &entry);
        }
    }
    match service_of(tables, &packet.key) {
        Some(service) => steer_unknown(tables, packet, stays, service),
        None => Verdict::end(no_service(tables, packet), NO_SERVICE),
    }
}

/// The service of a tuple: that of its port, else that of every port.
#[inline(always)]
fn service_of<K: FlowKey, T: Tables>(tables: &T, key: &K) -> Option<Service> {
    let key = key.service();
    match tables.service(&key) {
        Some(service) => Some(service),
        None => tables.service(&key.any_port()),
    }
}

/// The filter that let the packet in has false positives: only the mark says that the address is a VIP.
#[inline(always)]
fn no_service<K: FlowKey, T: Tables>(tables: &T, packet: &Packet<K>) -> Reason {
    if packet.via_peer {
        Reason::DropTunnelNoService
    } else if tables.service(&ServiceKey::vip(packet.key.service().address)).is_none() {
        Reason::NotOurs
    } else if tables.node().flags & NODE_DROP_OTHER != 0 {
        Reason::DropNoService
    } else {
        Reason::NoService
    }
}

/// A packet whose flow has an entry.
#[inline(always)]
fn steer_known<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    stays: bool,
    flow: T::Flow,
    entry: &FlowEntry,
) -> Verdict<'t> {
    let node = tables.node();
    let Some(backend) = tables.backend(entry.backend) else { return Verdict::end(Reason::DropNoBackend, NO_SERVICE) };
    let is_direct = node.flags & NODE_DIRECT != 0 && backend.is_in_service();
    if !stays && entry.primary != node.id && !is_direct {
        let owners = Owners { primary: entry.primary, backup: entry.backup };
        let owner = acting_owner(tables, owners, forwarding(tables), || packet.key.hash(&node.hash_key));
        if let Some(peer) = hand_off_target(tables, owner) {
            return Verdict { way: Way::HandOff(peer, owner), reason: Reason::HandOffKnown, service: backend.ring };
        }
    }
    if !backend.is_in_service() && begins_anew(packet) {
        return place_anew(tables, packet, backend, entry);
    }
    deliver_known(tables, packet, flow, entry, backend)
}

/// Whether a packet may be the first of a new flow with its tuple.
#[inline(always)]
fn begins_anew<K: FlowKey>(packet: &Packet<K>) -> bool {
    !matches!(packet.part, Part::Quote) && (Kind::of(packet) == Kind::Syn || packet.key.protocol() == UDP)
}

#[inline(always)]
fn deliver_known<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    flow: T::Flow,
    entry: &FlowEntry,
    backend: &'t Target,
) -> Verdict<'t> {
    if matches!(packet.part, Part::Quote) {
        return deliver(Some(backend), entry.backend, Reason::DeliverQuote, backend.ring);
    }
    let now = tick(tables.now_ns());
    let (step, is_news) = next_step(entry, Kind::of(packet), now);
    let is_marked = packet.is_marked();
    if step.last_seen != entry.last_seen || step.packets != entry.packets || is_news {
        tables.touch(flow, entry.tag, step);
        if is_news || is_marked {
            let event = if is_marked { EVENT_ASKED } else { 0 };
            let Lifecycle { last_seen, revision, state, packets } = step;
            tables.emit(&packet.key, &FlowEntry { last_seen, revision, state, packets, event, ..*entry });
        }
    }
    let reason = if is_marked { Reason::DeliverSecondChance } else { Reason::DeliverKnown };
    deliver(Some(backend), entry.backend, reason, backend.ring)
}

#[inline(always)]
fn deliver(backend: Option<&Target>, slot: u16, reason: Reason, service: u32) -> Verdict<'_> {
    match backend {
        Some(backend) if backend.state != 0 => Verdict { way: Way::Deliver(backend, slot), reason, service },
        _ => Verdict::end(Reason::DropNoBackend, service),
    }
}

#[cfg(test)]
mod tests;
