//! Scores and ranks: which members own a flow.
//!
//! Highest random weight (D. Thaler, C. Ravishankar, 1998): one score per member, the highest is
//! the primary, the second highest the backup. Adding a member takes flows only to itself, and the
//! old primary is then the new backup; removing the primary makes the old backup primary.

use crate::hash::mix;

/// Members a cluster may have; ids are 1 to this.
pub const MEMBERS_MAX: usize = 64;

/// The bit of member `id` (1..=64) in a mask; 0 for id 0, which stands for "none".
#[inline(always)]
pub const fn bit(id: u8) -> u64 {
    if id == 0 || id as usize > MEMBERS_MAX { 0 } else { 1 << (id - 1) }
}

/// The seed of member `id`: a constant of the id, so that all members score alike.
#[inline(always)]
pub const fn seed(id: u8) -> u64 {
    mix((id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Member `id`'s score for a flow: 56 bits of score, a one that keeps it above 0 ("none"), and the id, which breaks ties.
///
/// The value stays below 2^63, because the ranking compares by signed differences.
#[inline(always)]
pub const fn score(flow_hash: u64, member_seed: u64, id: u8) -> u64 {
    ((mix(flow_hash ^ member_seed) >> 1) & !127) | 64 | (id.wrapping_sub(1) & 63) as u64
}

/// The two owners of a flow; 0 stands for "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// The member with the highest score.
    pub primary: u8,
    /// The member with the second highest score.
    pub backup: u8,
}

/// The two highest scores among the members in `candidates`.
///
/// `seeds` holds the configured members as (id, seed), `count` of them. Free of branches on the
/// scores: a comparison would double the verifier's states in each round.
#[inline(always)]
pub fn rank(flow_hash: u64, seeds: &[Seed; MEMBERS_MAX], count: u32, candidates: u64) -> Owners {
    let (mut best, mut second) = (0_u64, 0_u64);
    let mut i = 0;
    while i < MEMBERS_MAX {
        if i as u32 >= count {
            break;
        }
        let member = &seeds[i];
        let wanted = opaque(0_u64.wrapping_sub((candidates >> (member.id.wrapping_sub(1) & 63)) & 1));
        let value = score(flow_hash, member.seed, member.id as u8) & wanted;
        let difference = value.wrapping_sub(best);
        let smaller = opaque(((difference as i64) >> 63) as u64);
        let high = value.wrapping_sub(difference & smaller);
        let low = best.wrapping_add(difference & smaller);
        best = high;
        let difference = low.wrapping_sub(second);
        let smaller = opaque(((difference as i64) >> 63) as u64);
        second = low.wrapping_sub(difference & smaller);
        i += 1;
    }
    Owners { primary: id_of(best), backup: id_of(second) }
}

/// Hides where a value comes from: the optimiser would turn a mask back into a branch, the verifier would keep states apart.
#[inline(always)]
pub fn opaque(mask: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut hidden = mask;
        // SAFETY: moves the register to itself. (An empty sequence would give two source lines one
        // instruction offset, and the kernel refuses such line information.)
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) hidden, options(pure, nomem, nostack)) };
        hidden
    }
    #[cfg(not(target_arch = "bpf"))]
    mask
}

#[inline(always)]
const fn id_of(value: u64) -> u8 {
    if value == 0 { 0 } else { (value & 63) as u8 + 1 }
}

crate::map_type! {
    /// One configured member, as the ranking needs it.
    pub struct Seed: 16 {
        /// `seed(id)`.
        pub seed: u64,
        /// The member's id.
        pub id: u64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seeds(ids: &[u8]) -> [Seed; MEMBERS_MAX] {
        let mut seeds = [Seed { seed: 0, id: 0 }; MEMBERS_MAX];
        for (slot, id) in seeds.iter_mut().zip(ids) {
            *slot = Seed { seed: seed(*id), id: u64::from(*id) };
        }
        seeds
    }

    /// Sorts, where the code under test must not.
    fn reference(flow_hash: u64, ids: &[u8]) -> Owners {
        let mut ranked: Vec<(u64, u8)> = ids.iter().map(|id| (mix(flow_hash ^ seed(*id)) >> 8, *id)).collect();
        ranked.sort_by(|a, b| b.cmp(a));
        let id = |at: usize| ranked.get(at).map_or(0, |(_, id)| *id);
        Owners { primary: id(0), backup: id(1) }
    }

    fn members() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::btree_set(1..=64_u8, 1..=64).prop_map(|ids| ids.into_iter().collect())
    }

    fn owners(flow_hash: u64, ids: &[u8]) -> Owners {
        rank(flow_hash, &seeds(ids), ids.len() as u32, u64::MAX)
    }

    proptest! {
        #[test]
        fn ranking_equals_sorting(flow_hash: u64, ids in members()) {
            prop_assert_eq!(owners(flow_hash, &ids), reference(flow_hash, &ids));
        }

        #[test]
        fn candidates_are_ranked_as_if_alone(flow_hash: u64, ids in members(), mask: u64) {
            let left: Vec<u8> = ids.iter().copied().filter(|id| mask & bit(*id) != 0).collect();
            let ranked = rank(flow_hash, &seeds(&ids), ids.len() as u32, mask);
            prop_assert_eq!(ranked, reference(flow_hash, &left));
        }

        #[test]
        fn after_an_addition_the_old_primary_is_in_the_new_pair(flow_hash: u64, ids in members(), new in 1..=64_u8) {
            prop_assume!(!ids.contains(&new));
            let old = owners(flow_hash, &ids);
            let more: Vec<u8> = ids.iter().copied().chain([new]).collect();
            let pair = owners(flow_hash, &more);
            prop_assert!(pair.primary == old.primary || (pair.primary == new && pair.backup == old.primary));
        }

        #[test]
        fn when_the_primary_leaves_the_backup_becomes_primary(flow_hash: u64, ids in members()) {
            let old = owners(flow_hash, &ids);
            let left: Vec<u8> = ids.iter().copied().filter(|id| *id != old.primary).collect();
            prop_assert_eq!(owners(flow_hash, &left).primary, old.backup);
        }
    }

    #[test]
    fn owners_are_spread_equally() {
        for count in [2_u8, 3, 8, 64] {
            let ids: Vec<u8> = (1..=count).collect();
            let mut owned = [[0_u32; 65]; 2];
            let flows = 40_000_u64;
            for flow in 0..flows {
                let pair = owners(mix(flow.wrapping_mul(0x1234_5678_9abc_def1)), &ids);
                owned[0][usize::from(pair.primary)] += 1;
                owned[1][usize::from(pair.backup)] += 1;
            }
            let mean = flows as f64 / f64::from(count);
            // Five standard deviations of a binomial distribution.
            let slack = 5.0 * mean.sqrt();
            for role in &owned {
                for id in &ids {
                    let got = f64::from(role[usize::from(*id)]);
                    assert!((got - mean).abs() < slack, "{count} members: {id} owns {got}, mean {mean}");
                }
            }
        }
    }
}
