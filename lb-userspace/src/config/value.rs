//! The values of a configuration: a type each, so that an invalid one cannot be held.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU8,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use lb_common::{
    address::{is_martian_v4, is_martian_v6},
    rank::{self, MEMBERS_MAX},
};
use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::section::{Value, found, nearest};
use crate::identity::PublicKey;

/// Keys of a member at a time: the one it has, and the one it is given.
pub(super) const PUBLIC_KEYS_MAX: usize = 2;

/// A member's identity: 1 to 64, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(NonZeroU8);

impl MemberId {
    /// The id `id`, if it is one.
    pub fn new(id: u8) -> Option<Self> {
        NonZeroU8::new(id).filter(|id| usize::from(id.get()) <= MEMBERS_MAX).map(Self)
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// The member's bit in masks.
    pub fn bit(self) -> u64 {
        rank::bit(self.get())
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Value for MemberId {
    fn what() -> String {
        format!("a member id: 1 to {MEMBERS_MAX}")
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let Integer::<0, { u64::MAX }>(id) = Integer::read(value)?;
        u8::try_from(id).ok().and_then(Self::new).ok_or_else(|| "out of range".into())
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 1, "maximum": MEMBERS_MAX })
    }
}

/// A member's public keys: one, or two while one replaces the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKeys(pub(super) Vec<PublicKey>);

impl Value for PublicKeys {
    fn what() -> String {
        "a public key as `tandem cluster keygen` prints it, or a list of two while one replaces the other".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let one = |value: &DeValue<'_>| match value.as_str() {
            Some(text) => text.parse::<PublicKey>().map_err(|error| error.to_string()),
            None => Err(found(value)),
        };
        match value.as_array() {
            None => Ok(Self(vec![one(value)?])),
            Some(array) if (1..=PUBLIC_KEYS_MAX).contains(&array.len()) => {
                array.iter().map(|value| one(value.get_ref())).collect::<Result<_, _>>().map(Self)
            }
            Some(array) => Err(format!("these are {}", array.len())),
        }
    }

    fn schema() -> Json {
        let one = json!({ "type": "string", "minLength": 44, "maxLength": 44 });
        json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": PUBLIC_KEYS_MAX }] })
    }
}

/// What something is called: 1 to 63 letters, digits, `.`, `_` and `-`, so that it needs no quotes anywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Bytes of the longest name: as in DNS (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 63;

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let stray = text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'));
        match (text.len(), stray) {
            (0, _) => Err("empty".into()),
            (_, Some(stray)) => Err(format!("{stray:?} is not allowed")),
            (1..=NAME_MAX, None) => Ok(Self(text.to_owned())),
            (length, None) => Err(format!("{length} characters")),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Value for Name {
    fn what() -> String {
        format!("a name: 1 to {NAME_MAX} of A-Z a-z 0-9 . _ -")
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value)?.parse()
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": format!("^[A-Za-z0-9._-]{{1,{NAME_MAX}}}$") })
    }
}

/// The name of a network interface; whether it exists is the host's business.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    /// As `dev_valid_name` of the kernel.
    fn from_str(text: &str) -> Result<Self, String> {
        let stray = text.chars().find(|c| matches!(c, '/' | ':' | '\0') || c.is_whitespace());
        match stray {
            Some(stray) => Err(format!("{stray:?} is not allowed")),
            None if text.is_empty() || text.len() >= libc::IFNAMSIZ || text == "." || text == ".." => {
                Err(format!("{text:?} cannot be an interface"))
            }
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Value for InterfaceName {
    fn what() -> String {
        format!("the name of an interface: 1 to {} characters", libc::IFNAMSIZ - 1)
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value)?.parse()
    }

    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1, "maxLength": libc::IFNAMSIZ - 1 })
    }
}

/// A backend's share of new flows, relative to the others: 0 (none) to [`Weight::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// With finer shares a ring of 16,381 slots would leave the light backends of a large service without one.
    pub const MAX: u16 = 1000;
    /// The weight of a backend that has none in the file.
    pub const DEFAULT: Self = Self(100);

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Value for Weight {
    fn what() -> String {
        format!("a weight: 0 to {}", Self::MAX)
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let Integer::<0, { Self::MAX as u64 }>(weight) = Integer::read(value)?;
        Ok(Self(weight as u16))
    }

    fn schema() -> Json {
        Integer::<0, { Self::MAX as u64 }>::schema()
    }

    fn written(&self) -> Option<toml::Value> {
        Some(toml::Value::Integer(self.0.into()))
    }
}

macro_rules! choices {
    ($($(#[$meta:meta])* $name:ident { $($(#[$choice_meta:meta])* $choice:ident = $text:literal,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$choice_meta])* $choice,)* }

        impl Value for $name {
            fn what() -> String {
                [$(concat!("\"", $text, "\"")),*].join(" or ")
            }

            fn read(value: &DeValue<'_>) -> Result<Self, String> {
                match text(value)? {
                    $($text => Ok(Self::$choice),)*
                    other => Err(nearest(other, &[$($text),*])
                        .map(|near| format!("did you mean {near:?}?"))
                        .unwrap_or_default()),
                }
            }

            fn schema() -> Json {
                json!({ "enum": [$($text),*] })
            }

            fn written(&self) -> Option<toml::Value> {
                Some(match self { $(Self::$choice => $text,)* }.into())
            }
        }
    )*};
}

choices! {
    /// When a flow is told to the others.
    Replicate {
        /// Once nobody can have made it up: the handshake is plausible and data follows.
        Plausible = "plausible",
        /// At its first packet.
        FirstPacket = "first-packet",
    }

    /// Who gets a packet whose flow another member owns.
    Handoff {
        /// The owner, by IP in IP; it delivers.
        Owner = "owner",
        /// Its backend, by whoever knows the flow; only packets of unknown flows go to an owner.
        Direct = "direct",
    }

    /// What new flows of one client have in common.
    Affinity {
        /// Nothing: each has a backend of its own.
        Flow = "flow",
        /// The backend, whatever their ports.
        Source = "source",
    }

    /// What a check asks.
    CheckKind {
        /// Nothing: there is none.
        None = "none",
        /// Whether a connection comes about.
        Tcp = "tcp",
        /// Whether a request is answered as it should be.
        Http = "http",
        /// The same over TLS.
        Https = "https",
        /// Whether a datagram is answered.
        Udp = "udp",
    }

    /// Where a check goes.
    CheckPath {
        /// To the VIP on the backend, as its traffic does.
        Vip = "vip",
        /// To the backend's own address.
        Backend = "backend",
    }

    /// What becomes of a service when all of its backends are down.
    AllDown {
        /// Those that went last stay: checks that fail everywhere are more likely wrong than right.
        Keep = "keep",
        /// Its packets are dropped.
        Drop = "drop",
    }

    /// Whether frames may lie in several buffers: MTUs beyond a page.
    MultiBuffer {
        /// Where the interface's MTU needs it.
        Auto = "auto",
        /// On every interface.
        On = "on",
        /// On none.
        Off = "off",
    }

    /// What becomes of a packet for a VIP that is of no service, or of a protocol that is not balanced.
    OtherTraffic {
        /// The host gets it.
        Pass = "pass",
        /// It is dropped.
        Drop = "drop",
    }

    /// What becomes of an IPv4 packet that no longer fits once encapsulated, and may be fragmented.
    TooBig {
        /// The client is told the size that fits.
        Answer = "answer",
        /// It is dropped.
        Drop = "drop",
    }

    /// What happens to the datapath when the agent stops.
    OnStop {
        /// Stays attached and serves known flows.
        Keep = "keep",
        /// Is detached.
        Detach = "detach",
    }
}

impl Value for bool {
    fn what() -> String {
        "true or false".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| found(value))
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }

    fn written(&self) -> Option<toml::Value> {
        Some((*self).into())
    }
}

impl Value for PathBuf {
    fn what() -> String {
        "the path of a file".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match text(value)? {
            "" => Err("empty".into()),
            path => Ok(path.into()),
        }
    }

    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}

impl Value for String {
    fn what() -> String {
        "a string".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value).map(str::to_owned)
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

/// A unicast address of a member or a backend.
impl Value for IpAddr {
    fn what() -> String {
        "an address, as in \"10.0.1.11\" or \"2001:db8:1::11\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match Self::from_str(text(value)?) {
            Ok(Self::V4(v4)) if is_martian_v4(v4.octets()) => Err("no packet can be sent there".into()),
            Ok(Self::V6(v6)) if v6.to_ipv4_mapped().is_some() => Err("write it as an IPv4 address".into()),
            Ok(Self::V6(v6)) if is_martian_v6(&v6.octets()) => Err("no packet can be sent there".into()),
            Ok(Self::V6(v6)) if v6.is_unicast_link_local() => Err("it means something else on every link".into()),
            Ok(address) => Ok(address),
            Err(_) => Err(String::new()),
        }
    }

    fn schema() -> Json {
        json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] })
    }
}

/// Where this host listens: an address of its own, or all of them.
impl Value for SocketAddr {
    fn what() -> String {
        "an address and a port, as in \"127.0.0.1:9477\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match Self::from_str(text(value)?) {
            Ok(socket) if socket.port() == 0 => Err("port 0".into()),
            Ok(socket) => Ok(socket),
            Err(_) => Err(String::new()),
        }
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$" })
    }
}

/// A prefix that the sources of outer headers are taken from; the host part of `address` is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The prefix.
    pub address: IpAddr,
    /// Its length in bits.
    pub length: u8,
}

impl Prefix {
    /// Shorter ones are surely not for this purpose alone.
    const LENGTH_MIN: u8 = 8;

    /// The first and the last address, as numbers.
    pub fn range(&self) -> (u128, u128) {
        let (first, width) = match self.address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        (first, first | host_mask(width - self.length))
    }

    /// Whether both hold some address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ((first, last), (begin, end)) = (self.range(), other.range());
        self.address.is_ipv4() == other.address.is_ipv4() && first <= end && begin <= last
    }
}

/// The lowest `bits` bits.
const fn host_mask(bits: u8) -> u128 {
    match bits {
        128 => u128::MAX,
        bits => (1 << bits) - 1,
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.length))
    }
}

impl Value for Prefix {
    fn what() -> String {
        "a prefix, as in \"10.99.0.0/24\" or \"2001:db8:99::/96\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let (address, length) = text(value)?.split_once('/').ok_or("no length")?;
        let address = IpAddr::from_str(address).map_err(|error| error.to_string())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let length: u8 = length.parse().map_err(|_not_a_number: std::num::ParseIntError| String::new())?;
        if !(Self::LENGTH_MIN..=width).contains(&length) {
            return Err(format!("the length is {} to {width}", Self::LENGTH_MIN));
        }
        let mask = !host_mask(width - length);
        let begin = match address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & mask as u32).into(),
            IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() & mask)),
        };
        if begin != address {
            return Err(format!("did you mean \"{begin}/{length}\"?"));
        }
        Ok(Self { address, length })
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" })
    }
}

/// An integer of `MIN..=MAX`.
pub(super) struct Integer<const MIN: u64, const MAX: u64>(pub(super) u64);

impl<const MIN: u64, const MAX: u64> Value for Integer<MIN, MAX> {
    fn what() -> String {
        format!("an integer of {MIN} to {MAX}")
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let integer = value.as_integer().ok_or_else(|| found(value))?;
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        number.filter(|number| (MIN..=MAX).contains(number)).map(Self).ok_or_else(|| "out of range".into())
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }

    fn written(&self) -> Option<toml::Value> {
        i64::try_from(self.0).ok().map(toml::Value::Integer)
    }
}

/// A duration of `MIN..=MAX` milliseconds, written "20ms", "2h4m".
pub(super) struct Period<const MIN: u64, const MAX: u64>(pub(super) Duration);

impl<const MIN: u64, const MAX: u64> Value for Period<MIN, MAX> {
    fn what() -> String {
        let [min, max] = [MIN, MAX].map(|ms| humantime::format_duration(Duration::from_millis(ms)).to_string());
        format!("a duration of {min} to {max}, as in \"20ms\" or \"2h4m\"")
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let duration = humantime::parse_duration(text(value)?).map_err(|error| error.to_string())?;
        let allowed = Duration::from_millis(MIN)..=Duration::from_millis(MAX);
        if allowed.contains(&duration) { Ok(Self(duration)) } else { Err("out of range".into()) }
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^([0-9]+ *[a-zµ]+ *)+$" })
    }

    fn written(&self) -> Option<toml::Value> {
        Some(humantime::format_duration(self.0).to_string().into())
    }
}

/// The string that `value` must be.
pub(super) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| found(value))
}
