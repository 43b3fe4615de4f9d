//! What a member's checks say of backends, and what the cluster has made of it.

use super::{CONDITIONS, OPINIONS, PAYLOAD_MAX, Reader, WireError, begin, end};

/// Numbers above this are nonsense: who claims the highest there is would be right for ever.
pub const CONDITION_MAX: u32 = 0xffff_0000;

/// What the sender's checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// Its id.
    pub backend: u64,
    /// Whether it answers.
    pub is_up: bool,
}

/// A register of a backend; of two the one with the higher number counts, then the one that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its id.
    pub backend: u64,
    /// Which.
    pub register: Register,
    /// Rises with every change; at least 1.
    pub number: u32,
    /// Its value.
    pub is_set: bool,
}

/// The registers of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    /// Its checks fail.
    Down,
    /// An operator has drained it.
    Drained,
}

impl Opinion {
    const BYTES: usize = 9;
    /// Opinions of one frame.
    pub(in crate::core) const FRAME_MAX: usize = PAYLOAD_MAX / Self::BYTES;

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
        reader.what = "opinion";
        let mut opinions = Vec::with_capacity(reader.bytes.len() / Self::BYTES);
        while !reader.bytes.is_empty() {
            let backend = u64::from_be_bytes(reader.take()?);
            opinions.push(Self { backend, is_up: bit(reader)? });
        }
        Ok(opinions)
    }

    pub(super) fn encode(version: u8, opinions: &[Self]) -> Vec<u8> {
        let mut out = begin(version, OPINIONS);
        for opinion in opinions {
            out.extend(opinion.backend.to_be_bytes());
            out.push(opinion.is_up.into());
        }
        end(out)
    }
}

impl Condition {
    const BYTES: usize = 14;
    /// Conditions of one frame.
    pub(in crate::core) const FRAME_MAX: usize = PAYLOAD_MAX / Self::BYTES;

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
        reader.what = "condition";
        let mut conditions = Vec::with_capacity(reader.bytes.len() / Self::BYTES);
        while !reader.bytes.is_empty() {
            let backend = u64::from_be_bytes(reader.take()?);
            let register = if bit(reader)? { Register::Drained } else { Register::Down };
            let number = u32::from_be_bytes(reader.take()?);
            if !(1..=CONDITION_MAX).contains(&number) {
                return Err(WireError::Impossible("number of a condition"));
            }
            conditions.push(Self { backend, register, number, is_set: bit(reader)? });
        }
        Ok(conditions)
    }

    pub(super) fn encode(version: u8, conditions: &[Self]) -> Vec<u8> {
        let mut out = begin(version, CONDITIONS);
        for condition in conditions {
            out.extend(condition.backend.to_be_bytes());
            out.push(u8::from(condition.register == Register::Drained));
            out.extend(condition.number.to_be_bytes());
            out.push(condition.is_set.into());
        }
        end(out)
    }
}

fn bit(reader: &mut Reader<'_>) -> Result<bool, WireError> {
    match reader.take()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [_] => Err(WireError::Impossible(reader.what)),
    }
}
