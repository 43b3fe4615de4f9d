//! Building Maglev rings (Eisenbud et al., NSDI 2016, section 3.4).

use lb_common::{
    address::Address,
    hash::mix,
    ring::{RING_SLOTS, Ring},
};

/// A backend's share of a service's new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its identity within the service: decides which ring slots it prefers.
    pub address: Address,
    /// What is written into the ring: its local slot.
    pub slot: u16,
    /// Turns relative to the others; 0 for none.
    pub weight: u16,
}

/// Lets the backends take ring slots by turns, each following a permutation of its own, until all are taken.
///
/// The permutation and the order of the turns depend on addresses only, so every member builds the same ring, however its
/// configuration lists the backends and wherever they are in its tables. A weight below the highest skips turns in
/// proportion, as in Katran.
pub fn build(shares: &[Share]) -> Ring {
    let mut ring = Ring { slots: [0; size_of::<Ring>() / size_of::<u16>()] };
    let mut takers: Vec<Taker> = shares.iter().filter(|share| share.weight > 0).map(Taker::new).collect();
    takers.sort_unstable_by_key(|taker| taker.share.address);
    let Some(heaviest) = takers.iter().map(|taker| u32::from(taker.share.weight)).max() else { return ring };
    let mut left = RING_SLOTS;
    while left > 0 {
        for taker in &mut takers {
            taker.credit += u32::from(taker.share.weight);
            if taker.credit < heaviest {
                continue;
            }
            taker.credit -= heaviest;
            let slot = taker.next_free(&ring);
            ring.slots[slot] = taker.share.slot;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    ring
}

struct Taker {
    share: Share,
    next: usize,
    skip: usize,
    credit: u32,
}

impl Taker {
    fn new(share: &Share) -> Self {
        let hash = hash(&share.address);
        Self {
            share: *share,
            next: (hash as u32) as usize % RING_SLOTS,
            // Never 0, and the number of slots is prime: the walk visits all of them.
            skip: (hash >> 32) as usize % (RING_SLOTS - 1) + 1,
            credit: 0,
        }
    }

    /// The next slot of its permutation that nobody has taken; the caller knows that there is one.
    fn next_free(&mut self, ring: &Ring) -> usize {
        loop {
            let slot = self.next;
            self.next += self.skip;
            if self.next >= RING_SLOTS {
                self.next -= RING_SLOTS;
            }
            if ring.slots[slot] == 0 {
                return slot;
            }
        }
    }
}

fn hash(address: &Address) -> u64 {
    let value = u128::from_be_bytes(*address);
    mix((value >> 64) as u64 ^ mix(value as u64))
}

#[cfg(test)]
mod tests {
    use lb_common::address::mapped;
    use proptest::prelude::*;

    use super::*;

    fn share(last: u8, slot: u16, weight: u16) -> Share {
        Share { address: mapped([10, 0, 2, last]), slot, weight }
    }

    fn shares(count: u8) -> Vec<Share> {
        (1..=count).map(|last| share(last, u16::from(last), 100)).collect()
    }

    fn count(ring: &Ring, slot: u16) -> usize {
        ring.slots[..RING_SLOTS].iter().filter(|&&taken| taken == slot).count()
    }

    #[test]
    fn without_backends_the_ring_is_empty() {
        assert!(build(&[]).slots.iter().all(|&slot| slot == 0));
        assert!(build(&[share(1, 1, 0)]).slots.iter().all(|&slot| slot == 0));
    }

    #[test]
    fn every_slot_is_taken_and_shares_are_equal() {
        let ring = build(&shares(10));
        for slot in 1..=10 {
            let got = count(&ring, slot);
            assert!(got.abs_diff(RING_SLOTS / 10) <= 1, "backend {slot} has {got} slots");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let ring = build(&[share(1, 1, 1), share(2, 2, 10), share(3, 3, 100), share(4, 4, 0)]);
        let expected = |weight: usize| RING_SLOTS * weight / 111;
        assert!(count(&ring, 1).abs_diff(expected(1)) <= 2);
        assert!(count(&ring, 2).abs_diff(expected(10)) <= 2);
        assert!(count(&ring, 3).abs_diff(expected(100)) <= 4);
        assert_eq!(count(&ring, 4), 0);
    }

    #[test]
    fn removing_a_backend_moves_few_flows_of_the_others() {
        let all = build(&shares(10));
        for gone in 1..=10_u16 {
            let mut left = shares(10);
            left.retain(|share| share.slot != gone);
            let ring = build(&left);
            let moved = (0..RING_SLOTS).filter(|&i| all.slots[i] != gone && all.slots[i] != ring.slots[i]).count();
            // The paper's figure 12 has about 1 % at this ratio of slots to backends.
            assert!(moved < RING_SLOTS / 50, "{moved} slots of others changed");
        }
    }

    proptest! {
        #[test]
        fn members_agree_whatever_their_slots_and_order(count in 1..20_u8, rotate in 0..20_usize, base in 1..1000_u16) {
            let here = shares(count);
            let mut there: Vec<Share> = here.iter().map(|s| Share { slot: s.slot + base, ..*s }).collect();
            there.rotate_left(rotate % usize::from(count));
            let (here, there) = (build(&here), build(&there));
            prop_assert!((0..RING_SLOTS).all(|i| here.slots[i] + base == there.slots[i]));
        }
    }
}
