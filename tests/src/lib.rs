//! The lab that the privileged tests, the demo and the acceptance rows run in.
//!
//! A [`cluster::Cluster`] is a small network of namespaces on this host: a client, a router with
//! ECMP, balancers that each run a real `tandem run`, servers behind them. [`traffic`] sends real
//! TCP and UDP through it and checks every byte. Everything is removed when its owner is dropped.

pub mod acceptance;
pub mod bench;
pub mod check;
pub mod cluster;
pub mod command;
pub mod config;
pub mod demo;
pub mod detection;
pub mod differential;
pub mod hogs;
pub mod interrupt;
pub mod member;
pub mod netns;
pub mod passthrough;
pub mod population;
pub mod run;
pub mod server;
pub mod system;
pub mod tables;
pub mod topology;
pub mod traffic;
pub mod variant;
