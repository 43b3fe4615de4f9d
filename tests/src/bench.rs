//! What a packet costs in each of its paths, beside the least that any balancer must do and beside another program.
//!
//! One harness in the kernel (`lb-ebpf/bench`) lays all packets and calls the programs, so that they differ in nothing
//! but themselves; `measure` says how disturbances are kept out, `report` what the figures must reach.

mod against;
pub mod cluster;
mod delay;
mod harness;
mod live;
mod matrix;
mod measure;
mod packets;
mod plot;
mod report;
mod statistics;
mod tandem;

pub use against::Against;
pub use matrix::Extent;
pub use measure::{Options, run};
pub use packets::Destination;
pub use report::Report;
