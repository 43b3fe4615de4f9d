//! Links that break: single ones, one way, around a member, between two halves, and so that who reaches whom has no order.

use crate::{
    agenda::Happening,
    faults::Fault,
    time::{MS, Ns, S},
    world::World,
};

/// Which links break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Partition {
    /// Those of two members with each other.
    Pair,
    /// One direction between two members.
    OneWay,
    /// All those of a member.
    Member,
    /// Those between two halves.
    Halves,
    /// A member is heard by nobody, and hears all; or hears nobody, and is heard.
    Deaf,
    /// Any, in any direction, but those with one member: all reach it, and not each other.
    Tangle,
}

impl World {
    /// Links of `member` with others break for a while.
    pub(crate) fn partition(&mut self, kind: Partition, member: u8) {
        let others: Vec<u8> = self.hosts.keys().copied().filter(|&id| id != member).collect();
        let Some(other) = self.rng.pick(&others) else { return };
        let both = |a, b| [(a, b), (b, a)];
        let (name, cuts): (_, Vec<(u8, u8)>) = match kind {
            Partition::Pair => ("link cut", both(member, other).to_vec()),
            Partition::OneWay => ("link cut one way", vec![(member, other)]),
            Partition::Member => ("member isolated", others.iter().flat_map(|&id| both(member, id)).collect()),
            Partition::Halves => {
                let (with, against): (Vec<u8>, Vec<u8>) = others.iter().partition(|_| self.rng.chance(500));
                let side = with.into_iter().chain([member]);
                let cuts = side.flat_map(|a| against.iter().flat_map(move |&b| both(a, b)).collect::<Vec<_>>());
                ("cluster split in two", cuts.collect())
            }
            Partition::Deaf => {
                let is_deaf = self.rng.chance(500);
                let cut = |&id: &u8| if is_deaf { (id, member) } else { (member, id) };
                (
                    if is_deaf { "member hears nobody" } else { "member is heard by nobody" },
                    others.iter().map(cut).collect(),
                )
            }
            Partition::Tangle => {
                let pairs = others.iter().flat_map(|&a| others.iter().filter(move |&&b| a != b).map(move |&b| (a, b)));
                ("partition that is not transitive", pairs.filter(|_| self.rng.chance(400)).collect())
            }
        };
        if cuts.is_empty() {
            return;
        }
        self.stats.count(name);
        let length = self.rng.between(20 * MS, 4 * S);
        self.cut_for(length, cuts);
    }

    /// A member hears nobody, for longer than anybody waits for it.
    pub(crate) fn deafen(&mut self, member: u8) {
        let others: Vec<u8> = self.hosts.keys().copied().filter(|&id| id != member).collect();
        self.stats.count("member hears nobody");
        let length = self.rng.between(2200 * MS, 4 * S);
        self.cut_for(length, others.into_iter().map(|id| (id, member)).collect());
    }

    fn cut_for(&mut self, length: Ns, cuts: Vec<(u8, u8)>) {
        for (from, to) in cuts {
            self.network.cut(self.now, from, to);
            self.agenda.plan(self.now + length, Happening::Fault(Fault::Mend(from, to)));
        }
    }
}
