//! Fragments: all between two addresses meet at one member, which learns the ports from the first one.
//!
//! Routers spread first fragments by ports and later ones without; so each is handed to the top member of
//! (source, destination, protocol), and that one delivers it where the whole packets of the flow go: it has the record too.

use super::{
    Flows, Verdict, Way,
    owner::{acting_owner, eligible, forwarding, hand_off_target},
};
use crate::{
    flow::{FRAGMENT_TICKS, FlowKey, Fragment, tick},
    node::BUDGET_ANSWERS,
    packet::{Packet, Part},
    rank::bit,
    reason::Reason,
    steer::NO_SERVICE,
};

/// Where a fragment meets the others of its datagram.
pub(super) enum Meeting<'t, K> {
    /// Here; the key has its ports.
    Here(K),
    /// Not here, or nowhere.
    Elsewhere(Verdict<'t>),
}

#[inline(always)]
pub(super) fn meet<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>) -> Meeting<'t, K> {
    let node = tables.node();
    if !packet.via_peer || packet.is_sent_round() {
        let hash = packet.key.without_ports().hash(&node.hash_key);
        let owners = tables.rank(hash, node.configured);
        let top = acting_owner(tables, owners, eligible(tables), || hash);
        if let Some(peer) = hand_off_target(tables, top) {
            let reason = Reason::HandOffFragment;
            return Meeting::Elsewhere(Verdict { way: Way::HandOff(peer, top), reason, service: NO_SERVICE });
        }
    }
    let datagram = packet.key.datagram(packet.datagram);
    let now = tick(tables.now_ns());
    if matches!(packet.part, Part::FirstFragment) {
        tables.set_fragment(&datagram, &Fragment { ports: packet.key.ports(), seen: now });
        return Meeting::Here(packet.key);
    }
    match tables.fragment(&datagram) {
        Some(first) if now.wrapping_sub(first.seen) < FRAGMENT_TICKS => {
            Meeting::Here(packet.key.with_ports(first.ports))
        }
        _ => Meeting::Elsewhere(await_first(tables, packet)),
    }
}

/// A later fragment that has come by itself may have overtaken a first one that needs a hand-off: a way round another
/// member takes longer than that. Once only: what comes from a peer has been round, or was as long on its way.
#[inline(always)]
fn await_first<'t, K: FlowKey, T: Flows<K>>(tables: &'t T, packet: &Packet<K>) -> Verdict<'t> {
    let node = tables.node();
    if !packet.via_peer && tables.take_budget(BUDGET_ANSWERS) {
        let others = forwarding(tables) & node.configured & !bit(node.id);
        let other = tables.rank(packet.key.without_ports().hash(&node.hash_key), others).primary;
        if let Some(peer) = hand_off_target(tables, other) {
            let reason = Reason::HandOffFragmentRound;
            return Verdict { way: Way::HandOff(peer, other), reason, service: NO_SERVICE };
        }
    }
    Verdict::end(Reason::DropFragmentNoHead, NO_SERVICE)
}
