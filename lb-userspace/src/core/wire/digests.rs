//! The digests of all buckets, in one frame.

use super::{DIGESTS, Reader, WireError, begin, end};
use crate::core::digests::BUCKETS;

pub(super) fn encode(version: u8, digests: &[u64]) -> Vec<u8> {
    debug_assert_eq!(digests.len(), BUCKETS);
    let mut out = begin(version, DIGESTS);
    out.reserve(size_of_val(digests));
    digests.iter().for_each(|digest| out.extend_from_slice(&digest.to_be_bytes()));
    end(out)
}

pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Vec<u64>, WireError> {
    reader.what = "digests";
    let (words, _) = reader.take_slice(BUCKETS * size_of::<u64>())?.as_chunks();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}
