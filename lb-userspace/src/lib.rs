//! The agent and the command line of Tandem.

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod decap;
pub mod doctor;
pub mod identity;
pub mod inspect;
pub mod io;
pub mod pinned;
