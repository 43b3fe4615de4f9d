//! How large a segment may be that the balancers still have to put an outer header in front of.

use std::{fmt, str::FromStr};

use lb_common::packet::{IPV4, IPV6};

/// What the command line says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// As large as the interface's MTU allows.
    Auto,
    /// So many bytes, whatever the family.
    Bytes(u16),
}

/// Every IPv4 host takes segments of so many bytes, also where none are named (RFC 9293, section 3.7.1).
const MSS_MIN: u16 = 536;
/// Bytes of a TCP header without options: they count as data here (RFC 6691).
const TCP_HEADER: usize = 20;

/// The text is neither.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`auto`, or a number from {MSS_MIN} to {}", u16::MAX)]
pub struct NoMss;

/// The MTU leaves too little.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an MTU of {mtu} bytes leaves {left} for a segment of an {family} client, fewer than {MSS_MIN}: give the link a larger one, or \
     say --mss BYTES"
)]
pub struct TooNarrow {
    mtu: u32,
    left: usize,
    family: &'static str,
}

impl Mss {
    /// The bounds by family of the clients (`V4`, `V6`), where packets with an outer header of `outer` bytes come in by an
    /// interface of `mtu`.
    pub(super) fn bounds(self, mtu: u32, outer: usize) -> Result<[u16; 2], TooNarrow> {
        let Self::Auto = self else { return Ok([self.fixed(); 2]) };
        let bound = |family, ip| {
            let left = (mtu as usize).saturating_sub(outer + ip + TCP_HEADER);
            let bytes = u16::try_from(left).unwrap_or(u16::MAX);
            if bytes < MSS_MIN { Err(TooNarrow { mtu, left, family }) } else { Ok(bytes) }
        };
        Ok([bound("IPv4", IPV4)?, bound("IPv6", IPV6)?])
    }

    const fn fixed(self) -> u16 {
        match self {
            Self::Auto => u16::MAX,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for Mss {
    type Err = NoMss;

    fn from_str(text: &str) -> Result<Self, NoMss> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().ok().filter(|bytes| *bytes >= MSS_MIN).map(Self::Bytes).ok_or(NoMss),
        }
    }
}

impl fmt::Display for Mss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_leaves_room_for_every_header() {
        assert_eq!(Mss::Auto.bounds(1500, IPV4), Ok([1440, 1420]));
        assert_eq!(Mss::Auto.bounds(1500, IPV6), Ok([1420, 1400]));
        assert_eq!(Mss::Auto.bounds(9000, IPV6), Ok([8920, 8900]));
        assert_eq!(Mss::Auto.bounds(1 << 20, IPV6), Ok([u16::MAX; 2]));
        let error = Mss::Auto.bounds(576, IPV4).unwrap_err().to_string();
        assert!(
            error.starts_with("an MTU of 576 bytes leaves 516 for a segment of an IPv4 client, fewer than 536"),
            "{error}"
        );
        assert!(Mss::Auto.bounds(0, IPV4).is_err());
    }

    #[test]
    fn a_number_is_taken_for_both_families() {
        assert_eq!("1440".parse(), Ok(Mss::Bytes(1440)));
        assert_eq!("auto".parse(), Ok(Mss::Auto));
        assert_eq!(Mss::Bytes(1440).bounds(576, IPV4), Ok([1440; 2]));
        for bad in ["", "535", "65536", "-1", "1440 ", "Auto"] {
            assert_eq!(bad.parse::<Mss>(), Err(NoMss), "{bad}");
        }
        assert_eq!(NoMss.to_string(), "`auto`, or a number from 536 to 65535");
    }
}
