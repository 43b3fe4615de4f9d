//! A new program's first seconds: what the counters must not say.

use std::{io, ops::Sub, path::Path, time::Duration};

use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::{
    maps,
    reason::{Action, Counter, Reason},
};

/// Begins the names of trials.
pub(super) const PREFIX: &str = "trial_";
/// How long a program is watched after it was attached.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How long the share of lost packets is measured before.
pub const BASELINE: Duration = Duration::from_secs(1);
/// Fewer lost packets say nothing.
const LOST_MIN: u64 = 100;
/// So much more than twice the share of before, in millionths: one percent.
const MARGIN_PPM: u64 = 10_000;
const MILLION: u64 = 1_000_000;

/// Packets that were for this member to treat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Dropped, for whatever reason.
    pub lost: u64,
    /// Delivered, handed off, answered, taken.
    pub treated: u64,
}

/// An upgrade that is being watched; its name in the pin directory says all of it, to any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// When the links were switched, by the monotonic clock.
    pub began_ns: u64,
    /// What had been counted by then.
    pub began: Tally,
    /// The share that was lost before, in millionths.
    pub baseline_ppm: u32,
}

/// What the counters say of an upgrade; what has been counted since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Too early.
    Watching {
        /// How much longer.
        left: Duration,
    },
    /// It may stay.
    Good(Tally),
    /// It must go.
    Bad(Tally),
}

impl Trial {
    /// What `now` says, at `now_ns`.
    pub fn judge(&self, now: Tally, now_ns: u64) -> Judgement {
        let since = now - self.began;
        let bearable_ppm = 2 * u64::from(self.baseline_ppm) + MARGIN_PPM;
        if since.lost >= LOST_MIN && u64::from(since.lost_ppm()) > bearable_ppm {
            return Judgement::Bad(since);
        }
        match self.left(now_ns) {
            Duration::ZERO => Judgement::Good(since),
            left => Judgement::Watching { left },
        }
    }

    /// How much longer it is watched.
    pub fn left(&self, now_ns: u64) -> Duration {
        WINDOW.saturating_sub(Duration::from_nanos(now_ns.saturating_sub(self.began_ns)))
    }

    pub(super) fn name(&self) -> String {
        let Self { began_ns, began: Tally { lost, treated }, baseline_ppm } = self;
        format!("{PREFIX}{began_ns}_{lost}_{treated}_{baseline_ppm}")
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(PREFIX)?.split('_').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (began_ns, lost, treated, baseline) = (next()?, next()?, next()?, next()?);
        Some(Self { began_ns, began: Tally { lost, treated }, baseline_ppm: baseline.try_into().ok()? })
    }
}

impl Tally {
    /// What the counters pinned in `pins` say.
    pub fn take(pins: &Path) -> io::Result<Self> {
        let map = MapData::from_pin(pins.join(maps::COUNTERS)).and_then(Map::from_map_data);
        let counters = map.and_then(PerCpuArray::<MapData, Counter>::try_from).map_err(io::Error::other)?;
        let mut tally = Self::default();
        for reason in Reason::ALL {
            let values = counters.get(&(*reason as u32), 0).map_err(io::Error::other)?;
            let packets: u64 = values.iter().map(|counter| counter.packets).sum();
            match reason.action() {
                // The host's: the datapath does nothing with it.
                Action::Pass => {}
                Action::Drop => tally.lost += packets,
                Action::Deliver | Action::HandOff | Action::Answer | Action::Consume => tally.treated += packets,
            }
        }
        Ok(tally)
    }

    /// The lost ones of all, in millionths.
    pub fn lost_ppm(&self) -> u32 {
        let all = u128::from(self.lost) + u128::from(self.treated);
        (u128::from(self.lost) * u128::from(MILLION) / all.max(1)) as u32
    }
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { lost: self.lost.saturating_sub(before.lost), treated: self.treated.saturating_sub(before.treated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn trial(baseline_ppm: u32) -> Trial {
        Trial { began_ns: 100 * SECOND, began: Tally { lost: 7, treated: 1_000 }, baseline_ppm }
    }

    /// The judgement when so many were lost and treated since, `seconds` after the beginning.
    fn judged(baseline_ppm: u32, lost: u64, treated: u64, seconds: u64) -> Judgement {
        let now = Tally { lost: 7 + lost, treated: 1_000 + treated };
        trial(baseline_ppm).judge(now, (100 + seconds) * SECOND)
    }

    #[test]
    fn a_jump_of_the_share_that_is_lost_ends_a_trial_at_once() {
        for (baseline_ppm, lost, treated, is_bad) in [
            // Nothing was lost before: one percent is borne.
            (0, 100, 0, true),
            (0, 99, 0, false),
            (0, 100, 9_901, false),
            (0, 101, 9_899, true),
            // A flood that was dropped before may go on, and grow a little.
            (900_000, 9_000, 1_000, false),
            (900_000, 1_000_000, 0, false),
            (300_000, 610_000, 390_000, false),
            (300_000, 611_000, 389_000, true),
        ] {
            let judgement = judged(baseline_ppm, lost, treated, 1);
            assert_eq!(
                matches!(judgement, Judgement::Bad(_)),
                is_bad,
                "{baseline_ppm} {lost} {treated}: {judgement:?}"
            );
        }
    }

    #[test]
    fn a_program_that_loses_no_more_than_the_one_before_stays() {
        assert_eq!(judged(0, 5, 5_000, 9), Judgement::Watching { left: Duration::from_secs(1) });
        assert_eq!(judged(0, 5, 5_000, 10), Judgement::Good(Tally { lost: 5, treated: 5_000 }));
        assert_eq!(judged(0, 0, 0, 3600), Judgement::Good(Tally::default()));
    }

    #[test]
    fn a_late_judge_counts_everything_since_the_switch() {
        assert!(matches!(judged(0, 50_000, 50_000, 3600), Judgement::Bad(_)));
    }

    #[test]
    fn the_name_says_it_all() {
        for trial in [trial(0), trial(1_000_000), Trial { began_ns: u64::MAX, ..trial(3) }] {
            assert_eq!(Trial::parse(&trial.name()), Some(trial));
        }
        for name in ["trial_", "trial_1_2_3", "trial_a_2_3_4", "refused_0123", "trial_1_2_3_99999999999"] {
            assert_eq!(Trial::parse(name), None, "{name}");
        }
    }
}
