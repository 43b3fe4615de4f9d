//! What members say to each other over a session, byte by byte; `docs/design/0003-replication.md` has the tables.
//!
//! A frame is its length (4 bytes, of all that follows), a version, a type and a payload. All integers are big-endian.
//! Decoding is all or nothing: a frame with one impossible value yields none of its records.

use lb_common::{
    address::Address,
    flow::{FlowKey as _, FlowKeyV4, FlowKeyV6, SCTP, STATE_DELETED, STATE_YOUNG, TCP, UDP, WITNESSED},
    rank::MEMBERS_MAX,
};

use super::{
    key::Key,
    records::{BackendRegister, COUNT_MAX, Lifecycle, OwnersRegister, Record},
};

/// The version of all frames but `Hello`, and the highest that is spoken here.
pub const VERSION: u8 = 1;
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
// Reserved: 16..=23 authentication, 24..=31 digests, 32..=39 epochs, 40..=47 ownership, 48..=55 queries, 56..=63 configuration.

const HELLO_READY: u8 = 1;

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;
/// Bytes of a record of IPv4.
pub const RECORD_V4: usize = 49;
/// Bytes of a record of IPv6.
pub const RECORD_V6: usize = 73;

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first frame in each direction, and only that.
    Hello(Hello),
    /// Records that the sender holds.
    Snapshot(Vec<Item>),
    /// The snapshot is complete.
    SnapshotEnd {
        /// Records in it.
        records: u64,
    },
    /// Records that have changed.
    Delta(Vec<Item>),
    /// The sender lives.
    Keepalive,
    /// The sender is about to stop.
    Goodbye,
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The highest version the sender speaks; the session uses the lower of both.
    pub speaks: u8,
    /// The sender.
    pub from: u8,
    /// Whom it believes to speak to.
    pub to: u8,
    /// Whether the sender holds all records.
    pub ready: bool,
    /// The sender's incarnation.
    pub incarnation: u32,
    /// The latest incarnation of the receiver that the sender has heard of, 0 for none.
    pub heard_of: u32,
    /// The sender's configuration.
    pub generation: u64,
    /// Hash of its cluster part.
    pub hash: u64,
    /// The cluster's name.
    pub cluster: String,
}

/// A record on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The flow.
    pub key: Key,
    /// What is known of it.
    pub record: Record,
    /// Milliseconds since its last packet that the sender knows of.
    pub idle_ms: u32,
    /// Of a tombstone, seconds since the flow's end; 0 otherwise.
    pub ended_s: u8,
}

/// Why bytes are no frame; the stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another version than ours.
    #[error("speaks version {0} of the protocol, not {VERSION}")]
    Version(u8),
    /// Longer than any frame, or shorter.
    #[error("frame of {0} bytes")]
    Length(u32),
    /// No such frame.
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

/// Finds frames in a stream that comes in pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes more of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; `None` until more bytes come. After an error the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let bytes = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        // Judged before it is waited for, so that no peer makes us hold more than one frame.
        if !(HEADER - LENGTH..=HEADER - LENGTH + PAYLOAD_MAX).contains(&(length as usize)) {
            return Err(WireError::Length(length));
        }
        let Some(body) = rest.get(..length as usize) else { return Ok(None) };
        let frame = decode(body)?;
        self.start += LENGTH + length as usize;
        Ok(Some(frame))
    }
}

fn decode(body: &[u8]) -> Result<Frame, WireError> {
    let (&[version, kind], payload) = body.split_first_chunk().ok_or(WireError::Truncated("frame"))?;
    let expected = if kind == HELLO { HELLO_VERSION } else { VERSION };
    if version != expected {
        return Err(WireError::Version(version));
    }
    let mut reader = Reader { bytes: payload, what: "frame" };
    let frame = match kind {
        HELLO => Frame::Hello(hello(&mut reader)?),
        SNAPSHOT => Frame::Snapshot(items(&mut reader)?),
        SNAPSHOT_END => {
            reader.what = "end of snapshot";
            Frame::SnapshotEnd { records: u64::from_be_bytes(reader.take()?) }
        }
        DELTA => Frame::Delta(items(&mut reader)?),
        KEEPALIVE => Frame::Keepalive,
        GOODBYE => Frame::Goodbye,
        other => return Err(WireError::Type(other)),
    };
    if reader.bytes.is_empty() { Ok(frame) } else { Err(WireError::LeftOver(reader.what)) }
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello, WireError> {
    reader.what = "hello";
    let [speaks, from, to, flags] = reader.take()?;
    let hello = Hello {
        speaks,
        from,
        to,
        // Other flags are for versions to come.
        ready: flags & HELLO_READY != 0,
        incarnation: u32::from_be_bytes(reader.take()?),
        heard_of: u32::from_be_bytes(reader.take()?),
        generation: u64::from_be_bytes(reader.take()?),
        hash: u64::from_be_bytes(reader.take()?),
        cluster: {
            let [length] = reader.take()?;
            let name = reader.take_slice(usize::from(length))?;
            let name = str::from_utf8(name).ok().filter(|name| name.len() <= NAME_MAX);
            name.ok_or(WireError::Impossible("cluster name"))?.to_owned()
        },
    };
    if hello.speaks == 0 {
        return Err(WireError::Impossible("version"));
    }
    if !is_member(hello.from) || !is_member(hello.to) || hello.from == hello.to {
        return Err(WireError::Impossible("member id"));
    }
    if hello.incarnation == 0 {
        return Err(WireError::Impossible("incarnation"));
    }
    Ok(hello)
}

fn items(reader: &mut Reader<'_>) -> Result<Vec<Item>, WireError> {
    reader.what = "record";
    let mut items = Vec::with_capacity(reader.bytes.len() / RECORD_V4);
    while !reader.bytes.is_empty() {
        let item = item(reader)?;
        check(&item.key, &item.record).map_err(WireError::Impossible)?;
        if item.ended_s != 0 && !item.record.is_tombstone() {
            return Err(WireError::Impossible("end"));
        }
        items.push(item);
    }
    Ok(items)
}

fn item(reader: &mut Reader<'_>) -> Result<Item, WireError> {
    let [family] = reader.take()?;
    let key = match family {
        FAMILY_V4 => Key::V4(FlowKeyV4::new(
            reader.take()?,
            reader.take()?,
            reader.take()?,
            reader.take()?,
            reader.take::<1>()?[0],
        )),
        FAMILY_V6 => Key::V6(FlowKeyV6 {
            source: reader.take()?,
            destination: reader.take()?,
            source_port: reader.take()?,
            destination_port: reader.take()?,
            protocol: reader.take::<1>()?[0],
            padding: [0; 3],
        }),
        _ => return Err(WireError::Impossible("address family")),
    };
    let generation = u16::from_be_bytes(reader.take()?);
    let [creator] = reader.take()?;
    let backend = BackendRegister {
        witnessed: creator & WITNESSED != 0,
        creator: creator & !WITNESSED,
        incarnation: u32::from_be_bytes(reader.take()?),
        address: reader.take::<{ size_of::<Address>() }>()?,
    };
    let lifecycle = Lifecycle { revision: u16::from_be_bytes(reader.take()?), state: reader.take::<1>()?[0] };
    let term = u16::from_be_bytes(reader.take()?);
    let [primary, backup] = reader.take()?;
    let owners = OwnersRegister { term, primary, backup };
    let idle_ms = u32::from_be_bytes(reader.take()?);
    let [ended_s] = reader.take()?;
    Ok(Item { key, record: Record { generation, backend, lifecycle, owners }, idle_ms, ended_s })
}

/// What no record may say: such a one is neither sent nor believed.
pub fn check(key: &Key, record: &Record) -> Result<(), &'static str> {
    let Record { backend, lifecycle, owners, .. } = record;
    if !matches!(key.protocol(), TCP | UDP | SCTP) {
        return Err("protocol");
    }
    if record.generation.max(lifecycle.revision).max(owners.term) > COUNT_MAX {
        return Err("count");
    }
    if !is_member(backend.creator) {
        return Err("creator");
    }
    if backend.address == [0; 16] {
        return Err("backend");
    }
    if !matches!(lifecycle.state, STATE_YOUNG..=STATE_DELETED) {
        return Err("state");
    }
    if !is_member(owners.primary) || owners.backup as usize > MEMBERS_MAX || owners.primary == owners.backup {
        return Err("owners");
    }
    Ok(())
}

const fn is_member(id: u8) -> bool {
    id != 0 && id as usize <= MEMBERS_MAX
}

impl Frame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => {
                let mut out = begin(HELLO_VERSION, HELLO);
                out.extend([hello.speaks, hello.from, hello.to, if hello.ready { HELLO_READY } else { 0 }]);
                out.extend(hello.incarnation.to_be_bytes());
                out.extend(hello.heard_of.to_be_bytes());
                out.extend(hello.generation.to_be_bytes());
                out.extend(hello.hash.to_be_bytes());
                let name = hello.cluster.as_bytes();
                let name = name.get(..name.len().min(NAME_MAX)).unwrap_or_default();
                out.push(name.len() as u8);
                out.extend(name);
                end(out)
            }
            Self::Snapshot(items) => encode_items(Batch::snapshot(), items),
            Self::SnapshotEnd { records } => {
                let mut out = begin(VERSION, SNAPSHOT_END);
                out.extend(records.to_be_bytes());
                end(out)
            }
            Self::Delta(items) => encode_items(Batch::delta(), items),
            Self::Keepalive => end(begin(VERSION, KEEPALIVE)),
            Self::Goodbye => end(begin(VERSION, GOODBYE)),
        }
    }
}

fn encode_items(mut batch: Batch, items: &[Item]) -> Vec<u8> {
    for item in items {
        batch.push(item);
    }
    batch.finish()
}

/// A frame of records in the making.
pub struct Batch {
    out: Vec<u8>,
}

impl Batch {
    /// An empty `Snapshot`.
    pub fn snapshot() -> Self {
        Self { out: begin(VERSION, SNAPSHOT) }
    }

    /// An empty `Delta`.
    pub fn delta() -> Self {
        Self { out: begin(VERSION, DELTA) }
    }

    /// Whether another record of either family may not fit.
    pub fn is_full(&self) -> bool {
        self.out.len() + RECORD_V6 > HEADER + PAYLOAD_MAX
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.out.len() == HEADER
    }

    /// Adds a record; the caller has asked `is_full`.
    pub fn push(&mut self, item: &Item) {
        let out = &mut self.out;
        match &item.key {
            Key::V4(key) => {
                out.push(FAMILY_V4);
                out.extend_from_slice(&key.source);
                out.extend_from_slice(&key.destination);
                out.extend_from_slice(&key.source_port);
                out.extend_from_slice(&key.destination_port);
                out.push(key.protocol);
            }
            Key::V6(key) => {
                out.push(FAMILY_V6);
                out.extend_from_slice(&key.source);
                out.extend_from_slice(&key.destination);
                out.extend_from_slice(&key.source_port);
                out.extend_from_slice(&key.destination_port);
                out.push(key.protocol);
            }
        }
        let Record { generation, backend, lifecycle, owners } = &item.record;
        out.extend_from_slice(&generation.to_be_bytes());
        out.push(backend.creator | if backend.witnessed { WITNESSED } else { 0 });
        out.extend_from_slice(&backend.incarnation.to_be_bytes());
        out.extend_from_slice(&backend.address);
        out.extend_from_slice(&lifecycle.revision.to_be_bytes());
        out.push(lifecycle.state);
        out.extend_from_slice(&owners.term.to_be_bytes());
        out.extend_from_slice(&[owners.primary, owners.backup]);
        out.extend_from_slice(&item.idle_ms.to_be_bytes());
        out.push(item.ended_s);
    }

    /// The frame's bytes.
    pub fn finish(self) -> Vec<u8> {
        end(self.out)
    }
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
