//! VIPs: where services are reached.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_common::{
    flow::{TCP, UDP},
    service::ServiceKey,
};
use serde::{Serialize, Serializer};
use toml::de::DeValue;

use super::{address, section::Value, value::text};

/// What a VIP's port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Transmission control protocol.
    Tcp,
    /// User datagram protocol.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// The protocol with that number, if it is balanced.
    pub fn of_number(number: u8) -> Option<Self> {
        match number {
            TCP => Some(Self::Tcp),
            UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(format!("protocol {other:?}: tcp and udp are balanced")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Where a service is reached, and its identity: `203.0.113.10:80/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The virtual address; IPv4 in this version.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Vip {
    /// The identity of the service at this VIP.
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            address: address(self.address),
            port: self.port.to_be_bytes(),
            protocol: self.protocol.number(),
            padding: 0,
        }
    }
}

impl FromStr for Vip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (socket, protocol) = text.split_once('/').ok_or("no protocol: append /tcp or /udp")?;
        let protocol = protocol.parse()?;
        let socket =
            SocketAddr::from_str(socket).map_err(|_unspecific| format!("{socket:?} is no address with a port"))?;
        if socket.port() == 0 {
            return Err("port 0".into());
        }
        if socket.ip().is_unspecified() || socket.ip().is_loopback() || socket.ip().is_multicast() {
            return Err(format!("{} cannot be a VIP", socket.ip()));
        }
        Ok(Self { address: socket.ip(), port: socket.port(), protocol })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", SocketAddr::new(self.address, self.port), self.protocol))
    }
}

impl Serialize for Vip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Value for Vip {
    fn what() -> String {
        "a VIP, as in \"203.0.113.10:80/tcp\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value)?.parse()
    }
}
