//! The links between members: each direction loses, delays, reorders and breaks on its own.

use std::collections::BTreeMap;

use crate::{
    rng::Rng,
    time::{MS, Ns, US},
};

/// One direction between two members.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Faults that cut it now.
    cuts: u32,
    /// When it was last cut or mended.
    changed: Ns,
}

/// All directions.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    links: BTreeMap<(u8, u8), Link>,
    /// Packets of 1000 that any link loses.
    loss_permille: u64,
    /// When links last lost any.
    lost_until: Ns,
    /// Packets of 1000 that any path delivers twice.
    pub(crate) twins_permille: u64,
    /// The fastest a packet can be.
    delay: Ns,
    /// What chance adds to it; beyond the gap between two packets it reorders them.
    jitter: Ns,
    rng: Rng,
}

impl Network {
    /// Links that work.
    pub(crate) fn new(delay: Ns, jitter: Ns, rng: Rng) -> Self {
        Self { links: BTreeMap::new(), loss_permille: 0, lost_until: 0, twins_permille: 0, delay, jitter, rng }
    }

    /// When a packet sent now arrives; `None` if it is lost.
    pub(crate) fn carry(&mut self, now: Ns, from: u8, to: u8) -> Option<Ns> {
        if self.is_cut(from, to) || self.rng.chance(self.loss_permille) {
            return None;
        }
        Some(now + self.latency())
    }

    /// When a packet arrives on a path outside the cluster's network: to a server, to a client, from the router.
    pub(crate) fn carry_outside(&mut self, now: Ns) -> Option<Ns> {
        let is_lost = self.rng.chance(self.loss_permille / 4);
        (!is_lost).then(|| now + 10 * US + self.rng.below(200 * US))
    }

    /// When a packet that arrives at `at` arrives once more, if it does.
    pub(crate) fn twin(&mut self, at: Ns) -> Option<Ns> {
        let delay = self.rng.pick(&[10 * US, MS, 30 * MS]).unwrap_or(MS);
        let after = self.rng.below(delay);
        self.rng.chance(self.twins_permille).then_some(at + after)
    }

    /// How long a segment of a TCP connection takes, retransmissions included.
    pub(crate) fn latency_of_stream(&mut self) -> Ns {
        let lost = self.rng.chance(self.loss_permille);
        self.latency() + if lost { self.rng.between(5 * MS, 250 * MS) } else { 0 }
    }

    /// Whether this direction is cut.
    pub(crate) fn is_cut(&self, from: u8, to: u8) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.cuts > 0)
    }

    /// Whether both directions have worked since `since`.
    pub(crate) fn worked_since(&self, a: u8, b: u8, since: Ns) -> bool {
        a == b
            || [(a, b), (b, a)].iter().all(|pair| {
                self.links.get(pair).is_none_or(|link| link.cuts == 0 && (link.changed == 0 || link.changed < since))
            })
    }

    /// From now on links lose so many packets of 1000.
    pub(crate) fn lose(&mut self, now: Ns, permille: u64) {
        if self.loss_permille > 0 {
            self.lost_until = now;
        }
        self.loss_permille = permille;
    }

    /// Whether links have lost packets since `since`.
    pub(crate) fn has_lost_since(&self, since: Ns) -> bool {
        self.loss_permille > 0 || self.lost_until > since
    }

    /// Cuts one direction.
    pub(crate) fn cut(&mut self, now: Ns, from: u8, to: u8) {
        let link = self.links.entry((from, to)).or_default();
        link.cuts += 1;
        link.changed = now;
    }

    /// Takes back one cut.
    pub(crate) fn mend(&mut self, now: Ns, from: u8, to: u8) {
        if let Some(link) = self.links.get_mut(&(from, to)) {
            link.cuts = link.cuts.saturating_sub(1);
            link.changed = now;
        }
    }

    /// Takes back all cuts and losses.
    pub(crate) fn mend_all(&mut self, now: Ns) {
        self.lose(now, 0);
        self.twins_permille = 0;
        for link in self.links.values_mut().filter(|link| link.cuts > 0) {
            *link = Link { cuts: 0, changed: now };
        }
    }

    fn latency(&mut self) -> Ns {
        self.delay + self.rng.below(self.jitter.max(1))
    }
}
