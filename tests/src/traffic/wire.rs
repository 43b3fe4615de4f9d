//! What the lab's clients and servers say to each other over TCP; all integers big-endian.
//!
//! A request is a header and `length` bytes that follow from connection and sequence number. The
//! answer repeats the sequence number, says which server it is from, and carries a digest of the
//! bytes that arrived; to a request of the kind [`ECHO`] also the bytes themselves.

/// The answer repeats the request's bytes.
pub(super) const ECHO: u32 = 1;
/// The answer carries only their digest.
pub(super) const DIGEST: u32 = 2;

/// The most bytes one request may carry.
pub(super) const PAYLOAD_MAX: usize = 64 * 1024;

const REQUEST_MAGIC: u32 = 0x5444_5251;
const ANSWER_MAGIC: u32 = 0x5444_414e;

pub(super) const REQUEST_BYTES: usize = 28;
pub(super) const ANSWER_BYTES: usize = 28;

/// What precedes a request's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: u32,
    pub(super) length: u32,
    pub(super) connection: u64,
    pub(super) sequence: u64,
}

/// What precedes an answer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) server: u32,
    pub(super) length: u32,
    pub(super) sequence: u64,
    pub(super) digest: u64,
}

impl Request {
    pub(super) fn to_bytes(self) -> [u8; REQUEST_BYTES] {
        let words = [REQUEST_MAGIC, self.kind, self.length];
        join(words, [self.connection, self.sequence])
    }

    /// None when the bytes are no request, which on a checked connection means corruption.
    pub(super) fn from_bytes(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let ([magic, kind, length], [connection, sequence]) = split(bytes);
        let valid = magic == REQUEST_MAGIC && matches!(kind, ECHO | DIGEST) && length as usize <= PAYLOAD_MAX;
        valid.then_some(Self { kind, length, connection, sequence })
    }
}

impl Answer {
    pub(super) fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        join([ANSWER_MAGIC, self.server, self.length], [self.sequence, self.digest])
    }

    /// None when the bytes are no answer.
    pub(super) fn from_bytes(bytes: &[u8; ANSWER_BYTES]) -> Option<Self> {
        let ([magic, server, length], [sequence, digest]) = split(bytes);
        let valid = magic == ANSWER_MAGIC && length as usize <= PAYLOAD_MAX;
        valid.then_some(Self { server, length, sequence, digest })
    }
}

/// The bytes of request `sequence` on `connection`: different for each, the same for both sides.
pub(super) fn fill(connection: u64, sequence: u64, payload: &mut [u8]) {
    let mut state = (connection << 32 ^ sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in payload.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_be_bytes()[..chunk.len()]);
    }
}

/// A fingerprint of all bytes, their order and their number.
pub(super) fn digest(payload: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let (words, rest) = payload.as_chunks::<8>();
    let whole = words.iter().fold(payload.len() as u64, |hash, word| step(hash, u64::from_be_bytes(*word)));
    rest.iter().fold(whole, |hash, byte| step(hash, u64::from(*byte)))
}

fn join(words: [u32; 3], longs: [u64; 2]) -> [u8; 28] {
    let mut bytes = [0; 28];
    let (head, tail) = bytes.split_at_mut(12);
    for (place, word) in head.chunks_mut(4).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    for (place, long) in tail.chunks_mut(8).zip(longs) {
        place.copy_from_slice(&long.to_be_bytes());
    }
    bytes
}

fn split(bytes: &[u8; 28]) -> ([u32; 3], [u64; 2]) {
    let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
    let long = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
    ([word(0), word(4), word(8)], [long(12), long(20)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let request = Request { kind: DIGEST, length: 1400, connection: 7, sequence: 1 << 40 };
        assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        let answer = Answer { server: 3, length: 0, sequence: 9, digest: u64::MAX };
        assert_eq!(Answer::from_bytes(&answer.to_bytes()), Some(answer));
        assert_eq!(Request::from_bytes(&answer.to_bytes()), None);
        assert_eq!(Answer::from_bytes(&request.to_bytes()), None);
    }

    #[test]
    fn one_changed_or_swapped_byte_changes_the_digest() {
        let mut payload = [0; 1403];
        fill(5, 6, &mut payload);
        let clean = digest(&payload);
        for at in [0, 700, 1402] {
            payload[at] ^= 1;
            assert_ne!(digest(&payload), clean);
            payload[at] ^= 1;
        }
        payload.swap(8, 16);
        assert_ne!(digest(&payload), clean);
        assert_ne!(digest(&[0; 3]), digest(&[0; 4]));
    }

    #[test]
    fn no_two_requests_carry_the_same_bytes() {
        let bytes = |connection, sequence| {
            let mut payload = [0; 64];
            fill(connection, sequence, &mut payload);
            payload
        };
        assert_ne!(bytes(1, 1), bytes(1, 2));
        assert_ne!(bytes(1, 1), bytes(2, 1));
        assert_eq!(bytes(3, 4), bytes(3, 4));
    }
}
