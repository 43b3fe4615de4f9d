//! A packet's way through the model: `parse -> steer -> write`, as `lb-ebpf` goes it.

use lb_common::{
    address::{is_martian_v4, is_martian_v6},
    liveness::{Heard, Probe},
    node::{BUDGET_ANSWERS, NODE_DROP_OVERSIZED, V4, V6},
    outer::{Purpose, encapsulate, overhead},
    packet::{ECN, ETHERNET, Packet, Part, ROUND, SECOND_CHANCE},
    parse::{Frame as _, Front, Parsed, Ping, ProbeFrame, front, parse},
    reason::{Action, Counter, Reason, ServiceCounters},
    steer::{Tables as _, Verdict, Way, steer},
    target::Target,
};
use zerocopy::FromZeros as _;

use crate::{
    tables::{Family, Model},
    write::{self, Outer},
};

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The counter that was bumped.
    pub reason: Reason,
    /// The frame as it leaves or is passed up; of no meaning where it is dropped.
    pub frame: Vec<u8>,
    /// The interface that it leaves by; 0 if it does not leave.
    pub way: u32,
}

impl Model {
    /// A packet's way.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        if let Front::End(reason) = front(frame, |address| self.may_be_ours(address)) {
            return ended(frame, reason);
        }
        if self.node.id == 0 {
            return ended(frame, Reason::Unconfigured);
        }
        match parse(frame, self, self.ingress) {
            Parsed::V4(packet) => self.carry_out(frame, packet),
            Parsed::V6(packet) => self.carry_out(frame, packet),
            Parsed::Ping(ping) => self.answer(frame, &ping),
            Parsed::Probe(probe) | Parsed::ProbeEcho(probe) => self.take(frame, &probe),
            Parsed::End(reason) => ended(frame, reason),
        }
    }

    fn carry_out<K: Family>(&self, frame: &[u8], mut packet: Packet<K>) -> Outcome {
        let verdict = steer(self, &mut packet);
        let (to, purpose) = match (verdict.way, verdict.reason) {
            (Way::Deliver(backend, _), _) => (backend, Purpose::Delivery),
            (Way::HandOff(member, _), Reason::HandOffSecondChance) => (member, Purpose::SecondChance),
            (Way::HandOff(member, _), Reason::HandOffFragmentRound) => (member, Purpose::Round),
            (Way::HandOff(member, _), _) => (member, Purpose::HandOff),
            (Way::End, _) => {
                self.count(&verdict, Action::Drop, frame);
                return ended(frame, verdict.reason);
            }
        };
        let rewrite = match encapsulate(&packet, purpose, to) {
            Ok(rewrite) => rewrite,
            Err(Reason::DropTooBig) => {
                let outcome = self.oversized(frame, &packet, to);
                self.count(&verdict, outcome.reason.action(), frame);
                return outcome;
            }
            Err(reason) => {
                self.count(&verdict, Action::Drop, frame);
                return ended(frame, reason);
            }
        };
        self.count(&verdict, verdict.reason.action(), frame);
        let is_delivery = matches!(verdict.way, Way::Deliver(..));
        let tos = match purpose {
            Purpose::Delivery => rewrite.inner.tos,
            Purpose::HandOff => rewrite.inner.tos & ECN,
            Purpose::SecondChance => rewrite.inner.tos & ECN | SECOND_CHANCE,
            Purpose::Round => rewrite.inner.tos & ECN | ROUND,
        };
        let outer = Outer { node: &self.node, to, is_delivery, tos, inner: rewrite.inner };
        let frame = write::encapsulated(frame, &packet, &outer);
        Outcome { reason: verdict.reason, frame, way: to.next_hop.ifindex }
    }

    fn oversized<K: Family>(&self, frame: &[u8], packet: &Packet<K>, to: &Target) -> Outcome {
        let is_silent = !packet.ip.is_whole && self.node.flags & NODE_DROP_OVERSIZED != 0;
        let mtu = usize::from(to.next_hop.mtu).saturating_sub(overhead(to)) as u16;
        if is_silent || mtu == 0 || !matches!(packet.part, Part::Whole | Part::FirstFragment) {
            return ended(frame, Reason::DropTooBig);
        }
        if !self.take_budget(BUDGET_ANSWERS) {
            return ended(frame, Reason::DropAnswerBudget);
        }
        let gateway = packet.via_peer.then(|| &self.gateways[if K::IS_V6 { V6 } else { V4 }]);
        let way = gateway.map_or(self.ingress, |hop| hop.ifindex);
        match write::too_big(frame, packet.at, K::IS_V6, mtu, gateway) {
            Some(frame) if way != 0 => Outcome { reason: Reason::TooBigAnswered, frame, way },
            _ => ended(frame, Reason::DropTooBig),
        }
    }

    fn answer(&self, frame: &[u8], ping: &Ping) -> Outcome {
        if !self.take_budget(BUDGET_ANSWERS) {
            return ended(frame, Reason::DropAnswerBudget);
        }
        let is_martian = if ping.is_v6 {
            is_martian_v6(frame.header(ping.at + 8).expect("parsed"))
        } else {
            is_martian_v4(*frame.header(ping.at + 12).expect("parsed"))
        };
        if is_martian {
            return ended(frame, Reason::DropMartian);
        }
        match write::pong(frame, ping) {
            Some(frame) => Outcome { reason: Reason::PingAnswered, frame, way: self.ingress },
            None => ended(frame, Reason::DropTtl),
        }
    }

    fn take(&self, frame: &[u8], from: &ProbeFrame) -> Outcome {
        let probe: &Probe = frame.header(from.probe_at()).expect("parsed");
        let mut heard = self.heard.borrow_mut();
        let heard = heard.entry(from.from).or_insert_with(Heard::new_zeroed);
        match heard.take(&self.node, from.from, probe, self.now_ns) {
            (reason, Some(echo)) => Outcome { reason, frame: write::echo(frame, from, &echo), way: self.ingress },
            (reason, None) => ended(frame, reason),
        }
    }

    /// Counts a packet with its service, and with its target where it went.
    fn count(&self, verdict: &Verdict<'_>, action: Action, frame: &[u8]) {
        let mut counts = self.counts.borrow_mut();
        match (action, verdict.way) {
            (Action::Deliver, Way::Deliver(_, slot)) => bump(counts.backends.entry(slot).or_insert(NONE), frame),
            (Action::HandOff, Way::HandOff(_, id)) => bump(counts.members.entry(id).or_insert(NONE), frame),
            _ => {}
        }
        if verdict.service >= self.services_max {
            return;
        }
        let service = counts.services.entry(verdict.service).or_insert_with(ServiceCounters::new_zeroed);
        bump(
            match action {
                Action::Deliver => &mut service.delivered,
                Action::HandOff => &mut service.handed_off,
                Action::Answer => &mut service.answered,
                Action::Pass | Action::Consume | Action::Drop => &mut service.dropped,
            },
            frame,
        );
    }
}

const NONE: Counter = Counter { packets: 0, bytes: 0 };

fn bump(counter: &mut Counter, frame: &[u8]) {
    counter.packets += 1;
    counter.bytes += frame.len().saturating_sub(ETHERNET) as u64;
}

/// Its way ends here.
fn ended(frame: &[u8], reason: Reason) -> Outcome {
    Outcome { reason, frame: frame.to_vec(), way: 0 }
}
