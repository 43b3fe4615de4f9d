//! The kernel decides as `lb-common` does: random packets over random tables, in the kernel and in the model.
//!
//! The comparison is the agent's own, which rehearses every program before it takes another's place.

use anyhow::Result;
use lb_userspace::io::{
    datapath::OBJECT,
    rehearsal::{self, Report},
};
use model::Model;

/// Sends `cases` packets through both; the first difference is an error that tells how to see it again.
pub fn run(seed: u64, cases: u64) -> Result<Report> {
    rehearsal::random(OBJECT, seed, cases)
}

/// Whether a model with this fault is told from the kernel within a few thousand packets.
pub fn finds(fault: fn(&mut Model)) -> Result<bool> {
    rehearsal::finds(OBJECT, fault)
}
