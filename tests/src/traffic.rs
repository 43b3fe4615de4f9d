//! Real traffic whose every byte is checked.
//!
//! [`load`] opens TCP connections from the client's namespace to echo servers and keeps a record
//! of each; [`caller`] is one connection driven by hand; [`datagrams`] sends paced UDP; [`flood`] and [`newcomers`]
//! send packets made by hand ([`raw`]). [`service`]
//! is the servers' side.

pub mod caller;
mod connection;
pub mod datagrams;
pub mod flood;
pub mod half_closed;
pub mod load;
pub mod newcomers;
pub mod raw;
pub mod record;
pub mod service;
mod wire;
