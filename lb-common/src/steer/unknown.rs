//! Packets of flows without an entry: the stateless answer (law 2), and how a flow earns an entry (law 3).

use super::{
    Flows, Inserted, Tables, Verdict, Way, deliver,
    owner::{acting_owner, eligible, hand_off_target},
};
use crate::{
    flow::{
        FlowEntry, FlowKey, PENDING_MIDFLOW, PENDING_SYN, PENDING_TICKS, PENDING_UDP, PLAUSIBLE_PACKETS,
        PLAUSIBLE_TICKS, Pending, SCTP, STATE_ESTABLISHED, STATE_YOUNG, UDP, WITNESSED, tick,
    },
    maps::PREVIOUS_RINGS,
    node::{BUDGET_DERIVED, BUDGET_SCTP, BUDGET_TCP, BUDGET_UDP, NODE_FIRST_PACKET},
    packet::{ACK, FIN, Packet, Part, RST, SYN},
    rank::{Owners, bit},
    reason::Reason,
    ring::ring_slot,
    service::{SERVICE_AFFINITY, Service},
    target::Target,
};

/// A flow without an entry: everything its stateless answer follows from (law 2).
struct Fresh {
    hash: u64,
    owners: Owners,
    service: Service,
}

/// The acting owner of a miss must be eligible; when nobody is, forwarding decides.
#[inline(always)]
pub(super) fn steer_unknown<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    stays: bool,
    service: Service,
) -> Verdict<'t> {
    let node = tables.node();
    let hash = packet.key.hash(&node.hash_key);
    let owners = tables.rank(hash, node.configured);
    if !stays {
        let owner = acting_owner(tables, owners, eligible(tables), || hash);
        if let Some(peer) = hand_off_target(tables, owner) {
            return Verdict { way: Way::HandOff(peer, owner), reason: Reason::HandOffUnknown, service: service.ring };
        }
    }
    let shape = packet.flags & (SYN | ACK | RST | FIN);
    let may_be_others = shape != SYN && !packet.is_marked() && tables.now_ns() < tables.liveness().doubt_until_ns;
    // What is remembered of the tuple began here: it is nobody else's.
    if may_be_others && remembered(tables, &packet.key).is_none() {
        // Not one that answers from a ring that nobody keeps up to date.
        let others = eligible(tables) & node.configured & !bit(node.id);
        let other = tables.rank(hash, others).primary;
        if let Some(peer) = hand_off_target(tables, other) {
            let reason = Reason::HandOffSecondChance;
            return Verdict { way: Way::HandOff(peer, other), reason, service: service.ring };
        }
    }
    let fresh = Fresh { hash, owners, service };
    if matches!(packet.part, Part::Quote) {
        let slot = stateless(tables, packet, &fresh);
        deliver(tables.backend(slot), slot, Reason::DeliverQuote, service.ring)
    } else if packet.key.protocol() == UDP {
        deliver_udp(tables, packet, &fresh)
    } else if shape == SYN {
        deliver_syn(tables, packet, &fresh)
    } else {
        deliver_midflow(tables, packet, &fresh, shape)
    }
}

#[inline(always)]
fn deliver_syn<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>, fresh: &Fresh) -> Verdict<'t> {
    let slot = match remembered(tables, &packet.key) {
        // A retry goes where the first try went: the server may have answered it.
        Some(pending) if pending.kind == PENDING_SYN => pending.backend,
        _ => stateless(tables, packet, fresh),
    };
    let service = fresh.service.ring;
    let Some(backend) = usable_backend(tables, slot) else { return Verdict::end(Reason::DropNoBackend, service) };
    if tables.node().flags & NODE_FIRST_PACKET != 0 {
        return record(tables, packet, fresh, slot, STATE_ESTABLISHED, witnessed_class(packet));
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
    deliver(Some(backend), slot, Reason::DeliverStateless, service)
}

/// The ACK of a handshake makes its flow young; any other packet must keep coming to be recorded as derived.
#[inline(always)]
fn deliver_midflow<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    fresh: &Fresh,
    shape: u8,
) -> Verdict<'t> {
    let now = tick(tables.now_ns());
    let known = remembered(tables, &packet.key);
    let slot = match known {
        Some(pending) if pending.kind == PENDING_SYN => pending.backend,
        _ => stateless(tables, packet, fresh),
    };
    if let Some(pending) = known
        && pending.kind == PENDING_SYN
        && shape == ACK
        && pending.expected_seq == packet.seq
    {
        return record(tables, packet, fresh, slot, STATE_YOUNG, witnessed_class(packet));
    }
    if shape == ACK {
        let pending = counted(known, PENDING_MIDFLOW, slot, now);
        if pending.packets >= PLAUSIBLE_PACKETS && now.wrapping_sub(pending.first_seen) >= PLAUSIBLE_TICKS {
            return record(tables, packet, fresh, slot, STATE_ESTABLISHED, BUDGET_DERIVED);
        }
        tables.set_pending(&packet.key, &pending);
    }
    deliver(tables.backend(slot), slot, Reason::DeliverStateless, fresh.service.ring)
}

#[inline(always)]
fn deliver_udp<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>, fresh: &Fresh) -> Verdict<'t> {
    let known = remembered(tables, &packet.key);
    let slot = match known {
        Some(pending) if pending.kind == PENDING_UDP => pending.backend,
        _ => stateless(tables, packet, fresh),
    };
    let service = fresh.service.ring;
    let Some(backend) = usable_backend(tables, slot) else { return Verdict::end(Reason::DropNoBackend, service) };
    let is_second = known.is_some_and(|pending| pending.kind == PENDING_UDP);
    if is_second || tables.node().flags & NODE_FIRST_PACKET != 0 {
        return record(tables, packet, fresh, slot, STATE_ESTABLISHED, BUDGET_UDP);
    }
    tables.set_pending(&packet.key, &counted(known, PENDING_UDP, slot, tick(tables.now_ns())));
    deliver(Some(backend), slot, Reason::DeliverStateless, service)
}

#[inline(always)]
fn witnessed_class<K: FlowKey>(packet: &Packet<K>) -> usize {
    if packet.key.protocol() == SCTP { BUDGET_SCTP } else { BUDGET_TCP }
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
    let service = fresh.service.ring;
    let backend = tables.backend(slot);
    if backend.is_none_or(|backend| backend.state == 0) {
        return Verdict::end(Reason::DropNoBackend, service);
    }
    if !tables.take_budget(class) {
        return deliver(backend, slot, Reason::DeliverOverBudget, service);
    }
    let witnessed = if class == BUDGET_DERIVED { 0 } else { WITNESSED };
    let entry = new_entry(tables, packet, first_owners(tables, fresh.hash, fresh.owners), slot, state, witnessed);
    let reason = match tables.insert(&packet.key, &entry) {
        Inserted::Yes => {
            tables.emit(&packet.key, &entry);
            Reason::DeliverNew
        }
        Inserted::Exists => Reason::DeliverKnown,
        Inserted::Full => Reason::DeliverTableFull,
    };
    deliver(backend, slot, reason, service)
}

/// The owners that an entry begins with: the flow's, if both may own misses.
///
/// A ranked owner that may not has never heard of the flow. As it may well forward, packets that meet the
/// entry would be handed to it, and it would answer from a ring that nobody keeps up to date.
#[inline(always)]
pub(super) fn first_owners<T: Tables>(tables: &T, hash: u64, ranked: Owners) -> Owners {
    let node = tables.node();
    let able = eligible(tables) | bit(node.id);
    let pair = bit(ranked.primary) | bit(ranked.backup);
    if pair & !able == 0 { ranked } else { tables.rank(hash, able & node.configured) }
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
        event: 0,
        padding: [0; 2],
    }
}

/// The backend of the entry is out of service and the packet begins anew: another backend, the next generation.
#[inline(always)]
pub(super) fn place_anew<'t, K: FlowKey, T: Flows<K>>(
    tables: &'t T,
    packet: &Packet<K>,
    gone: &'t Target,
    old: &FlowEntry,
) -> Verdict<'t> {
    let owners = Owners { primary: old.primary, backup: old.backup };
    // The service may be gone as well: then nothing is placed in it any more.
    let slot = match super::service_of(tables, &packet.key) {
        Some(service) => {
            stateless(tables, packet, &Fresh { hash: packet.key.hash(&tables.node().hash_key), owners, service })
        }
        None => 0,
    };
    let Some(backend) = usable_backend(tables, slot) else {
        return deliver(Some(gone), old.backend, Reason::DeliverKnown, gone.ring);
    };
    let entry = FlowEntry {
        generation: old.generation.saturating_add(1),
        term: old.term,
        ..new_entry(tables, packet, owners, slot, STATE_ESTABLISHED, WITNESSED)
    };
    tables.replace(&packet.key, &entry);
    tables.emit(&packet.key, &entry);
    deliver(Some(backend), slot, Reason::DeliverNew, backend.ring)
}

/// The backend that the ring has for the flow; with affinity, for all flows of its client to the service.
///
/// For some time after a change of servers a flow that is not new is one that began before it, as far as anybody knows.
#[inline(always)]
fn stateless<K: FlowKey, T: Tables>(tables: &T, packet: &Packet<K>, fresh: &Fresh) -> u16 {
    let hash = if fresh.service.flags & SERVICE_AFFINITY != 0 {
        packet.key.without_ports().hash(&tables.node().hash_key)
    } else {
        fresh.hash
    };
    let (ring, slot) = (fresh.service.ring, ring_slot(hash));
    if goes_on(packet) && tables.now_ns() < tables.liveness().grace_until_ns {
        let before = tables.ring(ring + PREVIOUS_RINGS, slot);
        if before != 0 {
            return before;
        }
    }
    tables.ring(ring, slot)
}

/// Whether a packet is of a flow that began before; a datagram of UDP does not tell.
#[inline(always)]
fn goes_on<K: FlowKey>(packet: &Packet<K>) -> bool {
    packet.key.protocol() != UDP
        && (matches!(packet.part, Part::Quote) || packet.flags & (SYN | ACK | RST | FIN) != SYN)
}

/// The backend in `slot`, if it may be given packets of flows that are not its own yet.
#[inline(always)]
fn usable_backend<T: Tables>(tables: &T, slot: u16) -> Option<&Target> {
    tables.backend(slot).filter(|backend| backend.is_in_service())
}
