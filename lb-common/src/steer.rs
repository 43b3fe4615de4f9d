//! Where a packet goes: the decision, and what the delivering member remembers of it.
//!
//! Pure over `Tables` and `Flows`; never touches the packet. The laws cited are those of
//! ARCHITECTURE.md.

use crate::{
    address::Address,
    flow::{
        FlowEntry, FlowKey, PENDING_MIDFLOW, PENDING_SYN, PENDING_TICKS, PENDING_UDP, PLAUSIBLE_PACKETS,
        PLAUSIBLE_TICKS, Pending, STATE_ESTABLISHED, STATE_YOUNG, UDP, WITNESSED, tick,
    },
    lifecycle::{Kind, Lifecycle, next_step},
    liveness::{Liveness, heard_lately},
    node::{BUDGET_DERIVED, BUDGET_TCP, BUDGET_UDP, NODE_FIRST_PACKET, Node},
    packet::{ACK, FIN, Packet, RST, SYN},
    rank::{Owners, bit},
    reason::Reason,
    ring::ring_slot,
    service::{Service, ServiceKey},
    target::Target,
};

/// The tables that a decision reads.
pub trait Tables {
    /// The monotonic clock, in nanoseconds.
    fn now_ns(&self) -> u64;
    /// This member.
    fn node(&self) -> &Node;
    /// This member's view of all members.
    fn liveness(&self) -> &Liveness;
    /// When the last probe of member `id` arrived that did not call its maps empty; 0 for never.
    fn probe_heard_ns(&self, id: u8) -> u64;
    /// Members whose last probe is at most `Node::silence_ns` old; read only while the lease has lapsed.
    #[inline(always)]
    fn heard_lately(&self) -> u64 {
        heard_lately(self.node(), self.now_ns(), |id| self.probe_heard_ns(id))
    }
    /// False: surely no VIP.
    fn may_be_vip(&self, address: &Address) -> bool;
    /// The id of the member with this address.
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
    /// Takes a new entry of a `BUDGET_*` class from this CPU's budget.
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
pub enum Verdict<'t> {
    /// Send it to this backend.
    Deliver(&'t Target, Reason),
    /// Send it to this member.
    HandOff(&'t Target, Reason),
    /// Its way ends here.
    End(Reason),
}

/// Decides where `packet` goes, and remembers what law 3 says is worth it.
#[inline(always)]
pub fn steer<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>) -> Verdict<'t> {
    let key = packet.key.service();
    let Some(service) = tables.service(&key) else { return Verdict::End(no_service(tables, packet, key.address)) };
    if let Some(flow) = tables.flow(&packet.key) {
        let entry = tables.entry(flow);
        // The element may have been recycled since it was found: then its backend is another flow's.
        if entry.tag == packet.key.tag() {
            return steer_known(tables, packet, service, flow, entry);
        }
    }
    steer_unknown(tables, packet, service)
}

/// The filter that let the packet in has false positives: only the mark says that the address is a VIP.
#[inline(always)]
fn no_service<K, T: Tables>(tables: &T, packet: &Packet<K>, address: Address) -> Reason {
    if packet.via_peer {
        Reason::DropTunnelNoService
    } else if tables.service(&ServiceKey::vip(address)).is_some() {
        Reason::NoService
    } else {
        Reason::NotOurs
    }
}

#[inline(always)]
fn steer_known<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    service: Service,
    flow: T::Flow,
    entry: FlowEntry,
) -> Verdict<'t> {
    let node = tables.node();
    if !packet.via_peer && entry.primary != node.id {
        let owners = Owners { primary: entry.primary, backup: entry.backup };
        let owner = acting_owner(tables, owners, forwarding(tables), || packet.key.hash(&node.hash_key));
        if let Some(peer) = hand_off_target(tables, owner) {
            return Verdict::HandOff(peer, Reason::HandOffKnown);
        }
    }
    let kind = Kind::of(packet);
    let backend = tables.backend(entry.backend);
    if !backend.is_some_and(Target::is_in_service) && (kind == Kind::Syn || packet.key.protocol() == UDP) {
        return place_anew(tables, packet, service, &entry);
    }
    let now = tick(tables.now_ns());
    let (step, is_news) = next_step(&entry, kind, now);
    if step.last_seen != entry.last_seen || step.packets != entry.packets || is_news {
        tables.touch(flow, entry.tag, step);
    }
    if is_news {
        tables.emit(
            &packet.key,
            &FlowEntry { last_seen: now, revision: step.revision, state: step.state, packets: step.packets, ..entry },
        );
    }
    deliver(backend, Reason::DeliverKnown)
}

/// The acting owner of a miss must be eligible; when nobody is, forwarding decides.
#[inline(always)]
fn steer_unknown<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>, service: Service) -> Verdict<'t> {
    let node = tables.node();
    let hash = packet.key.hash(&node.hash_key);
    let owners = tables.rank(hash, node.configured);
    if !packet.via_peer {
        let owner = acting_owner(tables, owners, eligible(tables), || hash);
        if let Some(peer) = hand_off_target(tables, owner) {
            return Verdict::HandOff(peer, Reason::HandOffUnknown);
        }
    }
    let fresh = Fresh { hash, owners, ring: service.ring };
    if packet.key.protocol() == UDP {
        deliver_udp(tables, packet, &fresh)
    } else if packet.tcp_flags & (SYN | ACK | RST | FIN) == SYN {
        deliver_syn(tables, packet, &fresh)
    } else {
        deliver_midflow(tables, packet, &fresh)
    }
}

/// A flow without an entry: everything its stateless answer follows from (law 2).
struct Fresh {
    hash: u64,
    owners: Owners,
    ring: u32,
}

/// Members whose datapath answers; this one's does.
#[inline(always)]
fn forwarding<T: Tables>(tables: &T) -> u64 {
    audible(tables, tables.liveness().forwarding) | bit(tables.node().id)
}

/// Members that may own a miss.
#[inline(always)]
fn eligible<T: Tables>(tables: &T) -> u64 {
    let node = tables.node();
    let mut mask = audible(tables, tables.liveness().eligible & node.configured);
    if has_lapsed(tables) {
        // Nobody keeps this member's promises while its agent is gone (law 9).
        mask &= !bit(node.id);
    }
    if mask == 0 { forwarding(tables) } else { mask }
}

/// The masks are the agent's; once its lease has lapsed a peer must also have been heard lately.
#[inline(always)]
fn audible<T: Tables>(tables: &T, mask: u64) -> u64 {
    if has_lapsed(tables) { mask & tables.heard_lately() } else { mask }
}

/// Whether the agent has stopped vouching for the masks.
#[inline(always)]
fn has_lapsed<T: Tables>(tables: &T) -> bool {
    tables.liveness().lease_until_ns < tables.now_ns()
}

/// Primary if usable, else backup if usable, else the best-ranked usable member; `mask` says who is usable.
#[inline(always)]
fn acting_owner<T: Tables>(tables: &T, owners: Owners, mask: u64, hash: impl Fn() -> u64) -> u8 {
    if mask & bit(owners.primary) != 0 {
        owners.primary
    } else if mask & bit(owners.backup) != 0 {
        owners.backup
    } else {
        tables.rank(hash(), mask & tables.node().configured).primary
    }
}

/// The peer to hand off to; none if the owner is this member, unknown, or cannot be reached: then it is delivered here.
#[inline(always)]
fn hand_off_target<T: Tables>(tables: &T, owner: u8) -> Option<&Target> {
    if owner == 0 || owner == tables.node().id {
        return None;
    }
    tables.member(owner).filter(|member| member.next_hop.ifindex != 0)
}

#[inline(always)]
fn deliver_syn<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>, fresh: &Fresh) -> Verdict<'t> {
    let slot = match remembered(tables, &packet.key) {
        // A retry goes where the first try went: the server may have answered it.
        Some(pending) if pending.kind == PENDING_SYN => pending.backend,
        _ => stateless(tables, fresh),
    };
    let Some(backend) = usable_backend(tables, slot) else { return Verdict::End(Reason::DropNoBackend) };
    if tables.node().flags & NODE_FIRST_PACKET != 0 {
        return record(tables, packet, fresh, slot, STATE_ESTABLISHED, BUDGET_TCP);
    }
    let now = tick(tables.now_ns());
    tables.set_pending(
        &packet.key,
        &Pending {
            first_seen: now,
            expected_seq: packet.seq.wrapping_add(1),
            backend: slot,
            kind: PENDING_SYN,
            packets: 1,
            last_seen: now,
        },
    );
    deliver(Some(backend), Reason::DeliverStateless)
}

/// The ACK of a handshake makes its flow young; any other packet must keep coming to be recorded as derived.
#[inline(always)]
fn deliver_midflow<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>, fresh: &Fresh) -> Verdict<'t> {
    let now = tick(tables.now_ns());
    let known = remembered(tables, &packet.key);
    let slot = match known {
        Some(pending) if pending.kind == PENDING_SYN => pending.backend,
        _ => stateless(tables, fresh),
    };
    let shape = packet.tcp_flags & (SYN | RST | FIN | ACK);
    if let Some(pending) = known
        && pending.kind == PENDING_SYN
        && shape == ACK
        && pending.expected_seq == packet.seq
    {
        return record(tables, packet, fresh, slot, STATE_YOUNG, BUDGET_TCP);
    }
    if shape == ACK {
        let pending = counted(known, PENDING_MIDFLOW, slot, now);
        if pending.packets >= PLAUSIBLE_PACKETS && now.wrapping_sub(pending.first_seen) >= PLAUSIBLE_TICKS {
            return record(tables, packet, fresh, slot, STATE_ESTABLISHED, BUDGET_DERIVED);
        }
        tables.set_pending(&packet.key, &pending);
    }
    deliver(tables.backend(slot), Reason::DeliverStateless)
}

#[inline(always)]
fn deliver_udp<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>, fresh: &Fresh) -> Verdict<'t> {
    let known = remembered(tables, &packet.key);
    let slot = match known {
        Some(pending) if pending.kind == PENDING_UDP => pending.backend,
        _ => stateless(tables, fresh),
    };
    let Some(backend) = usable_backend(tables, slot) else { return Verdict::End(Reason::DropNoBackend) };
    let is_second = known.is_some_and(|pending| pending.kind == PENDING_UDP);
    if is_second || tables.node().flags & NODE_FIRST_PACKET != 0 {
        return record(tables, packet, fresh, slot, STATE_ESTABLISHED, BUDGET_UDP);
    }
    tables.set_pending(&packet.key, &counted(known, PENDING_UDP, slot, tick(tables.now_ns())));
    deliver(Some(backend), Reason::DeliverStateless)
}

/// What is remembered of the tuple, unless it is too old or its backend has gone out of service.
#[inline(always)]
fn remembered<K: FlowKey, T: Flows<K>>(tables: &T, key: &K) -> Option<Pending> {
    let pending = tables.pending(key)?;
    let is_fresh = tick(tables.now_ns()).wrapping_sub(pending.last_seen) < PENDING_TICKS;
    (is_fresh && usable_backend(tables, pending.backend).is_some()).then_some(pending)
}

/// `known` with one packet more, or the first of its kind.
#[inline(always)]
fn counted(known: Option<Pending>, kind: u8, backend: u16, now: u32) -> Pending {
    match known {
        Some(pending) => Pending { packets: pending.packets.saturating_add(1), last_seen: now, ..pending },
        None => Pending { first_seen: now, expected_seq: 0, backend, kind, packets: 1, last_seen: now },
    }
}

/// Makes an entry of a flow that is worth one, within the budget of its class.
#[inline(always)]
fn record<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    fresh: &Fresh,
    slot: u16,
    state: u8,
    class: usize,
) -> Verdict<'t> {
    let backend = tables.backend(slot);
    if backend.is_none_or(|backend| backend.state == 0) {
        return Verdict::End(Reason::DropNoBackend);
    }
    if !tables.take_budget(class) {
        return deliver(backend, Reason::DeliverOverBudget);
    }
    let witnessed = if class == BUDGET_DERIVED { 0 } else { WITNESSED };
    let entry = new_entry(tables, packet, first_owners(tables, fresh), slot, state, witnessed);
    match tables.insert(&packet.key, &entry) {
        Inserted::Yes => {
            tables.emit(&packet.key, &entry);
            deliver(backend, Reason::DeliverNew)
        }
        Inserted::Exists => deliver(backend, Reason::DeliverKnown),
        Inserted::Full => deliver(backend, Reason::DeliverTableFull),
    }
}

/// The owners that an entry begins with: the flow's, if both may own misses.
///
/// A ranked owner that may not has never heard of the flow. As it may well forward, packets that meet the
/// entry would be handed to it, and it would answer from a ring that nobody keeps up to date.
#[inline(always)]
fn first_owners<T: Tables>(tables: &T, fresh: &Fresh) -> Owners {
    let node = tables.node();
    let able = eligible(tables) | bit(node.id);
    let ranked = bit(fresh.owners.primary) | bit(fresh.owners.backup);
    if ranked & !able == 0 { fresh.owners } else { tables.rank(fresh.hash, able & node.configured) }
}

#[inline(always)]
fn new_entry<K: FlowKey, T: Tables>(
    tables: &T,
    packet: &Packet<K>,
    owners: Owners,
    backend: u16,
    state: u8,
    witnessed: u8,
) -> FlowEntry {
    let node = tables.node();
    let now = tick(tables.now_ns());
    FlowEntry {
        last_seen: now,
        created: now,
        tag: packet.key.tag(),
        creator_incarnation: node.incarnation,
        generation: 0,
        revision: 0,
        term: 0,
        backend,
        state,
        // The SYN and this one; of no meaning in other states.
        packets: 2,
        creator: node.id | witnessed,
        primary: owners.primary,
        backup: owners.backup,
        padding: [0; 3],
    }
}

/// The backend of the entry is out of service and the packet begins anew: another backend, the next generation.
#[inline(always)]
fn place_anew<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    service: Service,
    old: &FlowEntry,
) -> Verdict<'t> {
    let hash = packet.key.hash(&tables.node().hash_key);
    let owners = Owners { primary: old.primary, backup: old.backup };
    let slot = stateless(tables, &Fresh { hash, owners, ring: service.ring });
    let Some(backend) = usable_backend(tables, slot) else {
        return deliver(tables.backend(old.backend), Reason::DeliverKnown);
    };
    let entry = FlowEntry {
        generation: old.generation.saturating_add(1),
        term: old.term,
        ..new_entry(tables, packet, owners, slot, STATE_ESTABLISHED, WITNESSED)
    };
    tables.replace(&packet.key, &entry);
    tables.emit(&packet.key, &entry);
    deliver(Some(backend), Reason::DeliverNew)
}

#[inline(always)]
fn stateless<T: Tables>(tables: &T, fresh: &Fresh) -> u16 {
    tables.ring(fresh.ring, ring_slot(fresh.hash))
}

/// The backend in `slot`, if it may be given packets of flows that are not its own yet.
#[inline(always)]
fn usable_backend<T: Tables>(tables: &T, slot: u16) -> Option<&Target> {
    tables.backend(slot).filter(|backend| backend.is_in_service())
}

#[inline(always)]
fn deliver(backend: Option<&Target>, reason: Reason) -> Verdict<'_> {
    match backend {
        Some(backend) if backend.state != 0 => Verdict::Deliver(backend, reason),
        _ => Verdict::End(Reason::DropNoBackend),
    }
}

#[cfg(test)]
mod tests;
