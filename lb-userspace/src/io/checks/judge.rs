//! From single answers to a verdict.
//!
//! ```text
//!              fall failures in a row
//!   unknown, up ----------------------> down
//!      ^                                 |
//!      +---------------------------------+
//!        rise successes in a row, and twice as many for each time that it went down of late
//! ```
//!
//! Before the first verdict one success suffices: nothing speaks against the backend.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// For how long a fall is remembered.
const MEMORY: Duration = Duration::from_secs(300);
/// Falls that make the way back longer: with three of them it takes eight times as many successes.
const FALLS_MAX: usize = 4;

/// What the answers of one backend amount to.
#[derive(Debug)]
pub(super) struct Judge {
    rise: u32,
    fall: u32,
    is_up: Option<bool>,
    /// Answers in a row that contradict the verdict.
    against: u32,
    falls: VecDeque<Instant>,
}

/// A verdict that is another one than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answers.
    Up {
        /// Nothing was known of it.
        is_first: bool,
    },
    /// It does not.
    Down,
}

impl Judge {
    pub(super) fn new(rise: u8, fall: u8) -> Self {
        Self { rise: rise.into(), fall: fall.into(), is_up: None, against: 0, falls: VecDeque::new() }
    }

    /// One more answer.
    pub(super) fn hear(&mut self, now: Instant, is_right: bool) -> Option<Verdict> {
        match (self.is_up, is_right) {
            (Some(true), true) | (Some(false), false) => {
                self.against = 0;
                None
            }
            (None, true) => {
                (self.is_up, self.against) = (Some(true), 0);
                Some(Verdict::Up { is_first: true })
            }
            (None | Some(true), false) => {
                self.against += 1;
                if self.against < self.fall {
                    return None;
                }
                (self.is_up, self.against) = (Some(false), 0);
                self.falls.push_back(now);
                if self.falls.len() > FALLS_MAX {
                    self.falls.pop_front();
                }
                Some(Verdict::Down)
            }
            (Some(false), true) => {
                self.against += 1;
                self.falls.retain(|fall| now.duration_since(*fall) < MEMORY);
                let earlier = self.falls.len().saturating_sub(1) as u32;
                if self.against < self.rise << earlier {
                    return None;
                }
                (self.is_up, self.against) = (Some(true), 0);
                Some(Verdict::Up { is_first: false })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(judge: &mut Judge, at: Instant, is_right: bool, times: u32) -> Vec<Option<Verdict>> {
        (0..times).map(|_| judge.hear(at, is_right)).collect()
    }

    #[test]
    fn verdicts_need_answers_in_a_row() {
        let (mut judge, now) = (Judge::new(2, 3), Instant::now());
        assert_eq!(judge.hear(now, true), Some(Verdict::Up { is_first: true }));
        assert_eq!(answers(&mut judge, now, false, 2), [None, None]);
        assert_eq!(judge.hear(now, true), None);
        assert_eq!(answers(&mut judge, now, false, 3), [None, None, Some(Verdict::Down)]);
        assert_eq!(judge.hear(now, true), None);
        assert_eq!(judge.hear(now, false), None);
        assert_eq!(answers(&mut judge, now, true, 2), [None, Some(Verdict::Up { is_first: false })]);
    }

    #[test]
    fn what_never_answered_is_down_after_as_many_failures() {
        let mut judge = Judge::new(1, 2);
        assert_eq!(answers(&mut judge, Instant::now(), false, 3), [None, Some(Verdict::Down), None]);
    }

    #[test]
    fn who_flaps_has_a_longer_way_back_until_it_is_forgotten() {
        let (mut judge, now) = (Judge::new(1, 1), Instant::now());
        let mut way_back = |at| {
            assert_eq!(judge.hear(at, false), Some(Verdict::Down));
            (1..).find(|_| judge.hear(at, true).is_some())
        };
        assert_eq!([way_back(now), way_back(now), way_back(now)], [Some(1), Some(2), Some(4)]);
        assert_eq!((0..10).map(|_| way_back(now)).max(), Some(Some(8)), "not longer and longer");
        assert_eq!(way_back(now + MEMORY), Some(1));
    }
}
