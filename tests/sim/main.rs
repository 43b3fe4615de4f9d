//! The simulator: clusters of real cores and the real `steer`, in a world where everything fails, on virtual time.
//!
//! A seed decides everything: sizes, limits, timings, traffic, attacks and faults. The same seed gives the same run.
//!
//! * `TANDEM_SEEDS=n` runs n seeds instead of the default;
//! * `TANDEM_SEED=n` replays one seed and tells its story;
//! * `TANDEM_FIRST=n` is the first seed of a longer run.

mod agenda;
mod attacker;
mod client;
mod configuration;
mod datapath;
mod driver;
mod elements;
mod ending;
mod faults;
mod invariants;
mod lru;
mod member;
mod mutation;
mod network;
mod oracle;
mod packets;
mod plan;
mod planted;
mod rng;
mod router;
mod segment;
mod server;
mod statistics;
mod stream;
mod time;
mod world;

use crate::{faults::FAULTS, mutation::Mutation, statistics::Statistics, world::run};

/// Seeds of a run that CI waits for: about 20 s.
const SEEDS: u64 = 150;
/// From so many seeds on every kind of fault must have happened.
const SEEDS_FOR_EVERY_FAULT: u64 = 100;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_invariant_holds_whatever_fails() {
    if let Some(seed) = number("TANDEM_SEED") {
        let outcome = run(seed, Mutation::None, true);
        eprintln!("{}", outcome.stats);
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
        return;
    }
    let first = number("TANDEM_FIRST").unwrap_or(1);
    let seeds = number("TANDEM_SEEDS").unwrap_or(SEEDS);
    let mut stats = Statistics::default();
    let mut failures = Vec::new();
    for seed in first..first + seeds {
        let outcome = run(seed, Mutation::None, false);
        stats.merge(&outcome.stats);
        if let Some(violation) = outcome.violation {
            eprintln!("TANDEM_SEED={seed}: {violation}");
            failures.push(seed);
        }
    }
    eprintln!("{seeds} seeds\n{stats}");
    assert!(failures.is_empty(), "replay with TANDEM_SEED=: {failures:?}");
    for fault in FAULTS.iter().filter(|_| seeds >= SEEDS_FOR_EVERY_FAULT) {
        assert!(stats.of(fault) > 0, "never happened: {fault}");
    }
}

#[test]
fn a_seed_replays() {
    let (one, other) = (run(7, Mutation::None, false), run(7, Mutation::None, false));
    assert_eq!(one, other);
}
