//! The first frame in each direction: who speaks, to whom, and which versions.

use super::{HELLO, HELLO_VERSION, NAME_MAX, Reader, WireError, begin, end, is_member};

const READY: u8 = 1;
const BULK: u8 = 2;

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
    /// Whether this connection is the second one of the pair, for bulk; since version 3, and said by who dials it.
    pub bulk: bool,
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

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = begin(HELLO_VERSION, HELLO);
        let flags = if self.ready { READY } else { 0 } | if self.bulk { BULK } else { 0 };
        out.extend([self.speaks, self.from, self.to, flags]);
        out.extend(self.incarnation.to_be_bytes());
        out.extend(self.heard_of.to_be_bytes());
        out.extend(self.generation.to_be_bytes());
        out.extend(self.hash.to_be_bytes());
        let name = self.cluster.as_bytes();
        let name = name.get(..name.len().min(NAME_MAX)).unwrap_or_default();
        out.push(name.len() as u8);
        out.extend(name);
        end(out)
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        reader.what = "hello";
        let [speaks, from, to, flags] = reader.take()?;
        let hello = Self {
            speaks,
            from,
            to,
            // Other flags are for versions to come.
            ready: flags & READY != 0,
            bulk: flags & BULK != 0,
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
}
