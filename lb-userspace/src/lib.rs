//! The agent and the command line of Tandem.

pub mod config;
pub mod core;
