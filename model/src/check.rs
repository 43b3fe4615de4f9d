//! What must hold of every packet, whatever the tables hold.

use lb_common::{
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6},
    packet::Packet,
    parse::{Arrival, Front, OFFSET_MAX, Parsed, Place, arrival, front, is_own, parse},
    reason::{Action, Reason},
    steer::{Tables as _, Verdict, Way, steer},
};

use crate::{
    Model, Outcome,
    tables::{Family, Written},
    write::{checksum, pseudo_sum},
};

/// Sends a frame through the model; panics if something does not hold that must.
pub fn run_checked(model: &Model, frame: &[u8]) -> Outcome {
    // The same decision, on tables of its own, for what an outcome does not tell.
    let seen = Seen::of(&model.clone(), frame);
    let before = (entries::<FlowKeyV4>(model), entries::<FlowKeyV6>(model));
    let outcome = model.run(frame);
    let is_mended = check(frame, &outcome, &seen);
    assert!(is_mended, "{}: a checksum that was right is wrong", outcome.reason.name());
    survive(model, &before.0);
    survive(model, &before.1);
    outcome
}

/// How a frame is judged.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Whether it is inside a tunnel packet from a member.
    is_tunnelled: bool,
    /// Where its IP header begins, and the family.
    inner: Option<(usize, bool)>,
    /// Whether it asks for a second chance.
    is_marked: bool,
    /// Whether it is on its way round.
    is_sent_round: bool,
    /// The reason and the way that `steer` chose.
    verdict: Option<(Reason, Chosen)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chosen {
    Deliver,
    HandOff,
    End,
}

impl Seen {
    fn of(model: &Model, frame: &[u8]) -> Self {
        let mut seen = Self::default();
        if model.node.id == 0 {
            return seen;
        }
        match front(frame, |address| model.may_be_ours(address)) {
            Front::Ours(place) => {
                assert_packed(&place);
                if is_own(frame, model, place)
                    && let Arrival::HandOff(inner) = arrival(frame, model, place, model.ingress)
                {
                    assert_packed(&inner);
                    assert!(inner.via_peer);
                    seen.is_tunnelled = true;
                }
            }
            Front::End(reason) => assert_eq!(reason.action(), Action::Pass),
        }
        match parse(frame, model, model.ingress) {
            Parsed::V4(packet) => seen.steered(model, frame, packet),
            Parsed::V6(packet) => seen.steered(model, frame, packet),
            Parsed::Ping(ping) => assert!(!seen.is_tunnelled && ping.icmp_at + 8 <= frame.len()),
            Parsed::Probe(probe) | Parsed::ProbeEcho(probe) => {
                assert!(!seen.is_tunnelled && probe.probe_at() + 72 <= frame.len() && probe.from != model.node.id);
            }
            Parsed::End(_) => {}
        }
        seen
    }

    fn steered<K: Family>(&mut self, model: &Model, frame: &[u8], mut packet: Packet<K>) {
        assert_eq!(packet.via_peer, self.is_tunnelled);
        assert!(packet.at + packet.ip.length as usize <= frame.len(), "longer than its frame");
        (self.is_marked, self.is_sent_round) = (packet.is_marked(), packet.is_sent_round());
        self.inner = Some((packet.at, K::IS_V6));
        let verdict = steer(model, &mut packet);
        let unpacked = Verdict::unpack(verdict.pack(), model);
        assert_eq!(verdict, unpacked);
        let (chosen, action) = match verdict.way {
            Way::Deliver(..) => (Chosen::Deliver, Action::Deliver),
            Way::HandOff(..) => (Chosen::HandOff, Action::HandOff),
            Way::End => (Chosen::End, verdict.reason.action()),
        };
        assert_eq!(action, verdict.reason.action(), "the reason is not the way's");
        assert!(chosen != Chosen::End || matches!(action, Action::Drop | Action::Pass), "ends as {action:?}");
        if self.is_tunnelled {
            let may_go_on = match verdict.reason {
                Reason::HandOffSecondChance => true,
                Reason::HandOffFragment => self.is_sent_round,
                _ => false,
            };
            assert!(chosen != Chosen::HandOff || may_go_on, "handed on");
            assert!(chosen != Chosen::HandOff || !self.is_marked, "a marked packet is handed on");
        }
        if let Way::HandOff(_, id) = verdict.way {
            assert_ne!(id, model.node.id, "handed off to itself");
        }
        self.verdict = Some((verdict.reason, chosen));
    }
}

fn assert_packed(place: &Place) {
    assert!(place.at <= OFFSET_MAX);
    assert_eq!(*place, Place::unpack(place.pack()));
}

/// Whether checksums that were right are right.
fn check(frame: &[u8], outcome: &Outcome, seen: &Seen) -> bool {
    let action = outcome.reason.action();
    assert!(!seen.is_tunnelled || action != Action::Pass, "a tunnel packet passes: {}", outcome.reason.name());
    let leaves = matches!(action, Action::Deliver | Action::HandOff | Action::Answer);
    assert_eq!(outcome.way != 0, leaves, "{}", outcome.reason.name());
    match (action, seen.inner) {
        (Action::Pass | Action::Consume, _) => {
            assert_eq!(outcome.frame, frame, "changed");
            true
        }
        (Action::Deliver | Action::HandOff, inner) => {
            let (reason, chosen) = seen.verdict.expect("only what was steered leaves");
            assert_eq!(reason, outcome.reason);
            assert_eq!(chosen == Chosen::Deliver, action == Action::Deliver);
            encapsulated(frame, inner.expect("steered"), outcome, seen.is_tunnelled)
        }
        // What is steered is answered only where it does not fit.
        (Action::Answer, Some((at, is_v6))) => {
            assert_eq!(outcome.reason, Reason::TooBigAnswered);
            too_big(frame, at, is_v6, &outcome.frame)
        }
        (Action::Answer, None) => {
            assert_eq!(outcome.frame.len(), frame.len());
            true
        }
        (Action::Drop, _) => true,
    }
}

/// The IP header behind the link-layer header that the datapath wrote.
fn network(frame: &[u8]) -> (usize, bool) {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8] | [0x91, 0]) {
        at += 4;
    }
    match frame[at..at + 2] {
        [0x08, 0] => (at + 2, false),
        [0x86, 0xdd] => (at + 2, true),
        ref other => panic!("ethertype {other:02x?}"),
    }
}

/// The length that an IP header claims, headers included.
fn claimed(packet: &[u8], is_v6: bool) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if is_v6 { 40 + word(4) } else { word(2) }
}

fn encapsulated(frame: &[u8], (at, is_v6): (usize, bool), outcome: &Outcome, is_tunnelled: bool) -> bool {
    let out = &outcome.frame;
    let (outer_at, outer_v6) = network(out);
    let (overhead, protocol) = if outer_v6 { (40, out[outer_at + 6]) } else { (20, out[outer_at + 9]) };
    let (outer, inner) = out[outer_at..].split_at(overhead);
    let before = &frame[at..];
    assert_eq!(protocol, if is_v6 { 41 } else { 4 });
    assert_eq!(claimed(outer, outer_v6), overhead + claimed(before, is_v6), "the outer header's length");
    assert!(claimed(outer, outer_v6) <= out.len() - outer_at, "longer than its frame");
    assert!(outer_v6 || checksum(outer, 0) == 0, "the outer header's checksum");
    assert_eq!(inner.len(), before.len());
    let ttl = if is_v6 { 7 } else { 8 };
    let is_plain = matches!(outcome.reason, Reason::HandOffKnown | Reason::HandOffUnknown | Reason::HandOffFragment);
    let hops = u8::from(!is_plain || is_tunnelled);
    assert_eq!(inner[ttl] + hops, before[ttl], "TTL");
    for (nth, (new, old)) in inner.iter().zip(before).enumerate() {
        let is_written = match (is_v6, nth) {
            (true, 0 | 1 | 7) | (false, 1 | 8 | 10 | 11) => true,
            (_, _) => false,
        };
        assert!(is_written || new == old, "byte {nth} of the inner packet");
    }
    let header = 4 * usize::from(before[0] & 15);
    is_v6 || checksum(&before[..header], 0) != 0 || checksum(&inner[..header], 0) == 0
}

fn too_big(frame: &[u8], at: usize, is_v6: bool, out: &[u8]) -> bool {
    let (answer_at, answer_v6) = network(out);
    assert_eq!(answer_v6, is_v6);
    let answer = &out[answer_at..];
    assert_eq!(claimed(answer, is_v6), answer.len(), "the answer's length");
    let (header, addresses) = if is_v6 { (40, 8..40) } else { (20, 12..20) };
    let (half, before) = (addresses.len() / 2, &frame[at..][addresses.clone()]);
    assert_eq!(answer[addresses.clone()], [&before[half..], &before[..half]].concat(), "to its sender");
    let icmp = &answer[header..];
    assert_eq!(icmp[8..], frame[at..][..icmp.len() - 8], "the quote");
    let pseudo = if is_v6 { pseudo_sum(&answer[addresses], icmp.len(), 58) } else { 0 };
    checksum(icmp, pseudo) == 0 && (is_v6 || checksum(&answer[..header], 0) == 0)
}

fn entries<K: Family>(model: &Model) -> Vec<(K, FlowEntry)> {
    let mut learned = K::learned(model).borrow_mut();
    learned.written.clear();
    learned.flows.iter().map(|(key, entry)| (*key, *entry)).collect()
}

/// Laws 4 and 5: a packet destroys no entry, and moves no flow off a backend in service.
fn survive<K: Family>(model: &Model, before: &[(K, FlowEntry)]) {
    let learned = K::learned(model).borrow();
    for (key, old) in before {
        let new = learned.flows.get(key).expect("a packet destroyed an entry");
        let is_in_service = model.backend(old.backend).is_some_and(|backend| backend.is_in_service());
        assert!(!is_in_service || new.backend == old.backend, "moved off a backend in service");
        assert!(new.tag == old.tag || new.tag == key.tag());
    }
    assert!(learned.flows.len() <= before.len() + 1, "one packet, one flow");
    assert!(learned.flows.len() <= model.flows_max.max(before.len()));
    let flows = learned.written.iter().filter(|written| matches!(written, Written::Flow(_))).count();
    assert!(flows <= 1 && learned.written.len() <= 2, "{:?}", learned.written);
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::Dice;

    /// Runs random packets; once one is delivered or handed off, spoils what became of it.
    fn finds(spoil: fn(&mut Outcome)) -> bool {
        let spoilt = (0..).find_map(|number| {
            let mut dice = Dice::seeded(number);
            let world = dice.world(1 << 40);
            let frame = dice.frame(&world, 1600);
            let seen = Seen::of(&world.clone(), &frame);
            let outcome = world.run(&frame);
            let leaves = matches!(outcome.reason.action(), Action::Deliver | Action::HandOff);
            leaves.then_some((frame, outcome, seen))
        });
        let (frame, mut outcome, seen) = spoilt.expect("sooner or later");
        assert!(check(&frame, &outcome, &seen));
        spoil(&mut outcome);
        !catch_unwind(AssertUnwindSafe(|| check(&frame, &outcome, &seen))).unwrap_or(false)
    }

    #[test]
    fn what_was_written_wrongly_is_found() {
        let spoils: [fn(&mut Outcome); 6] = [
            |outcome| outcome.way = 0,
            |outcome| outcome.reason = Reason::NotOurs,
            |outcome| outcome.frame.truncate(outcome.frame.len() - 1),
            |outcome| outcome.frame.push(0),
            |outcome| *outcome.frame.last_mut().expect("a byte") ^= 1,
            |outcome| {
                let (at, is_v6) = network(&outcome.frame);
                outcome.frame[at + if is_v6 { 5 } else { 3 }] ^= 1;
            },
        ];
        for (nth, spoil) in spoils.into_iter().enumerate() {
            assert!(finds(spoil), "{nth}");
        }
    }

    #[test]
    fn a_lost_entry_and_a_moved_flow_are_found() {
        let mut dice = Dice::seeded(1);
        let world = dice.world(1 << 40);
        (0..8).for_each(|_| dice.populate(&world, 64));
        let before = entries::<FlowKeyV4>(&world);
        survive(&world, &before);
        let (key, entry) = before[0];
        world.v4.borrow_mut().flows.remove(&key);
        assert!(catch_unwind(AssertUnwindSafe(|| survive(&world, &before))).is_err());
        let moved = FlowEntry { backend: entry.backend ^ 1, ..entry };
        world.v4.borrow_mut().flows.insert(key, moved);
        let in_service = world.backend(entry.backend).is_some_and(|backend| backend.is_in_service());
        assert_eq!(catch_unwind(AssertUnwindSafe(|| survive(&world, &before))).is_err(), in_service);
        assert!(in_service, "the seed's first entry is one of a backend in service");
    }
}
