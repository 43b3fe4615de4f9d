//! What a member says of the servers that new flows go to.

use super::{EPOCH, Reader, WireError, begin, end};

/// Numbers above this are nonsense: who claims the highest there is would be right for ever.
pub const EPOCH_MAX: u32 = 0xffff_0000;

/// A generation of the backend set; the higher one counts. Number 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    /// Rises with every change.
    pub number: u32,
    /// Of the backend set.
    pub hash: u64,
}

/// What a member says of epochs: all there is to say, so that the last word counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What its rings are built from.
    pub in_force: Epoch,
    /// Hash of the set in its configuration.
    pub in_hand: u64,
    /// What it has acknowledged: all flows that it had were told before. Number 0 for nothing.
    pub next: Epoch,
}

impl Standing {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        reader.what = "epoch";
        let in_force = epoch(reader)?;
        let in_hand = u64::from_be_bytes(reader.take()?);
        let next = epoch(reader)?;
        Ok(Self { in_force, in_hand, next })
    }

    pub(super) fn encode(&self, version: u8) -> Vec<u8> {
        let mut out = begin(version, EPOCH);
        push(&mut out, self.in_force);
        out.extend(self.in_hand.to_be_bytes());
        push(&mut out, self.next);
        end(out)
    }
}

fn epoch(reader: &mut Reader<'_>) -> Result<Epoch, WireError> {
    let number = u32::from_be_bytes(reader.take()?);
    let hash = u64::from_be_bytes(reader.take()?);
    if number > EPOCH_MAX {
        return Err(WireError::Impossible("number of an epoch"));
    }
    Ok(Epoch { number, hash })
}

fn push(out: &mut Vec<u8>, epoch: Epoch) {
    out.extend(epoch.number.to_be_bytes());
    out.extend(epoch.hash.to_be_bytes());
}
