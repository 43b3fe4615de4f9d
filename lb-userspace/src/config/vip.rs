//! VIPs: where services are reached.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_common::{
    address::{is_martian_v4, is_martian_v6},
    flow::{SCTP, TCP, UDP},
    service::ServiceKey,
};
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::{address, section::Value, value::text};

/// What a VIP's port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Transmission control protocol.
    Tcp,
    /// User datagram protocol.
    Udp,
    /// Stream control transmission protocol.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
            Self::Sctp => SCTP,
        }
    }

    /// The protocol with that number, if it is balanced.
    pub fn of_number(number: u8) -> Option<Self> {
        match number {
            TCP => Some(Self::Tcp),
            UDP => Some(Self::Udp),
            SCTP => Some(Self::Sctp),
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
            "sctp" => Ok(Self::Sctp),
            other => Err(format!("protocol {other:?}: tcp, udp and sctp are balanced")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where a service is reached, and its identity: `203.0.113.10:80/tcp`, `[2001:db8::10]:any/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The virtual address.
    pub address: IpAddr,
    /// The port; 0 for every port that has no service of its own.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Vip {
    /// The same address and protocol, every port.
    pub fn any_port(self) -> Self {
        Self { port: 0, ..self }
    }

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
        let (socket, protocol) = text.split_once('/').ok_or("no protocol: append /tcp, /udp or /sctp")?;
        let protocol = protocol.parse()?;
        let no_socket = || format!("{socket:?} is no address with a port");
        let (address, port) = match socket.strip_suffix(":any") {
            Some(address) => {
                let any = SocketAddr::from_str(&format!("{address}:0")).map_err(|_unspecific| no_socket())?;
                (any.ip(), 0)
            }
            None => {
                let socket = SocketAddr::from_str(socket).map_err(|_unspecific| no_socket())?;
                if socket.port() == 0 {
                    return Err("port 0; every port is \"any\"".into());
                }
                (socket.ip(), socket.port())
            }
        };
        let is_foreign = match address {
            IpAddr::V4(v4) => is_martian_v4(v4.octets()),
            IpAddr::V6(v6) => is_martian_v6(&v6.octets()) || v6.is_unicast_link_local(),
        };
        if is_foreign {
            return Err(format!("{address} cannot be a VIP"));
        }
        Ok(Self { address, port, protocol })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, protocol } = self;
        f.pad(&match (address, port) {
            (IpAddr::V4(v4), 0) => format!("{v4}:any/{protocol}"),
            (IpAddr::V6(v6), 0) => format!("[{v6}]:any/{protocol}"),
            _ => format!("{}/{protocol}", SocketAddr::new(*address, *port)),
        })
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

    fn schema() -> Json {
        let pattern = r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):(any|[0-9]{1,5})/(tcp|udp|sctp)$";
        json!({ "type": "string", "pattern": pattern })
    }
}
