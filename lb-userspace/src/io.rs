//! The agent's edges: everything that talks to the kernel, to the network or to a disk.
//!
//! The core decides, the driver (`agent`) carries values between it and these modules. Nothing here
//! blocks the driver: look-ups that can take long have threads of their own (`neighbours`, `sweep`)
//! and report through bounded channels.

pub mod announce;
pub mod attach;
pub mod bpf;
pub mod checks;
pub mod clock;
pub mod complaint;
pub mod copying;
pub mod datapath;
pub mod egress;
pub mod events;
pub mod exporter;
pub mod flows;
pub mod handshake;
pub mod interfaces;
pub mod layouts;
pub mod neighbours;
pub mod netlink;
pub mod pins;
pub mod probes;
pub mod program;
pub mod rehearsal;
pub mod removal;
pub mod sessions;
pub mod state;
pub mod supervisor;
pub mod sweep;
pub mod tables;
pub mod trial;
pub mod upgrade;
