//! Texts of the configuration, on their way from a member that has a later one: `docs/design/0016-configuration-life.md`.

use super::{
    CONFIGURATION_PART, CONFIGURATION_REFUSAL, CONFIGURATION_REQUEST, PAYLOAD_MAX, Reader, WireError, begin, end,
};

/// Generations above this are nonsense: who claims the highest there is would be right for ever. A file can hold it.
pub const GENERATION_MAX: u64 = (1 << 62) - 1;
/// Bytes of a text: 16,384 backends take a third of it.
pub const TEXT_MAX: usize = 4 << 20;
/// Bytes of the reason for a refusal.
pub const REFUSAL_MAX: usize = 1024;

/// Which configuration: of two the one with the higher generation counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigurationId {
    /// Rises with every change; 0 when nobody counts.
    pub generation: u64,
    /// Hash of what it means.
    pub hash: u64,
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Whose text.
    pub id: ConfigurationId,
    /// What it replaced at the sender.
    pub replaces: ConfigurationId,
    /// For how long it is still tried, in milliseconds; 0 when it is for good.
    pub trial_ms: u32,
    /// Bytes of the text.
    pub total: u32,
    /// Where this part begins in it.
    pub offset: u32,
    /// The part.
    pub bytes: Vec<u8>,
}

impl ConfigurationId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let id = Self { generation: u64::from_be_bytes(reader.take()?), hash: u64::from_be_bytes(reader.take()?) };
        if id.generation > GENERATION_MAX {
            return Err(WireError::Impossible("generation"));
        }
        Ok(id)
    }

    fn push(self, out: &mut Vec<u8>) {
        out.extend(self.generation.to_be_bytes());
        out.extend(self.hash.to_be_bytes());
    }

    pub(super) fn decode_request(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        reader.what = "request for a configuration";
        Self::decode(reader)
    }

    pub(super) fn encode_request(self, version: u8) -> Vec<u8> {
        let mut out = begin(version, CONFIGURATION_REQUEST);
        self.push(&mut out);
        end(out)
    }

    pub(super) fn decode_refusal(reader: &mut Reader<'_>) -> Result<(Self, String), WireError> {
        reader.what = "refusal of a configuration";
        let id = Self::decode(reader)?;
        let why = reader.take_slice(reader.bytes.len())?;
        let why = str::from_utf8(why).ok().filter(|why| why.len() <= REFUSAL_MAX);
        Ok((id, why.ok_or(WireError::Impossible(reader.what))?.to_owned()))
    }

    pub(super) fn encode_refusal(self, version: u8, why: &str) -> Vec<u8> {
        let mut out = begin(version, CONFIGURATION_REFUSAL);
        self.push(&mut out);
        out.extend(why.as_bytes().get(..why.floor_char_boundary(REFUSAL_MAX)).unwrap_or_default());
        end(out)
    }
}

impl Part {
    const HEAD: usize = 44;
    /// Bytes of the text in one frame.
    pub(in crate::core) const BYTES_MAX: usize = PAYLOAD_MAX - Self::HEAD;

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        reader.what = "part of a configuration";
        let (id, replaces) = (ConfigurationId::decode(reader)?, ConfigurationId::decode(reader)?);
        let [trial_ms, total, offset] = [reader.take()?, reader.take()?, reader.take()?].map(u32::from_be_bytes);
        let bytes = reader.take_slice(reader.bytes.len())?.to_vec();
        let is_within = (offset as usize).saturating_add(bytes.len()) <= total as usize && total as usize <= TEXT_MAX;
        if !is_within || bytes.is_empty() {
            return Err(WireError::Impossible(reader.what));
        }
        Ok(Self { id, replaces, trial_ms, total, offset, bytes })
    }

    pub(super) fn encode(&self, version: u8) -> Vec<u8> {
        let mut out = begin(version, CONFIGURATION_PART);
        self.id.push(&mut out);
        self.replaces.push(&mut out);
        [self.trial_ms, self.total, self.offset].iter().for_each(|value| out.extend(value.to_be_bytes()));
        out.extend(&self.bytes);
        end(out)
    }
}
