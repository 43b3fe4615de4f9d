//! A packet's way through the members, watched by the oracle.

use lb_common::{packet::Part, rank::bit, reason::Reason};

use crate::{
    agenda::Happening,
    datapath::{Datapath, Way},
    invariants::{Delivery, Invariant},
    owners::Owned,
    segment::{Role, Segment},
    world::World,
};

/// What a datapath counts itself: in the order of `packet_arrives`.
const COUNTED: [&str; 3] = ["insertion into a full table", "write between read and write", "event lost"];
/// Where the second is.
const INTERLEAVED: usize = 1;

impl World {
    /// Whether `member` has the backend in `slot` in service.
    fn in_service(&self, member: u8, slot: u16) -> bool {
        let Some(host) = self.hosts.get(&member) else { return false };
        let backend = host.datapath.as_ref().and_then(|datapath| datapath.backend_address(slot));
        backend.is_some_and(|backend| self.configs.get(host.version).is_some_and(|cluster| cluster.serves(backend)))
    }

    /// Whether a packet may take its flow from the backend in `slot`: that is down, and the packet may begin another flow.
    fn lets_go(&self, member: u8, segment: &Segment, slot: u16) -> bool {
        let datapath = self.hosts.get(&member).and_then(|host| host.datapath.as_ref());
        segment.role == Role::Syn && datapath.is_some_and(|datapath| datapath.is_down(slot))
    }

    /// A packet reaches a member's interface.
    pub(crate) fn packet_arrives(&mut self, member: u8, mut segment: Segment) {
        if self.waits_in_nic(member, || Happening::Packet { member, segment }) {
            return;
        }
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.up && host.attached) else { return };
        let local = host.local(now);
        let Some(datapath) = &mut host.datapath else { return };
        let key = segment.flow;
        let before = datapath.flows.borrow().get(&key);
        datapath.flows.borrow_mut().take_removed();
        let counts = |datapath: &Datapath| {
            [&datapath.refused, &datapath.interleaved, &datapath.events_lost].map(std::cell::Cell::get)
        };
        let before_counts = counts(datapath);
        let is_direct = datapath.installed.node.id != 0
            && self.plan.direct
            && matches!(segment.packet.part, Part::Whole | Part::Quote)
            && before.is_some_and(|entry| datapath.is_in_service(entry.backend));
        let before_memory = datapath.remembered();
        let (way, reason) = datapath.steer(local, &segment);
        let after = datapath.flows.borrow().get(&key);
        let memory = datapath.remembered() - before_memory;
        let lost = datapath.flows.borrow_mut().take_removed();
        let counts_now = counts(datapath);
        for (at, name) in COUNTED.into_iter().enumerate() {
            self.stats.add(name, counts_now[at] - before_counts[at]);
        }
        let has_events = !datapath.events.borrow().is_empty();
        if has_events {
            let at = now + self.rng.below(crate::time::MS);
            self.wake_at(member, at);
        }
        self.trace(|| {
            let role = segment.role;
            format!(
                "packet {} {role:?} conn {} at {member}: {way:?}, {}",
                crate::agenda::flow_name(&key),
                segment.conn,
                reason.name()
            )
        });
        // What the agent wrote meanwhile is no packet's doing.
        let is_undisturbed = counts_now[INTERLEAVED] == before_counts[INTERLEAVED];
        if let (Some(before), Some(after)) = (before, after)
            && before.backend != after.backend
        {
            if self.lets_go(member, &segment, before.backend) {
                self.clients.values_mut().filter(|client| client.key == key).for_each(|client| client.is_let_go = true);
            } else if is_undisturbed && self.in_service(member, before.backend) {
                let moved = || format!("member {member} moved a flow: {before:?} to {after:?}");
                self.violate(Invariant::SpoofHarmless, moved);
            }
        }
        if let (Some(before), Some(after)) = (before, after)
            && is_undisturbed
            && Owned::of(&before).contradicts(&Owned::of(&after))
        {
            self.violate(Invariant::OwnersStay, || format!("member {member}: a packet makes {after:?} of {before:?}"));
        }
        if let Some(before) = before.filter(|_| is_direct) {
            self.judge_direct(member, &before, way);
        }
        if segment.role == Role::Quote && (before != after || memory > 0) {
            self.violate(Invariant::QuoteHarmless, || format!("member {member}: {before:?} became {after:?}"));
        }
        if let Some(lost) = lost {
            let invariant = if lost == key { Invariant::SpoofHarmless } else { Invariant::NoEviction };
            self.violate(invariant, || format!("member {member} lost an entry to a packet"));
        }
        self.stats.count(reason.name());
        match way {
            Way::Dropped => self.stats.count("packet dropped by a member"),
            Way::Backend(backend) => {
                self.judge_delivery(&Delivery { member, backend, before, after, segment });
                let at = self.network.carry_outside(now);
                self.arrive(at, Happening::AtServer { segment, backend });
            }
            Way::Member(to, outer) => {
                let may_be_handed_on = match reason {
                    Reason::HandOffSecondChance => !segment.packet.is_marked(),
                    Reason::HandOffFragment => segment.packet.is_sent_round(),
                    _ => false,
                };
                segment.hand_offs += 1;
                segment.handed_by |= bit(member);
                segment.is_known |= before.is_some();
                if segment.hand_offs > 1 && !may_be_handed_on {
                    self.violate(Invariant::OneHandOff, || format!("member {member} hands on what a peer gave it"));
                    return;
                }
                self.judge_hand_off(member, to);
                let at = self.network.carry(now, member, to);
                segment.packet.via_peer = true;
                segment.packet.outer = outer;
                self.arrive(at, Happening::Packet { member: to, segment });
            }
        }
    }
}
