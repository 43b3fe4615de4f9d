//! Real traffic whose every byte is checked.
//!
//! [`load`] opens TCP connections from the client's namespace to echo servers and keeps a record
//! of each; [`datagrams`] sends paced UDP. [`service`] is the servers' side of both.

mod connection;
pub mod datagrams;
pub mod load;
pub mod record;
pub mod service;
mod wire;
