//! Looking inside: what a member's pinned maps say, as facts that tables and JSON are made of.
//!
//! Works on a host whose agent is dead, too. Nothing here writes.

pub mod datapath;
pub mod explain;
pub mod listing;
pub mod status;
pub mod words;
