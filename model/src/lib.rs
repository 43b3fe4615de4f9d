//! The datapath in userspace: one member's tables as plain collections, and a packet's way through `lb-common`.
//!
//! `Model::run` does what `balancer` in `lb-ebpf` does: `parse -> steer -> write`. The first two are the same functions;
//! what is written to a packet is written here byte by byte, by code of its own. The differential test compares the two
//! packet by packet; the fuzzer `tandem-fuzz` looks for packets and tables that break what `check` asserts.

pub mod check;
pub mod dice;
pub mod input;
pub mod packets;
pub mod run;
pub mod tables;
pub mod world;
pub mod write;

pub use self::{
    dice::Dice,
    run::Outcome,
    tables::{Event, Model},
};
