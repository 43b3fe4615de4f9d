//! Every invariant can fail: each planted fault is caught by an invariant that is meant for it.

use std::{
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tests::interrupt;

use crate::{
    campaign::{Ended, attempt},
    invariants::Invariant::{self, *},
    mutation::Mutation,
    plan::Scale,
};

/// Seeds within which a planted fault must be caught.
const SEEDS: u64 = 300;

/// Planted faults, and the invariants of which one must catch each; others may find it as well.
const PLANTED: [(Mutation, &[Invariant]); 35] = [
    (Mutation::HandsOffTunnelPackets, &[OneHandOff]),
    (Mutation::OverlooksMarks, &[OneHandOff]),
    (Mutation::ForgetsPeersRecords, &[Convergence]),
    (Mutation::ObservesNothing, &[Convergence]),
    (Mutation::HidesPeersRecords, &[ProtectedFlow]),
    (Mutation::TakesQuotesForPackets, &[QuoteHarmless]),
    (Mutation::ForgetsDirect, &[DirectDelivery]),
    (Mutation::ExpiresUnasked, &[NoEarlyExpiry]),
    (Mutation::HidesTraffic, &[NoEarlyExpiry]),
    (Mutation::EvictsForNewcomers, &[NoEviction]),
    (Mutation::LosesFrames, &[Convergence]),
    (Mutation::LosesBulk, &[AllWell, Convergence]),
    (Mutation::MutesBulk, &[AllWell]),
    (Mutation::NeverSweeps, &[Convergence]),
    (Mutation::FinDeletes, &[SpoofHarmless]),
    (Mutation::RstDeletes, &[SpoofHarmless]),
    (Mutation::SynPlacesAnew, &[SpoofHarmless, ProtectedFlow]),
    (Mutation::AllEligible, &[ReadyOwnsNew]),
    (Mutation::EternalLease, &[ReadyOwnsNew]),
    (Mutation::RepicksOnFailover, &[ProtectedFlow]),
    (Mutation::AllForwarding, &[NoBlackHole]),
    (Mutation::ExpiresEarly, &[NoEarlyExpiry]),
    (Mutation::DrainsAtOnce, &[Bounded]),
    (Mutation::TurnsOneRing, &[Convergence]),
    (Mutation::NeverAnswersProbes, &[AllWell]),
    (Mutation::LosesKnownPackets, &[Progress]),
    (Mutation::LosesStandings, &[OneEpoch]),
    (Mutation::LosesConditions, &[OneCondition]),
    (Mutation::LosesOpinions, &[MostChecksCount]),
    (Mutation::ForgetsGrace, &[GraceTime]),
    (Mutation::TakesOverAtOnce, &[OwnersStay]),
    (Mutation::KeepsTerms, &[Convergence]),
    (Mutation::DrainsNothing, &[Drained]),
    (Mutation::DrainsInWordsOnly, &[ReadyOwnsNew]),
    (Mutation::BelievesForgeries, &[NoForgery]),
];

/// Looks for every planted fault, and tells by which seed and invariant it was caught.
pub(crate) fn hunt(jobs: usize) -> Ended {
    let next = AtomicUsize::new(0);
    let survivors = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((mutation, invariants)) = PLANTED.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let told = match caught(*mutation, invariants) {
                        Ok((seed, by)) => format!("caught    {mutation:?}: seed {seed}, {by:?}"),
                        Err(_) if interrupt::happened() => return,
                        Err(others) => {
                            survivors.fetch_add(1, Ordering::Relaxed);
                            format!("SURVIVES  {mutation:?}: not as {invariants:?} within {SEEDS} seeds; {others}")
                        }
                    };
                    let mut out = std::io::stdout().lock();
                    // Nobody reads: nobody misses it.
                    let _ = writeln!(out, "{told}");
                }
            });
        }
    });
    if interrupt::happened() {
        return Ended::Interrupted;
    }
    let survivors = survivors.into_inner();
    println!("{} planted faults, {survivors} survive", PLANTED.len());
    if survivors == 0 { Ended::Well } else { Ended::Badly }
}

/// The first seed that finds `mutation` by one of `invariants`, or what else was found.
fn caught(mutation: Mutation, invariants: &[Invariant]) -> Result<(u64, Invariant), String> {
    let mut others = Vec::new();
    for seed in (1..=SEEDS).take_while(|_| !interrupt::happened()) {
        match attempt(seed, Scale::Small, mutation).map(|outcome| outcome.violation) {
            Ok(Some(violation)) if invariants.contains(&violation.invariant) => return Ok((seed, violation.invariant)),
            Ok(Some(violation)) => others.push((seed, format!("{:?}", violation.invariant))),
            Err(panic) => others.push((seed, panic)),
            Ok(None) => {}
        }
    }
    Err(if others.is_empty() { "nothing was found".into() } else { format!("others: {others:?}") })
}

#[test]
#[cfg_attr(debug_assertions, ignore = "`cargo xtask ci` runs `tandem-sim --mutants`, in a release build")]
fn every_planted_fault_is_caught() {
    let jobs = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    assert_eq!(hunt(jobs), Ended::Well);
}

#[test]
fn every_invariant_has_a_planted_fault() {
    for invariant in Invariant::ALL {
        assert!(PLANTED.iter().any(|(_, by)| by.contains(&invariant)), "nothing shows that {invariant:?} can fail");
    }
}
