//! How often what happened.

use std::{collections::BTreeMap, fmt};

/// Counters by name, of one run or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    counts: BTreeMap<&'static str, u64>,
    maxima: BTreeMap<&'static str, u64>,
}

impl Statistics {
    /// One more.
    pub(crate) fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// `n` more.
    pub(crate) fn add(&mut self, name: &'static str, n: u64) {
        *self.counts.entry(name).or_default() += n;
    }

    /// The largest so far.
    pub(crate) fn max(&mut self, name: &'static str, value: u64) {
        let largest = self.maxima.entry(name).or_default();
        *largest = value.max(*largest);
    }

    /// How often `name` happened.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Takes in the figures of another run.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (name, n) in &other.counts {
            self.add(name, *n);
        }
        for (name, value) in &other.maxima {
            self.max(name, *value);
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, n) in &self.counts {
            writeln!(f, "{n:>12}  {name}")?;
        }
        for (name, value) in &self.maxima {
            writeln!(f, "{value:>12}  {name} (largest)")?;
        }
        Ok(())
    }
}
