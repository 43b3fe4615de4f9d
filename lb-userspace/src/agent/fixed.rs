//! What a running agent cannot change.

use std::net::Ipv4Addr;

use crate::config::{Config, InterfaceName, MemberId};

/// The part of the configuration that sockets, maps and links were made with.
pub(super) struct Fixed {
    pub(super) id: MemberId,
    pub(super) own: Ipv4Addr,
    pub(super) port: u16,
    pub(super) interfaces: Vec<String>,
    pub(super) flows_max: u32,
}

impl Fixed {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            id: config.node.id,
            own: config.this_member().address,
            port: config.cluster.port,
            interfaces: config.node.interfaces.iter().map(|name| InterfaceName::as_str(name).to_owned()).collect(),
            flows_max: config.node.flows_max,
        }
    }

    /// Whether a running agent can take over `config`; why not.
    pub(super) fn accepts(&self, config: &Config) -> Result<(), String> {
        let new = Self::of(config);
        if new.id != self.id {
            return Err(format!("this member would be {} instead of {}", new.id, self.id));
        }
        if (new.own, new.port) != (self.own, self.port) {
            return Err(format!("this member would be at {}:{}", new.own, new.port));
        }
        if new.interfaces != self.interfaces {
            return Err(format!("the interfaces would be {}", new.interfaces.join(", ")));
        }
        if new.flows_max != self.flows_max {
            return Err(format!("the flow table would hold {}", new.flows_max));
        }
        Ok(())
    }
}
