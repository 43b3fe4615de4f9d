//! Every invariant can fail: each planted fault is caught by the invariant that is meant for it.

use crate::{invariants::Invariant, mutation::Mutation, world::run};

/// Seeds within which a planted fault must be caught.
const SEEDS: u64 = 150;

/// Asserts that some seed finds `mutation` by one of `invariants`; others may find it as well.
#[track_caller]
fn caught(mutation: Mutation, invariants: &[Invariant]) {
    let mut found = Vec::new();
    for seed in 1..=SEEDS {
        let Some(violation) = run(seed, mutation, false).violation else { continue };
        if invariants.contains(&violation.invariant) {
            return;
        }
        found.push((seed, violation.invariant));
    }
    panic!("{mutation:?} is not caught as {invariants:?} within {SEEDS} seeds; others: {found:?}");
}

#[test]
fn planted_second_hand_off_is_caught() {
    caught(Mutation::HandsOffTunnelPackets, &[Invariant::OneHandOff]);
}

#[test]
fn planted_records_that_are_not_written_are_caught() {
    caught(Mutation::ForgetsPeersRecords, &[Invariant::Convergence]);
}

#[test]
fn planted_blind_agent_is_caught() {
    caught(Mutation::ObservesNothing, &[Invariant::Convergence]);
}

#[test]
fn planted_unreplicated_records_break_protected_flows() {
    caught(Mutation::HidesPeersRecords, &[Invariant::ProtectedFlow]);
}

#[test]
fn planted_state_of_an_error_is_caught() {
    caught(Mutation::TakesQuotesForPackets, &[Invariant::QuoteHarmless]);
}

#[test]
fn planted_detour_is_caught() {
    caught(Mutation::ForgetsDirect, &[Invariant::DirectDelivery]);
}

#[test]
fn planted_end_without_a_question_is_caught() {
    caught(Mutation::ExpiresUnasked, &[Invariant::NoEarlyExpiry]);
}

#[test]
fn planted_secret_traffic_is_caught() {
    caught(Mutation::HidesTraffic, &[Invariant::NoEarlyExpiry]);
}

#[test]
fn planted_second_hand_off_of_marked_packets_is_caught() {
    caught(Mutation::OverlooksMarks, &[Invariant::OneHandOff]);
}

#[test]
fn planted_eviction_is_caught() {
    caught(Mutation::EvictsForNewcomers, &[Invariant::NoEviction]);
}

#[test]
fn planted_loss_of_frames_is_caught() {
    caught(Mutation::LosesFrames, &[Invariant::Convergence]);
}

#[test]
fn planted_missing_sweep_is_caught() {
    caught(Mutation::NeverSweeps, &[Invariant::Convergence]);
}

#[test]
fn planted_deletion_by_fin_is_caught() {
    caught(Mutation::FinDeletes, &[Invariant::SpoofHarmless]);
}

#[test]
fn planted_deletion_by_rst_is_caught() {
    caught(Mutation::RstDeletes, &[Invariant::SpoofHarmless]);
}

#[test]
fn planted_new_placement_by_syn_is_caught() {
    caught(Mutation::SynPlacesAnew, &[Invariant::SpoofHarmless, Invariant::ProtectedFlow]);
}

#[test]
fn planted_unready_owner_is_caught() {
    caught(Mutation::AllEligible, &[Invariant::ReadyOwnsNew]);
}

#[test]
fn planted_eternal_lease_is_caught() {
    caught(Mutation::EternalLease, &[Invariant::ReadyOwnsNew]);
}

#[test]
fn planted_new_choice_on_failover_is_caught() {
    caught(Mutation::RepicksOnFailover, &[Invariant::ProtectedFlow]);
}

#[test]
fn planted_blindness_to_death_is_caught() {
    caught(Mutation::AllForwarding, &[Invariant::NoBlackHole]);
}

#[test]
fn planted_early_expiry_is_caught() {
    caught(Mutation::ExpiresEarly, &[Invariant::NoEarlyExpiry]);
}

#[test]
fn planted_unbounded_session_is_caught() {
    caught(Mutation::DrainsAtOnce, &[Invariant::Bounded]);
}

#[test]
fn planted_turned_ring_is_caught() {
    caught(Mutation::TurnsOneRing, &[Invariant::Convergence]);
}

#[test]
fn planted_wrong_record_is_caught() {
    caught(Mutation::RecordsWrongBackend, &[Invariant::Convergence]);
}

#[test]
fn planted_silent_start_is_caught() {
    caught(Mutation::NeverAnswersProbes, &[Invariant::AllWell]);
}

#[test]
fn planted_dropped_replies_are_caught() {
    caught(Mutation::LosesKnownPackets, &[Invariant::Progress]);
}
