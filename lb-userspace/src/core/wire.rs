//! What members say to each other over a session, byte by byte; `docs/design/0003-replication.md` has the tables.
//!
//! A frame is its length (4 bytes, of all that follows), a version, a type and a payload. All integers are big-endian.
//! Decoding is all or nothing: a frame with one impossible value yields none of its records.
//!
//! A session speaks the lower of the versions that both sides speak: a member that is not upgraded yet sees nothing that
//! it would not have seen before. What a version has said once is never said otherwise; `tests/golden` keeps it.

mod condition;
mod configuration;
mod digests;
mod epoch;
mod frame;
mod hello;
mod record;

use lb_common::rank::MEMBERS_MAX;

pub use self::{
    condition::{CONDITION_MAX, Condition, Opinion, Register},
    configuration::{ConfigurationId, GENERATION_MAX, Part, REFUSAL_MAX, TEXT_MAX},
    epoch::{EPOCH_MAX, Epoch, Standing},
    frame::{Decoder, Frame},
    hello::Hello,
    record::{Batch, Item, RECORD_V4, RECORD_V6, check},
};

/// The highest version that is spoken here.
pub const VERSION: u8 = 4;
/// The version of `Hello` itself, for ever: it is what versions are agreed on with.
pub const HELLO_VERSION: u8 = 1;
/// Bytes of a payload: what one read of a socket brings, and 1,337 records of IPv4.
pub const PAYLOAD_MAX: usize = 1 << 16;
/// Bytes of the cluster's name.
pub const NAME_MAX: usize = 64;

const LENGTH: usize = 4;
const HEADER: usize = LENGTH + 2;

const HELLO: u8 = 1;
const SNAPSHOT: u8 = 2;
const SNAPSHOT_END: u8 = 3;
const DELTA: u8 = 4;
const KEEPALIVE: u8 = 5;
const GOODBYE: u8 = 6;
const DIGESTS: u8 = 24;
const ACKNOWLEDGEMENT: u8 = 25;
const BUCKET: u8 = 26;
const RELAY: u8 = 27;
const EPOCH: u8 = 32;
const OPINIONS: u8 = 33;
const CONDITIONS: u8 = 34;
const CONFIGURATION_REQUEST: u8 = 56;
const CONFIGURATION_PART: u8 = 57;
const CONFIGURATION_REFUSAL: u8 = 58;
// Reserved: 16..=23 authentication, 24..=31 digests, 35..=39 epochs, 40..=47 ownership, 48..=55 queries, 59..=63 configuration.

/// The version that a type of frame came with; `None` where there is no such type.
const fn since(kind: u8) -> Option<u8> {
    match kind {
        HELLO | SNAPSHOT | SNAPSHOT_END | DELTA | KEEPALIVE | GOODBYE => Some(1),
        DIGESTS | ACKNOWLEDGEMENT | BUCKET | RELAY | EPOCH => Some(2),
        OPINIONS | CONDITIONS => Some(3),
        CONFIGURATION_REQUEST | CONFIGURATION_PART | CONFIGURATION_REFUSAL => Some(4),
        _ => None,
    }
}

/// Why bytes are no frame; the stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another version than the session's.
    #[error("a frame of version {said} of the protocol in a session of version {spoken}")]
    Version {
        /// The frame's.
        said: u8,
        /// The session's.
        spoken: u8,
    },
    /// Longer than any frame, or shorter.
    #[error("frame of {0} bytes")]
    Length(u32),
    /// No such frame in this version.
    #[error("frame of unknown type {0}")]
    Type(u8),
    /// The payload ends before its content does.
    #[error("truncated {0}")]
    Truncated(&'static str),
    /// The payload goes on after its content.
    #[error("bytes left over after {0}")]
    LeftOver(&'static str),
    /// A value that cannot be.
    #[error("impossible {0}")]
    Impossible(&'static str),
}

const fn is_member(id: u8) -> bool {
    id != 0 && id as usize <= MEMBERS_MAX
}

fn begin(version: u8, kind: u8) -> Vec<u8> {
    vec![0, 0, 0, 0, version, kind]
}

fn end(mut out: Vec<u8>) -> Vec<u8> {
    let length = ((out.len() - LENGTH) as u32).to_be_bytes();
    if let Some(place) = out.first_chunk_mut() {
        *place = length;
    }
    out
}

struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(WireError::Truncated(self.what))?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn take_slice(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(WireError::Truncated(self.what))?;
        self.bytes = rest;
        Ok(taken)
    }
}
