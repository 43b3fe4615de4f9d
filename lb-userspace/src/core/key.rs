//! A flow's key of either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    flow::{FlowKey, FlowKeyV4, FlowKeyV6},
    hash::HashKey,
    service::ServiceKey,
};

/// A flow's key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// IPv4.
    V4(FlowKeyV4),
    /// IPv6.
    V6(FlowKeyV6),
}

impl From<FlowKeyV4> for Key {
    fn from(key: FlowKeyV4) -> Self {
        Self::V4(key)
    }
}

impl From<FlowKeyV6> for Key {
    fn from(key: FlowKeyV6) -> Self {
        Self::V6(key)
    }
}

impl FlowKey for Key {
    // Read only where packets are rewritten, which are of one family.
    const IS_V6: bool = false;

    fn hash(&self, key: &HashKey) -> u64 {
        match self {
            Self::V4(flow) => flow.hash(key),
            Self::V6(flow) => flow.hash(key),
        }
    }

    fn tag(&self) -> u32 {
        match self {
            Self::V4(flow) => flow.tag(),
            Self::V6(flow) => flow.tag(),
        }
    }

    fn service(&self) -> ServiceKey {
        match self {
            Self::V4(flow) => flow.service(),
            Self::V6(flow) => flow.service(),
        }
    }

    fn protocol(&self) -> u8 {
        match self {
            Self::V4(flow) => flow.protocol,
            Self::V6(flow) => flow.protocol,
        }
    }

    fn ports(&self) -> [u8; 4] {
        match self {
            Self::V4(flow) => flow.ports(),
            Self::V6(flow) => flow.ports(),
        }
    }

    fn with_ports(&self, ports: [u8; 4]) -> Self {
        match self {
            Self::V4(flow) => Self::V4(flow.with_ports(ports)),
            Self::V6(flow) => Self::V6(flow.with_ports(ports)),
        }
    }
}

impl Key {
    /// The client.
    pub fn source(&self) -> SocketAddr {
        match self {
            Self::V4(flow) => socket(Ipv4Addr::from(flow.source).into(), flow.source_port),
            Self::V6(flow) => socket(Ipv6Addr::from(flow.source).into(), flow.source_port),
        }
    }

    /// The VIP.
    pub fn destination(&self) -> SocketAddr {
        match self {
            Self::V4(flow) => socket(Ipv4Addr::from(flow.destination).into(), flow.destination_port),
            Self::V6(flow) => socket(Ipv6Addr::from(flow.destination).into(), flow.destination_port),
        }
    }
}

fn socket(address: IpAddr, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address, u16::from_be_bytes(port))
}
