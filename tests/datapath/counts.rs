//! The counters that must agree with each other: whatever reason counts a packet, its service, and the backend or member it
//! went to, count it too.

use std::ops::Sub;

use lb_common::{
    packet::ETHERNET,
    reason::{Action, Counter, Reason, ServiceCounters},
};
use zerocopy::FromZeros as _;

/// Rings, thus services with counters, in the tests.
pub(crate) const RINGS: u32 = 16;
/// Backend slots with counters in the tests.
pub(crate) const SLOTS: u32 = 16;

/// All counters, summed over the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// By reason, in the order of `Reason::ALL`.
    pub(crate) reasons: Vec<Counter>,
    /// By `Service::ring`.
    pub(crate) services: Vec<ServiceCounters>,
    /// Deliveries by slot.
    pub(crate) backends: Vec<Counter>,
    /// Hand-offs by member id.
    pub(crate) members: Vec<Counter>,
}

/// Packets and bytes of both.
pub(crate) fn sum<'c>(counters: impl IntoIterator<Item = &'c Counter>) -> Counter {
    counters.into_iter().fold(Counter::new_zeroed(), |sum, one| Counter {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}

fn less(after: &Counter, before: &Counter) -> Counter {
    Counter { packets: after.packets - before.packets, bytes: after.bytes - before.bytes }
}

impl Sub<&Self> for Counts {
    type Output = Self;

    fn sub(self, before: &Self) -> Self {
        let all = |after: &[Counter], before: &[Counter]| after.iter().zip(before).map(|(a, b)| less(a, b)).collect();
        Self {
            reasons: all(&self.reasons, &before.reasons),
            services: (self.services.iter().zip(&before.services))
                .map(|(a, b)| ServiceCounters {
                    delivered: less(&a.delivered, &b.delivered),
                    handed_off: less(&a.handed_off, &b.handed_off),
                    answered: less(&a.answered, &b.answered),
                    dropped: less(&a.dropped, &b.dropped),
                })
                .collect(),
            backends: all(&self.backends, &before.backends),
            members: all(&self.members, &before.members),
        }
    }
}

impl Counts {
    /// The packets that met this action.
    pub(crate) fn of(&self, action: Action) -> Counter {
        sum(Reason::ALL
            .iter()
            .zip(&self.reasons)
            .filter(|(reason, _)| reason.action() == action)
            .map(|(_, count)| count))
    }

    /// The reasons that were counted.
    pub(crate) fn seen(&self) -> Vec<(Reason, Counter)> {
        let all = Reason::ALL.iter().copied().zip(self.reasons.iter().copied());
        all.filter(|(_, count)| count.packets != 0 || count.bytes != 0).collect()
    }

    /// What each of the counters says of the same packets.
    #[track_caller]
    pub(crate) fn assert_they_agree(&self) {
        let services = |pick: fn(&ServiceCounters) -> &Counter| sum(self.services.iter().map(pick));
        assert_eq!(sum(&self.backends), self.of(Action::Deliver), "deliveries by backend");
        assert_eq!(sum(&self.members), self.of(Action::HandOff), "hand-offs by member");
        assert_eq!(services(|service| &service.delivered), self.of(Action::Deliver), "deliveries by service");
        // What is counted before the service is known, is counted by its reason only.
        let of = |reasons: &[Reason]| {
            sum(self.seen().iter().filter(|(reason, _)| reasons.contains(reason)).map(|(_, count)| count))
        };
        let fragments = of(&[Reason::HandOffFragment, Reason::HandOffFragmentRound]);
        let handed_off = self.of(Action::HandOff);
        assert_eq!(services(|service| &service.handed_off), less(&handed_off, &fragments), "hand-offs by service");
        assert_eq!(services(|service| &service.answered), of(&[Reason::TooBigAnswered]), "answers by service");
        let late = of(&LATE_DROPS);
        let dropped = services(|service| &service.dropped);
        assert!(dropped.packets <= late.packets, "drops by service: {dropped:?} of {late:?}");
    }

    /// One packet of so many bytes in its frame was counted, once; for what.
    #[track_caller]
    pub(crate) fn assert_one(&self, frame_bytes: usize) -> Reason {
        let [(reason, count)] = self.seen()[..] else { panic!("one packet counted as {:?}", self.seen()) };
        assert_eq!(count, Counter { packets: 1, bytes: (frame_bytes - ETHERNET) as u64 }, "{}", reason.name());
        self.assert_they_agree();
        reason
    }
}

/// Drops of packets whose service is known, or may be.
const LATE_DROPS: [Reason; 8] = [
    Reason::DropTtl,
    Reason::DropCongestion,
    Reason::DropTooBig,
    Reason::DropNoBackend,
    Reason::DropNoNextHop,
    Reason::DropHeadroom,
    Reason::DropMalformed,
    Reason::DropAnswerBudget,
];
