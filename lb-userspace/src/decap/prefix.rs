//! What the command line of `tandem decap` names: prefixes and VIPs.

use std::{
    fmt,
    net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use aya::maps::lpm_trie::Key;
use lb_common::{
    address::{Address, is_martian_v4, is_martian_v6, mapped},
    node::{V4, V6},
};

/// A prefix of either family; written as one, or as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// What is wrong with a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash.
    #[error("not an IP address: {0}")]
    Address(#[from] AddrParseError),
    /// The part after the slash.
    #[error("the length of an {family} prefix is a number from 0 to {width}", family = if *.width == 32 { "IPv4" } else { "IPv6" })]
    Length {
        /// Bits of an address of that family.
        width: u8,
    },
    /// An address within the prefix instead of the prefix.
    #[error("has bits set beyond its length; the prefix is {0}")]
    HostBits(Prefix),
    /// An IPv4 address in the clothes of an IPv6 one.
    #[error("write it as an IPv4 prefix")]
    Mapped,
}

impl Prefix {
    /// Over addresses of which IPv4 ones are mapped.
    pub(super) fn key(&self) -> Key<Address> {
        let mapped_bits = if self.address.is_ipv4() { 96 } else { 0 };
        Key::new(mapped_bits + u32::from(self.length), address_of(self.address))
    }

    /// `V4` or `V6`.
    pub(super) fn family(&self) -> usize {
        family_of(self.address)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address = IpAddr::from_str(address)?;
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(PrefixError::Mapped);
        }
        let width = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => width,
            Some(text) => text.parse().ok().filter(|length| *length <= width).ok_or(PrefixError::Length { width })?,
        };
        let prefix = Self { address: network(address, width - length), length };
        if prefix.address == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The address without its last `host` bits.
fn network(address: IpAddr, host: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(host.into()).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(host.into()).unwrap_or(0)).into(),
    }
}

/// An address that services are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vip(IpAddr);

/// What is wrong with a VIP.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipError {
    /// No address at all.
    #[error("not an IP address: {0}")]
    Address(#[from] AddrParseError),
    /// More than one address.
    #[error("a VIP is one address, without a length")]
    Prefix,
    /// With a port, as services are named elsewhere.
    #[error("a VIP is an address, without a port: decap does not look at ports")]
    Port,
    /// An IPv4 address in the clothes of an IPv6 one.
    #[error("write it as an IPv4 address")]
    Mapped,
    /// Loopback, multicast and their like.
    #[error("no packet can be sent there")]
    Martian,
}

impl Vip {
    /// The address.
    pub fn address(self) -> IpAddr {
        self.0
    }

    pub(super) fn key(self) -> Address {
        address_of(self.0)
    }

    /// `V4` or `V6`.
    pub(super) fn family(self) -> usize {
        family_of(self.0)
    }
}

impl FromStr for Vip {
    type Err = VipError;

    fn from_str(text: &str) -> Result<Self, VipError> {
        if text.contains('/') {
            return Err(VipError::Prefix);
        }
        if text.parse::<std::net::SocketAddr>().is_ok() {
            return Err(VipError::Port);
        }
        match text.parse()? {
            IpAddr::V4(v4) if is_martian_v4(v4.octets()) => Err(VipError::Martian),
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(VipError::Mapped),
            IpAddr::V6(v6) if is_martian_v6(&v6.octets()) => Err(VipError::Martian),
            address => Ok(Self(address)),
        }
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn address_of(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

const fn family_of(address: IpAddr) -> usize {
    if address.is_ipv4() { V4 } else { V6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_bad_ones_refused() {
        for good in
            ["10.0.1.0/24", "0.0.0.0/0", "10.0.1.11/32", "128.0.0.0/1", "2001:db8:1::/64", "::/0", "fd00::1/128"]
        {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        assert_eq!("10.0.1.11".parse::<Prefix>().unwrap().to_string(), "10.0.1.11/32");
        assert_eq!("fd00:1::11".parse::<Prefix>().unwrap().to_string(), "fd00:1::11/128");
        for bad in ["", "/", "10.0.1/24", "10.0.1.0/33", "10.0.1.0/-1", "10.0.1.0/", "fd00::/129", "10.0.1.0/24/1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_prefix_is_said_with_the_cure() {
        let says = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
        assert_eq!(says("10.0.1.1/24"), "has bits set beyond its length; the prefix is 10.0.1.0/24");
        assert_eq!(says("fd00:1::11/64"), "has bits set beyond its length; the prefix is fd00:1::/64");
        assert_eq!(says("10.0.1.0/33"), "the length of an IPv4 prefix is a number from 0 to 32");
        assert_eq!(says("fd00::/129"), "the length of an IPv6 prefix is a number from 0 to 128");
        assert_eq!(says("::ffff:10.0.1.0/120"), "write it as an IPv4 prefix");
        assert_eq!(says("lb1"), "not an IP address: invalid IP address syntax");
    }

    #[test]
    fn what_is_wrong_with_a_vip_is_said_with_the_cure() {
        let says = |text: &str| text.parse::<Vip>().unwrap_err().to_string();
        assert_eq!(says("203.0.113.10/32"), "a VIP is one address, without a length");
        for service in ["203.0.113.10:80", "[2001:db8::10]:80"] {
            assert_eq!(says(service), "a VIP is an address, without a port: decap does not look at ports");
        }
        assert_eq!(says("::ffff:203.0.113.10"), "write it as an IPv4 address");
        for nobody in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1"] {
            assert_eq!(says(nobody), "no packet can be sent there", "{nobody}");
        }
        assert_eq!(says("web"), "not an IP address: invalid IP address syntax");
        for good in ["203.0.113.10", "2001:db8::10"] {
            assert_eq!(good.parse::<Vip>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn a_prefix_covers_the_mapped_addresses_and_tells_its_family() {
        let key = "10.0.0.0/8".parse::<Prefix>().unwrap();
        assert_eq!((key.key().prefix_len(), key.key().data(), key.family()), (104, mapped([10, 0, 0, 0]), V4));
        let key = "fd00::/8".parse::<Prefix>().unwrap();
        assert_eq!((key.key().prefix_len(), key.key().data()[0], key.family()), (8, 0xfd, V6));
    }
}
