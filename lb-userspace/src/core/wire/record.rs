//! Records on their way, and frames of them.

use lb_common::{
    address::Address,
    flow::{FlowKey as _, FlowKeyV4, FlowKeyV6, SCTP, STATE_DELETED, STATE_YOUNG, TCP, UDP, WITNESSED},
    rank::MEMBERS_MAX,
};

use super::{BUCKET, DELTA, HEADER, PAYLOAD_MAX, RELAY, Reader, SNAPSHOT, WireError, begin, end, is_member};
use crate::core::{
    key::Key,
    records::{BackendRegister, COUNT_MAX, Lifecycle, OwnersRegister, Record},
};

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;
/// Bytes of a record of IPv4.
pub const RECORD_V4: usize = 49;
/// Bytes of a record of IPv6.
pub const RECORD_V6: usize = 73;

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

/// A frame of records in the making.
pub struct Batch {
    out: Vec<u8>,
    /// Where records begin.
    start: usize,
}

impl Batch {
    /// An empty `Snapshot` in a session of `version`.
    pub fn snapshot(version: u8) -> Self {
        Self { out: begin(version, SNAPSHOT), start: HEADER }
    }

    /// An empty `Delta` in a session of `version`.
    pub fn delta(version: u8) -> Self {
        Self { out: begin(version, DELTA), start: HEADER }
    }

    /// An empty `Relay` in a session of `version`.
    pub fn relay(version: u8) -> Self {
        Self { out: begin(version, RELAY), start: HEADER }
    }

    /// An empty `Bucket` in a session of `version`.
    pub fn bucket(version: u8, bucket: u16) -> Self {
        let mut out = begin(version, BUCKET);
        out.extend(bucket.to_be_bytes());
        out.push(0);
        Self { start: out.len(), out }
    }

    pub(super) fn with(mut self, items: &[Item]) -> Self {
        items.iter().for_each(|item| self.push(item));
        self
    }

    /// Whether another record of either family may not fit.
    pub fn is_full(&self) -> bool {
        self.out.len() + RECORD_V6 > HEADER + PAYLOAD_MAX
    }

    /// Whether both together are as long as one may be.
    pub fn are_full(&self, other: &Self) -> bool {
        self.out.len() + other.out.len() + RECORD_V6 > HEADER + PAYLOAD_MAX
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.out.len() == self.start
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

    /// The bytes of a `Bucket` that has no more records.
    pub fn finish_bucket(mut self) -> Vec<u8> {
        if let Some(is_last) = self.out.get_mut(HEADER + size_of::<u16>()) {
            *is_last = 1;
        }
        self.finish()
    }

    /// The frame's bytes.
    pub fn finish(self) -> Vec<u8> {
        end(self.out)
    }
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

pub(super) fn items(reader: &mut Reader<'_>) -> Result<Vec<Item>, WireError> {
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
