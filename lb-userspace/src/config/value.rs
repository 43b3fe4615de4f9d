//! The values of a configuration: a type each, so that an invalid one cannot be held.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU8,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use lb_common::{
    address::is_martian_v4,
    rank::{self, MEMBERS_MAX},
};
use toml::de::DeValue;

use super::section::{Value, found, nearest};

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

    /// What happens to the datapath when the agent stops.
    OnStop {
        /// Stays attached and serves known flows.
        Keep = "keep",
        /// Is detached.
        Detach = "detach",
    }
}

/// Who gets a packet whose flow another member owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handoff {
    /// The owner, by IP-in-IP; it delivers.
    Owner,
}

impl Value for Handoff {
    fn what() -> String {
        "\"owner\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match text(value)? {
            "owner" => Ok(Self::Owner),
            "direct" => Err("\"direct\" comes with a later version".into()),
            _ => Err(String::new()),
        }
    }
}

impl Value for bool {
    fn what() -> String {
        "true or false".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| found(value))
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
}

impl Value for String {
    fn what() -> String {
        "a string".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value).map(str::to_owned)
    }
}

/// A unicast address of a member or a backend. Outer headers are IPv4 in this version.
impl Value for Ipv4Addr {
    fn what() -> String {
        "an IPv4 address, as in \"10.0.1.11\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let text = text(value)?;
        match IpAddr::from_str(text) {
            Ok(IpAddr::V4(v4)) if is_martian_v4(v4.octets()) => Err("no packet can be sent there".into()),
            Ok(IpAddr::V4(v4)) => Ok(v4),
            Ok(IpAddr::V6(_)) => Err("IPv6 comes with a later version".into()),
            Err(_) => Err(String::new()),
        }
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
}

/// The string that `value` must be.
pub(super) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| found(value))
}
