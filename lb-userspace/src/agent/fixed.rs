//! What a running agent cannot change.

use std::net::{IpAddr, SocketAddr};

use crate::config::{Config, InterfaceName, MemberId, MultiBuffer};

/// The part of the configuration that sockets, maps and links were made with.
#[derive(Clone)]
pub(super) struct Fixed {
    pub(super) id: MemberId,
    pub(super) own: IpAddr,
    pub(super) port: u16,
    pub(super) interfaces: Vec<String>,
    pub(super) multi_buffer: MultiBuffer,
    pub(super) announce_table: Option<u32>,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) flows_max: u32,
    pub(super) flows_v6_max: u32,
}

impl Fixed {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            id: config.node.id,
            own: config.this_member().address,
            port: config.cluster.port,
            interfaces: config.node.interfaces.iter().map(|name| InterfaceName::as_str(name).to_owned()).collect(),
            multi_buffer: config.node.multi_buffer,
            announce_table: config.node.announce_table,
            metrics_listen: config.node.metrics_listen,
            flows_max: config.node.flows_max,
            flows_v6_max: config.node.flows_v6_max,
        }
    }

    /// Whether a running agent can take over `config`; why not.
    pub(super) fn accepts(&self, config: &Config) -> Result<(), String> {
        let new = Self::of(config);
        if new.id != self.id {
            return Err(format!("this member would be {} instead of {}", new.id, self.id));
        }
        if (new.own, new.port) != (self.own, self.port) {
            return Err(format!("this member would be at {}", SocketAddr::new(new.own, new.port)));
        }
        if new.interfaces != self.interfaces {
            return Err(format!("the interfaces would be {}", new.interfaces.join(", ")));
        }
        if new.flows_max != self.flows_max {
            return Err(format!("the flow table would hold {}", new.flows_max));
        }
        if new.flows_v6_max != self.flows_v6_max {
            return Err(format!("the table of IPv6 flows would hold {}", new.flows_v6_max));
        }
        if new.announce_table != self.announce_table {
            return Err("node.announce_table would change".to_owned());
        }
        if new.metrics_listen != self.metrics_listen {
            return Err("node.metrics_listen would change".to_owned());
        }
        if new.multi_buffer != self.multi_buffer {
            return Err("node.multi_buffer would change".to_owned());
        }
        Ok(())
    }
}
