use zerocopy::FromZeros as _;

use super::{owner::eligible, unknown::first_owners, *};
use crate::rank::{Seed, bit, rank, seed};

/// A cluster of the members 1 to 4 as member 1 sees it; it has no other tables.
struct View {
    node: Node,
    liveness: Liveness,
    heard_ns: [u64; 65],
}

/// Some time after the start, so that a stamp of 0 is old.
const NOW_NS: u64 = 1_000_000_000_000;

impl View {
    fn of(forwarding: &[u8], eligible: &[u8]) -> Self {
        let mut node = Node::new_zeroed();
        (node.id, node.silence_ns, node.configured, node.members) = (1, 100_000_000, 0b1111, 4);
        for (slot, id) in node.seeds.iter_mut().zip(1..=4) {
            *slot = Seed { seed: seed(id), id: u64::from(id) };
        }
        let mask = |ids: &[u8]| ids.iter().map(|id| bit(*id)).sum();
        let liveness = Liveness {
            forwarding: mask(forwarding),
            eligible: mask(eligible),
            lease_until_ns: NOW_NS,
            ..Liveness::new_zeroed()
        };
        Self { node, liveness, heard_ns: [0; 65] }
    }

    /// The lease has lapsed, and these were heard just in time.
    fn lapsed(mut self, heard: &[u8]) -> Self {
        self.liveness.lease_until_ns = NOW_NS - 1;
        heard.iter().for_each(|id| self.heard_ns[usize::from(*id)] = NOW_NS - self.node.silence_ns + 1);
        self
    }
}

impl Tables for View {
    fn now_ns(&self) -> u64 {
        NOW_NS
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    fn probe_heard_ns(&self, id: u8) -> u64 {
        self.heard_ns[usize::from(id)]
    }

    fn may_be_ours(&self, _: Words) -> bool {
        false
    }

    fn member_at(&self, _: &Address) -> Option<u8> {
        None
    }

    fn service(&self, _: &ServiceKey) -> Option<Service> {
        None
    }

    fn ring(&self, _: u32, _: usize) -> u16 {
        0
    }

    fn backend(&self, _: u16) -> Option<&Target> {
        None
    }

    fn member(&self, _: u8) -> Option<&Target> {
        None
    }

    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners {
        rank(flow_hash, &self.node.seeds, self.node.members, candidates)
    }

    fn take_budget(&self, _: usize) -> bool {
        false
    }
}

/// The acting owner of an unknown flow whose members rank 2, 3, 4, 1.
fn owner_of_a_miss(view: &View) -> u8 {
    let hash = hash_ranked(view, [2, 3, 4, 1]);
    acting_owner(view, view.rank(hash, view.node.configured), eligible(view), || hash)
}

/// The acting owner of a known flow of these owners, whose members rank 4, 3, 2, 1.
fn owner_of_a_hit(view: &View, primary: u8, backup: u8) -> u8 {
    let hash = hash_ranked(view, [4, 3, 2, 1]);
    acting_owner(view, Owners { primary, backup }, forwarding(view), || hash)
}

fn hash_ranked(view: &View, order: [u8; 4]) -> u64 {
    let ranked = |hash: &u64| {
        let top = view.rank(*hash, 0b1111);
        let rest = view.rank(*hash, 0b1111 & !bit(top.primary) & !bit(top.backup));
        [top.primary, top.backup, rest.primary, rest.backup] == order
    };
    (1..).map(crate::hash::mix).find(ranked).expect("every order occurs")
}

#[test]
fn a_miss_is_owned_by_the_best_ranked_eligible_member() {
    let all = [1, 2, 3, 4];
    assert_eq!(owner_of_a_miss(&View::of(&all, &all)), 2);
    assert_eq!(owner_of_a_miss(&View::of(&all, &[1, 3, 4])), 3);
    assert_eq!(owner_of_a_miss(&View::of(&all, &[1, 4])), 4);
    assert_eq!(owner_of_a_miss(&View::of(&all, &[1])), 1);
}

#[test]
fn when_nobody_is_eligible_forwarding_decides_and_when_nobody_is_left_it_is_this_member() {
    assert_eq!(owner_of_a_miss(&View::of(&[1, 2, 3, 4], &[])), 2);
    assert_eq!(owner_of_a_miss(&View::of(&[3], &[])), 3);
    assert_eq!(owner_of_a_miss(&View::of(&[], &[])), 1);
    // Known to nobody here.
    assert_eq!(owner_of_a_miss(&View::of(&[], &[64])), 1);
}

#[test]
fn a_hit_is_owned_by_its_primary_its_backup_or_the_best_ranked_who_forwards() {
    let all = [1, 2, 3, 4];
    assert_eq!(owner_of_a_hit(&View::of(&all, &[]), 2, 3), 2);
    assert_eq!(owner_of_a_hit(&View::of(&[1, 3, 4], &all), 2, 3), 3);
    assert_eq!(owner_of_a_hit(&View::of(&[4], &all), 2, 3), 4);
    assert_eq!(owner_of_a_hit(&View::of(&[], &all), 2, 3), 1);
    assert_eq!(owner_of_a_hit(&View::of(&[], &all), 2, 1), 1);
    assert_eq!(owner_of_a_hit(&View::of(&all, &all), 0, 0), 4);
}

/// The owners that an entry of a flow whose members rank 2, 3, 4, 1 begins with.
fn owners_of_an_entry(view: &View) -> (u8, u8) {
    let hash = hash_ranked(view, [2, 3, 4, 1]);
    let owners = first_owners(view, hash, view.rank(hash, view.node.configured));
    (owners.primary, owners.backup)
}

#[test]
fn an_entry_names_no_owner_that_cannot_have_heard_of_its_flow() {
    let all = [1, 2, 3, 4];
    assert_eq!(owners_of_an_entry(&View::of(&all, &all)), (2, 3));
    assert_eq!(owners_of_an_entry(&View::of(&all, &[1, 3, 4])), (3, 4));
    assert_eq!(owners_of_an_entry(&View::of(&all, &[1, 2, 4])), (2, 4));
    // Whoever delivers knows it.
    assert_eq!(owners_of_an_entry(&View::of(&all, &[2])), (2, 1));
    assert_eq!(owners_of_an_entry(&View::of(&all, &[1])), (1, 0));
    assert_eq!(owners_of_an_entry(&View::of(&all, &all).lapsed(&[])), (1, 0));
}

#[test]
fn a_lapsed_lease_leaves_those_who_were_heard() {
    let all = [1, 2, 3, 4];
    assert_eq!(owner_of_a_miss(&View::of(&all, &all).lapsed(&[2, 3, 4])), 2);
    assert_eq!(owner_of_a_miss(&View::of(&all, &all).lapsed(&[3, 4])), 3);
    // Neither owner is heard: the masks of an agent that is gone must not bring them back.
    assert_eq!(owner_of_a_miss(&View::of(&all, &all).lapsed(&[4])), 4);
    assert_eq!(owner_of_a_hit(&View::of(&all, &all).lapsed(&[2]), 4, 3), 2);
    // Own misses are handed on, as long as somebody is there to take them.
    assert_eq!(owner_of_a_miss(&View::of(&all, &[1]).lapsed(&[3])), 3);
    assert_eq!(owner_of_a_miss(&View::of(&all, &all).lapsed(&[])), 1);
    assert_eq!(owner_of_a_hit(&View::of(&all, &all).lapsed(&[]), 2, 3), 1);
}

#[test]
fn a_peer_is_silent_from_the_bound_on() {
    let mut view = View::of(&[1, 2, 3, 4], &[1, 2, 3, 4]).lapsed(&[2, 3]);
    assert_eq!(view.heard_lately(), bit(2) | bit(3));
    view.heard_ns[2] -= 1;
    // A stamp from the future is one of another CPU.
    view.heard_ns[4] = NOW_NS + 1;
    assert_eq!(view.heard_lately(), bit(3) | bit(4));
}
