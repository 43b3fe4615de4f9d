//! Saying something again and again, but not each time.

use std::time::{Duration, Instant};

/// A complaint that is repeated at most this often.
const EVERY: Duration = Duration::from_secs(10);

/// Counts occasions to complain, and says when it is time to.
#[derive(Debug, Default)]
pub struct Complaint {
    count: u64,
    said: Option<Instant>,
}

impl Complaint {
    /// One more occasion; the number of them since the last complaint, if it is time for one.
    pub fn note(&mut self) -> Option<u64> {
        self.count += 1;
        if self.said.is_some_and(|said| said.elapsed() < EVERY) {
            return None;
        }
        self.said = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_occasion_is_said_and_those_right_after_are_counted() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.note(), Some(1));
        assert_eq!(complaint.note(), None);
        assert_eq!(complaint.count, 1);
    }
}
