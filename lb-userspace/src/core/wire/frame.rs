//! Frames: what they are, and where they begin and end in a stream.

use super::{
    ACKNOWLEDGEMENT, BUCKET, CONDITIONS, CONFIGURATION_PART, CONFIGURATION_REFUSAL, CONFIGURATION_REQUEST, Condition,
    ConfigurationId, DELTA, DIGESTS, EPOCH, GOODBYE, HEADER, HELLO, HELLO_VERSION, Hello, KEEPALIVE, LENGTH, OPINIONS,
    Opinion, PAYLOAD_MAX, Part, RELAY, Reader, SNAPSHOT, SNAPSHOT_END, Standing, WireError, begin, digests, end,
    record::{Batch, Item, items},
    since,
};
use crate::core::digests::BUCKETS;

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
    /// Records that have changed; since version 2, of the sender's making.
    Delta(Vec<Item>),
    /// The sender lives.
    Keepalive,
    /// The sender is about to stop.
    Goodbye,
    /// The sender's digests, by bucket; since version 2, as what follows.
    Digests(Vec<u64>),
    /// What was applied here of the receiver's deltas and buckets.
    Acknowledgement {
        /// How many frames, since the session began.
        frames: u64,
    },
    /// Records that have changed, and that others have made.
    Relay(Vec<Item>),
    /// Records of a bucket that is sent whole.
    Bucket {
        /// Its number.
        bucket: u16,
        /// Whether these are the last ones.
        is_last: bool,
        /// Some of them.
        items: Vec<Item>,
    },
    /// How the sender stands in the matter of epochs.
    Epoch(Standing),
    /// What the sender's checks say of backends, as far as it has changed.
    Opinions(Vec<Opinion>),
    /// What the cluster knows of backends, as far as it has changed.
    Conditions(Vec<Condition>),
    /// The sender wants the text of a configuration that the receiver said it has.
    ConfigurationRequest(ConfigurationId),
    /// Some of it.
    ConfigurationPart(Part),
    /// The sender does not take a configuration over.
    ConfigurationRefusal {
        /// Which.
        id: ConfigurationId,
        /// Why, for people.
        why: String,
    },
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

    /// The next frame of a session that speaks `version`; `None` until more bytes come. After an error the stream is of
    /// no more use.
    pub fn next_frame(&mut self, version: u8) -> Result<Option<Frame>, WireError> {
        let bytes = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        // Judged before it is waited for, so that no peer makes us hold more than one frame.
        if !(HEADER - LENGTH..=HEADER - LENGTH + PAYLOAD_MAX).contains(&(length as usize)) {
            return Err(WireError::Length(length));
        }
        let Some(body) = rest.get(..length as usize) else { return Ok(None) };
        let frame = decode(version, body)?;
        self.start += LENGTH + length as usize;
        Ok(Some(frame))
    }
}

impl Frame {
    /// The frame's bytes in a session that speaks `version`.
    pub fn encode(&self, version: u8) -> Vec<u8> {
        debug_assert!(since(self.kind()).is_some_and(|since| since <= version), "{self:?}");
        match self {
            Self::Hello(hello) => hello.encode(),
            Self::Snapshot(items) => Batch::snapshot(version).with(items).finish(),
            Self::SnapshotEnd { records } => {
                let mut out = begin(version, SNAPSHOT_END);
                out.extend(records.to_be_bytes());
                end(out)
            }
            Self::Delta(items) => Batch::delta(version).with(items).finish(),
            Self::Relay(items) => Batch::relay(version).with(items).finish(),
            Self::Acknowledgement { frames } => {
                let mut out = begin(version, ACKNOWLEDGEMENT);
                out.extend(frames.to_be_bytes());
                end(out)
            }
            Self::Digests(sums) => digests::encode(version, sums),
            Self::Bucket { bucket, is_last, items } => {
                let batch = Batch::bucket(version, *bucket).with(items);
                if *is_last { batch.finish_bucket() } else { batch.finish() }
            }
            Self::Epoch(standing) => standing.encode(version),
            Self::Opinions(opinions) => Opinion::encode(version, opinions),
            Self::Conditions(conditions) => Condition::encode(version, conditions),
            Self::ConfigurationRequest(id) => id.encode_request(version),
            Self::ConfigurationPart(part) => part.encode(version),
            Self::ConfigurationRefusal { id, why } => id.encode_refusal(version, why),
            Self::Keepalive | Self::Goodbye => end(begin(version, self.kind())),
        }
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => HELLO,
            Self::Snapshot(_) => SNAPSHOT,
            Self::SnapshotEnd { .. } => SNAPSHOT_END,
            Self::Delta(_) => DELTA,
            Self::Keepalive => KEEPALIVE,
            Self::Goodbye => GOODBYE,
            Self::Digests(_) => DIGESTS,
            Self::Acknowledgement { .. } => ACKNOWLEDGEMENT,
            Self::Bucket { .. } => BUCKET,
            Self::Epoch(_) => EPOCH,
            Self::Opinions(_) => OPINIONS,
            Self::Conditions(_) => CONDITIONS,
            Self::ConfigurationRequest(_) => CONFIGURATION_REQUEST,
            Self::ConfigurationPart(_) => CONFIGURATION_PART,
            Self::ConfigurationRefusal { .. } => CONFIGURATION_REFUSAL,
            Self::Relay(_) => RELAY,
        }
    }
}

fn decode(spoken: u8, body: &[u8]) -> Result<Frame, WireError> {
    let (&[said, kind], payload) = body.split_first_chunk().ok_or(WireError::Truncated("frame"))?;
    let expected = if kind == HELLO { HELLO_VERSION } else { spoken };
    if said != expected {
        return Err(WireError::Version { said, spoken: expected });
    }
    if since(kind).is_none_or(|since| since > said) {
        return Err(WireError::Type(kind));
    }
    let mut reader = Reader { bytes: payload, what: "frame" };
    let frame = match kind {
        HELLO => Frame::Hello(Hello::decode(&mut reader)?),
        SNAPSHOT => Frame::Snapshot(items(&mut reader)?),
        SNAPSHOT_END => {
            reader.what = "end of snapshot";
            Frame::SnapshotEnd { records: u64::from_be_bytes(reader.take()?) }
        }
        DELTA => Frame::Delta(items(&mut reader)?),
        RELAY => Frame::Relay(items(&mut reader)?),
        KEEPALIVE => Frame::Keepalive,
        GOODBYE => Frame::Goodbye,
        DIGESTS => Frame::Digests(digests::decode(&mut reader)?),
        ACKNOWLEDGEMENT => {
            reader.what = "acknowledgement";
            Frame::Acknowledgement { frames: u64::from_be_bytes(reader.take()?) }
        }
        BUCKET => {
            reader.what = "bucket";
            let bucket = u16::from_be_bytes(reader.take()?);
            let [last] = reader.take()?;
            if usize::from(bucket) >= BUCKETS || last > 1 {
                return Err(WireError::Impossible("bucket"));
            }
            Frame::Bucket { bucket, is_last: last == 1, items: items(&mut reader)? }
        }
        EPOCH => Frame::Epoch(Standing::decode(&mut reader)?),
        OPINIONS => Frame::Opinions(Opinion::decode(&mut reader)?),
        CONDITIONS => Frame::Conditions(Condition::decode(&mut reader)?),
        CONFIGURATION_REQUEST => Frame::ConfigurationRequest(ConfigurationId::decode_request(&mut reader)?),
        CONFIGURATION_PART => Frame::ConfigurationPart(Part::decode(&mut reader)?),
        CONFIGURATION_REFUSAL => {
            let (id, why) = ConfigurationId::decode_refusal(&mut reader)?;
            Frame::ConfigurationRefusal { id, why }
        }
        other => return Err(WireError::Type(other)),
    };
    if reader.bytes.is_empty() { Ok(frame) } else { Err(WireError::LeftOver(reader.what)) }
}
