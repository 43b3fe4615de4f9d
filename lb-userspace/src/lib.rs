//! The agent and the command line of Tandem.

pub mod agent;
pub mod config;
pub mod core;
pub mod decap;
pub mod io;
