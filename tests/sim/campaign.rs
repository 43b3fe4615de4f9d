//! Many seeds, on as many threads as asked for, and what came of them.

use std::{
    any::Any,
    io::{IsTerminal as _, stderr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use tests::interrupt;

use crate::{
    faults::FAULTS,
    mutation::Mutation,
    plan::Scale,
    statistics::Statistics,
    world::{Outcome, run},
};

/// From so many seeds on every kind of fault must have happened.
const SEEDS_FOR_EVERY_FAULT: u64 = 1000;
/// Between two words of progress: on a terminal, and in a log.
const PROGRESS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// How soon a signal is noticed.
const SLICE: Duration = Duration::from_millis(100);
/// Failures that are printed as they come; all are counted.
const FAILURES_SHOWN: u64 = 50;

/// Seeds to run.
pub(crate) struct Campaign {
    /// The first.
    pub(crate) first: u64,
    /// How many.
    pub(crate) seeds: u64,
    /// How large the clusters are.
    pub(crate) scale: Scale,
    /// How many run at a time.
    pub(crate) jobs: usize,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything held.
    Well,
    /// Something did not.
    Badly,
    /// Somebody has had enough.
    Interrupted,
}

impl Campaign {
    /// Runs them, telling of progress and failures, and prints the report.
    pub(crate) fn run(&self) -> Ended {
        let start = Instant::now();
        let mut tally = Tally::default();
        let next = AtomicU64::new(self.first);
        let end = self.first.saturating_add(self.seeds);
        thread::scope(|scope| {
            // Bounded: a slow reader of stderr holds the threads up rather than filling the memory.
            let (sender, receiver) = mpsc::sync_channel(64);
            for _ in 0..self.jobs {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while !interrupt::happened() {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end || sender.send((seed, attempt(seed, self.scale, Mutation::None))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut told = Instant::now();
            loop {
                match receiver.recv_timeout(SLICE) {
                    Ok((seed, attempt)) => self.take(&mut tally, seed, attempt),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                if told.elapsed() >= PROGRESS[usize::from(!stderr().is_terminal())] {
                    told = Instant::now();
                    eprintln!("{}", tally.progress(self.seeds, start.elapsed()));
                }
            }
        });
        self.report(&tally, start.elapsed())
    }

    fn take(&self, tally: &mut Tally, seed: u64, attempt: Result<Outcome, String>) {
        tally.done += 1;
        let failure = match attempt {
            Ok(outcome) => {
                tally.stats.merge(&outcome.stats);
                outcome.violation.map(|violation| violation.to_string())
            }
            Err(panic) => Some(format!("panicked: {panic}")),
        };
        let Some(failure) = failure else { return };
        tally.failures.push(seed);
        if tally.failures.len() as u64 <= FAILURES_SHOWN {
            eprintln!("seed {seed}: {failure}\n    replay: cargo xtask sim {}--seed {seed}", self.scale.option());
        }
    }

    fn report(&self, tally: &Tally, took: Duration) -> Ended {
        println!("{}", tally.stats);
        let never: Vec<&str> = FAULTS.into_iter().filter(|fault| tally.stats.of(fault) == 0).collect();
        let rarest = FAULTS.into_iter().min_by_key(|fault| tally.stats.of(fault)).unwrap_or_default();
        println!("{}", tally.progress(self.seeds, took));
        println!("{} kinds of fault, the rarest {} times: {rarest}", FAULTS.len(), tally.stats.of(rarest));
        if !tally.failures.is_empty() {
            println!("failed: {:?}", tally.failures);
            return Ended::Badly;
        }
        if tally.done < self.seeds {
            return Ended::Interrupted;
        }
        if !never.is_empty() && self.seeds >= SEEDS_FOR_EVERY_FAULT {
            println!("never happened: {never:?}");
            return Ended::Badly;
        }
        Ended::Well
    }
}

/// What has come of a campaign so far.
#[derive(Default)]
struct Tally {
    done: u64,
    stats: Statistics,
    failures: Vec<u64>,
}

impl Tally {
    fn progress(&self, seeds: u64, took: Duration) -> String {
        let seconds = took.as_secs_f64();
        let rate = self.done as f64 / seconds.max(0.001);
        format!("{} of {seeds} seeds in {seconds:.1} s, {rate:.1} seeds/s, {} failed", self.done, self.failures.len())
    }
}

/// Runs one seed; a panic is told like a violation.
pub(crate) fn attempt(seed: u64, scale: Scale, mutation: Mutation) -> Result<Outcome, String> {
    // Nothing of the run outlives it.
    catch_unwind(AssertUnwindSafe(|| run(seed, scale, mutation, false))).map_err(|panic| words(panic.as_ref()))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let word = panic.downcast_ref::<&str>().map(|word| (*word).to_owned());
    word.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".into())
}
