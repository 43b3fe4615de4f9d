//! The programs of the object: which of them an interface runs, and where it is pinned.

use crate::{
    config::MultiBuffer,
    io::{attach::Mode, pins},
};

/// One body, two programs: what differs is whether frames may lie in several buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Frames lie in one buffer.
    Linear,
    /// They may lie in several (kernel 5.18).
    MultiBuffer,
}

/// The largest MTU for which every driver keeps a frame in one buffer of a page: 4096 bytes, less headroom and tailroom.
///
/// veth allows 3,506; Intel's drivers, whose buffers are of 3 KiB, 3,046.
const LINEAR_MTU_MAX: u32 = 3_000;

impl Entry {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Linear, Self::MultiBuffer];

    /// The one for an interface of that MTU.
    ///
    /// In generic mode the kernel makes frames linear before the program sees them.
    pub fn of(multi_buffer: MultiBuffer, mode: Mode, mtu: u32) -> Self {
        match multi_buffer {
            MultiBuffer::On => Self::MultiBuffer,
            MultiBuffer::Auto if mode == Mode::Native && mtu > LINEAR_MTU_MAX => Self::MultiBuffer,
            MultiBuffer::Auto | MultiBuffer::Off => Self::Linear,
        }
    }

    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Linear => "balancer",
            Self::MultiBuffer => "balancer_frags",
        }
    }

    /// The same of the program that takes outer headers off.
    pub const fn decap(self) -> &'static str {
        match self {
            Self::Linear => "decap",
            Self::MultiBuffer => "decap_frags",
        }
    }

    /// Where the program that the links run is pinned.
    pub const fn pin(self) -> &'static str {
        match self {
            Self::Linear => pins::PROGRAM,
            Self::MultiBuffer => pins::PROGRAM_FRAGS,
        }
    }

    /// Where the one that is about to take its place is.
    pub fn next_pin(self) -> String {
        format!("{}_new", self.pin())
    }

    /// Where the one before it is.
    pub fn previous_pin(self) -> String {
        format!("{}_old", self.pin())
    }
}
