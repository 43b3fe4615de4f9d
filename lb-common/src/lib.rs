//! What every part of Tandem agrees on: map and wire layouts, and the pure decisions on them.
//!
//! The same functions run in the kernel (`lb-ebpf`), in the agent and in `tandem explain`
//! (`lb-userspace`), in the simulator and in the tests. The laws of this crate:
//!
//! * no allocation, no clock, no I/O, no panic path;
//! * a type that crosses a boundary is `repr(C)` without implicit padding (proven by zerocopy),
//!   without `bool`, `Option`, `enum` or `usize` inside; its size is asserted beside it;
//! * addresses and ports stay in network order, as byte arrays; IPv4 addresses in types with room
//!   for both families are v4-mapped (RFC 4291, section 2.5.5.2);
//! * times in maps are of the local monotonic clock and never leave the host.
//!
//! Modules are in the order of a packet's way.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod address;
pub mod bench;
pub mod bytes;
pub mod check;
pub mod checksum;
pub mod clamp;
pub mod decap;
pub mod flow;
pub mod hash;
pub mod lifecycle;
pub mod liveness;
pub mod maps;
pub mod node;
pub mod outer;
pub mod packet;
pub mod parse;
pub mod rank;
pub mod reason;
pub mod ring;
pub mod service;
pub mod steer;
pub mod target;
