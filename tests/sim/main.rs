//! The simulator: clusters of real cores and the real `steer`, in a world where everything fails, on virtual time.
//!
//! A seed decides everything: sizes, limits, timings, traffic, attacks and faults. The same seed gives the same run.
//! `cargo xtask sim --help` tells how to run many seeds, and how to replay one with its story.

mod agenda;
mod attacker;
mod bulk;
mod campaign;
mod client;
#[cfg(test)]
mod clocks;
mod configuration;
mod datapath;
mod driver;
mod elements;
mod ending;
mod epochs;
mod faults;
mod freezes;
mod health;
mod invariants;
#[cfg(test)]
mod kept;
mod lru;
mod member;
mod mutation;
mod network;
mod oracle;
mod owners;
mod packets;
mod partitions;
mod plan;
mod planted;
mod rng;
mod router;
mod segment;
mod server;
mod statistics;
mod stream;
mod time;
mod traitor;
mod world;

use std::{num::NonZero, process::ExitCode, thread};

use clap::Parser;
use tests::interrupt;

use crate::{
    campaign::{Campaign, Ended},
    mutation::Mutation,
    plan::Scale,
    world::run,
};

/// Runs clusters of real cores and the real datapath's decisions in a simulated world where everything fails.
///
/// Words go to stderr, figures to stdout. What a seed does changes only with the simulator and with Tandem itself.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", version, after_help = EXAMPLES)]
struct Arguments {
    /// How many seeds.
    #[arg(long, value_name = "N", default_value_t = 2000, conflicts_with_all = ["seed", "mutants"])]
    seeds: u64,
    /// The first of them.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with_all = ["seed", "mutants"])]
    first: u64,
    /// How many at a time [default: one per CPU].
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    jobs: Option<NonZero<usize>>,
    /// Replay this seed and tell its story.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Clusters of 6 to 64 members instead of 2 to 5.
    #[arg(long)]
    large: bool,
    /// Break the protocol on purpose, in each way that there is, and show which invariant notices.
    #[arg(long, conflicts_with = "seed")]
    mutants: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask sim                         2,000 seeds
  cargo xtask sim --seeds 1000000 --first 5000
  cargo xtask sim --seed 534 2>story.txt  one seed, with all that happens
  cargo xtask sim --large --seeds 20      up to 64 members
  cargo xtask sim --mutants               every planted fault, and what found it

Exit status: 0 every invariant held; 1 one did not, or a planted fault survived, or a kind of fault never happened in
1,000 seeds or more; 2 usage; 130 interrupted.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let scale = if arguments.large { Scale::Large } else { Scale::Small };
    let jobs = arguments.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get);
    interrupt::catch();
    let ended = match arguments.seed {
        Some(seed) => replay(seed, scale),
        None if arguments.mutants => planted::hunt(jobs),
        None => Campaign { first: arguments.first, seeds: arguments.seeds, scale, jobs }.run(),
    };
    match ended {
        Ended::Well => ExitCode::SUCCESS,
        Ended::Badly => ExitCode::FAILURE,
        Ended::Interrupted => ExitCode::from(130),
    }
}

/// One seed, with its story.
fn replay(seed: u64, scale: Scale) -> Ended {
    let outcome = run(seed, scale, Mutation::None, true);
    println!("{}", outcome.stats);
    let Some(violation) = outcome.violation else {
        println!("seed {seed}: every invariant held");
        return Ended::Well;
    };
    println!("seed {seed}: {violation}");
    Ended::Badly
}

#[cfg(test)]
mod tests_of_runs {
    use clap::CommandFactory as _;

    use super::*;

    /// Seeds that `cargo test` runs, with the checks of a debug build; CI runs more of them in a release build.
    const SEEDS: u64 = 40;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_invariant_holds_whatever_fails() {
        let campaign = Campaign { first: 1, seeds: SEEDS, scale: Scale::Small, jobs: 1 };
        assert_eq!(campaign.run(), Ended::Well);
    }

    /// 24 members: probes alone take the square of their number, and 64 of them a minute without optimisation.
    #[test]
    fn every_invariant_holds_in_a_cluster_of_many() {
        let campaign = Campaign { first: 2, seeds: 1, scale: Scale::Large, jobs: 1 };
        assert_eq!(campaign.run(), Ended::Well);
    }

    #[test]
    fn a_seed_replays() {
        let [one, other] = [(); 2].map(|()| run(7, Scale::Small, Mutation::None, false));
        assert_eq!(one, other);
    }
}
