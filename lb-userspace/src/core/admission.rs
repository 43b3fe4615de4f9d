//! How many new flows may be recorded while the table fills: so many that no kind of them can fill it, nor starve the others.
//!
//! Every class has a reserve in the table that no other class gets. What is left is anybody's. A class that has used less
//! than half of what it may use has the budget that is configured; beyond that its budget shrinks with its room, to nothing
//! where the others' reserves begin. So a flood of one class ends in an equilibrium with its own timeouts.

use lb_common::{
    flow::{FlowKey as _, SCTP, UDP},
    node::{BUDGET_ANSWERS, BUDGET_CLASSES, BUDGET_DERIVED, BUDGET_SCTP, BUDGET_TCP, BUDGET_UDP},
};

use super::table::Row;

/// Classes of flows; answers to clients have a budget, too, and no place in the table.
pub const FLOW_CLASSES: usize = BUDGET_CLASSES - 1;
/// The part of the table that is a class's alone.
const RESERVE: usize = 8;

const _: () = assert!(BUDGET_ANSWERS == FLOW_CLASSES && FLOW_CLASSES < RESERVE);

/// Flows of one family by class.
pub type Used = [usize; FLOW_CLASSES];

/// What may be recorded now, of what is `configured`, in a table of `capacity` flows of which `used` are there.
pub fn budgets(configured: &[u32; BUDGET_CLASSES], used: &Used, capacity: usize) -> [u32; BUDGET_CLASSES] {
    let reserve = capacity / RESERVE;
    let mut budgets = *configured;
    for (class, (budget, own)) in budgets.iter_mut().zip(used).enumerate() {
        let others = used.iter().enumerate().filter(|(other, _)| *other != class);
        let taken: usize = others.map(|(_, others)| (*others).max(reserve)).sum();
        let limit = capacity.saturating_sub(taken);
        let (room, half) = (limit.saturating_sub(*own), limit.div_ceil(2).max(1));
        if room < half {
            *budget = (u64::from(*budget) * room as u64 / half as u64) as u32;
        }
    }
    budgets
}

/// The flows of a member, by family and class: counted in passes over all of them, and what came meanwhile.
#[derive(Default)]
pub(crate) struct Census {
    counted: [Used; 2],
    counting: [Used; 2],
}

impl Census {
    /// A flow came.
    pub(crate) fn add(&mut self, row: &Row) {
        place(&mut self.counted, row);
    }

    /// The pass meets a flow.
    pub(crate) fn meet(&mut self, row: &Row) {
        place(&mut self.counting, row);
    }

    /// The pass is over; the next begins.
    pub(crate) fn end_of_pass(&mut self) {
        self.counted = std::mem::take(&mut self.counting);
    }

    /// By family (`V4`, `V6`).
    pub(crate) const fn used(&self) -> &[Used; 2] {
        &self.counted
    }
}

fn place(counts: &mut [Used; 2], row: &Row) {
    let class = match (row.key.protocol(), row.record.backend.witnessed) {
        (UDP, _) => BUDGET_UDP,
        (_, false) => BUDGET_DERIVED,
        (SCTP, true) => BUDGET_SCTP,
        (_, true) => BUDGET_TCP,
    };
    let family = usize::from(matches!(row.key, super::Key::V6(_)));
    if let Some(count) = counts.get_mut(family).and_then(|classes| classes.get_mut(class)) {
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURED: [u32; BUDGET_CLASSES] = [1000, 1000, 1000, 1000, 77];
    const CAPACITY: usize = 80_000;

    fn used(tcp: usize, udp: usize, derived: usize, sctp: usize) -> Used {
        let mut used = [0; FLOW_CLASSES];
        (used[BUDGET_TCP], used[BUDGET_UDP], used[BUDGET_DERIVED], used[BUDGET_SCTP]) = (tcp, udp, derived, sctp);
        used
    }

    #[test]
    fn a_table_with_room_takes_what_is_configured() {
        assert_eq!(budgets(&CONFIGURED, &used(0, 0, 0, 0), CAPACITY), CONFIGURED);
        assert_eq!(budgets(&CONFIGURED, &used(25_000, 9_000, 0, 0), CAPACITY), CONFIGURED);
    }

    #[test]
    fn a_class_slows_down_over_half_of_its_share_and_stops_at_the_others_reserves() {
        // Three reserves of 10,000 are the others'.
        let tcp = |flows| budgets(&CONFIGURED, &used(flows, 0, 0, 0), CAPACITY)[BUDGET_TCP];
        assert_eq!([25_000, 37_500, 49_975, 50_000, 80_000].map(tcp), [1000, 500, 1, 0, 0]);
    }

    #[test]
    fn a_flood_of_one_class_takes_nothing_from_the_budgets_of_the_others() {
        let [tcp, udp, derived, sctp, answers] = budgets(&CONFIGURED, &used(50_000, 0, 0, 0), CAPACITY);
        assert_eq!([tcp, answers], [0, 77]);
        assert_eq!([udp, derived, sctp], [1000; 3]);
    }

    /// Each class at the rate of a flood, in every order: the table is never full, and who comes late has its reserve.
    #[test]
    fn floods_of_all_classes_leave_each_its_reserve() {
        for first in 0..FLOW_CLASSES {
            let mut flows = [0; FLOW_CLASSES];
            for late in [false, true] {
                for _ in 0..10_000 {
                    let budgets = budgets(&CONFIGURED, &flows, CAPACITY);
                    for class in (0..FLOW_CLASSES).filter(|class| late || *class == first) {
                        flows[class] += budgets[class].min(100) as usize;
                    }
                }
                assert!(flows.iter().sum::<usize>() <= CAPACITY, "{flows:?}");
            }
            assert!(flows.iter().all(|flows| *flows > CAPACITY / RESERVE / 2), "{flows:?}");
        }
    }

    #[test]
    fn the_smallest_tables_make_sense() {
        for capacity in 0..20 {
            for tcp in 0..20 {
                assert!(budgets(&CONFIGURED, &used(tcp, 0, 0, 0), capacity)[BUDGET_TCP] <= 1000);
            }
        }
        assert_eq!(budgets(&CONFIGURED, &used(0, 0, 0, 0), 16), CONFIGURED);
    }
}
