//! Looking inside: what a member's pinned maps say, as facts that tables and JSON are made of.
//!
//! Works on a host whose agent is dead, too. Nothing here writes.

pub mod advice;
pub mod datapath;
pub mod explain;
#[cfg(test)]
pub(crate) mod fixture;
pub mod listing;
pub mod metrics;
pub mod rates;
pub mod status;
pub mod words;
