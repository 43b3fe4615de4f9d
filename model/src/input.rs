//! The fuzzer's input: what the tables are made of, then frames.
//!
//! One byte is the number of bytes that choose the tables; each frame is preceded by its length in two bytes, the lower one first.

use crate::{Dice, check::run_checked};

/// When it is in the model: late enough for everything to have happened before.
const NOW_NS: u64 = 1_000_000_000_000;
/// As many as a flow needs to go through its states.
const FRAMES: usize = 16;
/// Flows that the tables hold at most.
const FLOWS: usize = 6;

/// Makes tables and sends frames, and checks what must hold of each.
pub fn run(input: &[u8]) {
    let Some((length, rest)) = input.split_first() else { return };
    let (tables, mut rest) = rest.split_at(rest.len().min(usize::from(*length)));
    let mut dice = Dice::Bytes(tables);
    let mut world = dice.world(NOW_NS);
    world.flows_max = FLOWS;
    dice.populate(&world, 2 * FLOWS);
    for _ in 0..FRAMES {
        let [low, high, others @ ..] = rest else { return };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(others.len());
        let (frame, others) = others.split_at(length);
        rest = others;
        run_checked(&world, frame);
        // Enough for a flow that keeps coming to be worth an entry.
        world.now_ns += 60_000_000;
    }
}

/// An input of random tables, and of frames for them.
pub fn seed(number: u64) -> Vec<u8> {
    let mut dice = Dice::seeded(number);
    let length = dice.below(200);
    let tables = dice.bytes(length);
    let mut input = vec![length as u8];
    input.extend(&tables);
    let world = Dice::Bytes(&tables).world(NOW_NS);
    for _ in 0..=dice.below(6) {
        let frame = dice.frame(&world, 1600);
        input.extend((frame.len() as u16).to_le_bytes());
        input.extend(frame);
    }
    input
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn random_packets_over_random_tables_break_nothing() {
        (0..20_000).for_each(|number| run(&seed(number)));
    }

    /// Inputs that once broke something.
    #[test]
    fn what_the_fuzzer_found_is_mended() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
        for file in std::fs::read_dir(folder).expect("a folder") {
            run(&std::fs::read(file.expect("readable").path()).expect("readable"));
        }
    }
}
