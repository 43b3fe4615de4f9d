//! What the core has to say to people: one line each.

use std::fmt;

/// Something worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This member may own new flows.
    Ready,
}

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Worth waking someone.
    Warn,
}

impl Event {
    /// How loud it is.
    pub const fn level(&self) -> Level {
        match self {
            Self::Ready => Level::Info,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => write!(f, "ready: this member may own new flows"),
        }
    }
}
