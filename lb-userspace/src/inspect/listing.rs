//! Flows and backends, one by one.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    flow::{FlowEntry, FlowKey as _, tick},
    target::Target,
};
use serde::Serialize;

use super::{
    status::Readings,
    words::{self, Backend, FlowFacts, NextHopFacts, Traffic},
};
use crate::{
    config::{Names, Protocol, Vip},
    core::Key,
    pinned::{Pinned, PinnedError},
};

/// A flow; `tandem get flows -o json` prints a list of these. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// `ADDRESS:PORT` of the client.
    pub client: SocketAddr,
    /// `ADDRESS:PORT/PROTOCOL`.
    pub vip: Vip,
    /// The service's name, if the configuration file was readable.
    pub service: Option<String>,
    /// Its entry.
    #[serde(flatten)]
    pub facts: FlowFacts,
}

/// A backend of a service; `tandem get backends -o json` prints a list of these. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceBackend {
    /// The service's identity.
    pub vip: Vip,
    /// The service's name, if the configuration file was readable.
    pub service: Option<String>,
    /// The backend.
    #[serde(flatten)]
    pub backend: Backend,
    /// Slots of the service's ring that lead to it, of [`RING_SLOTS`](lb_common::ring::RING_SLOTS).
    pub ring_slots: u32,
    /// What was delivered to it from here.
    pub delivered: Traffic,
    /// The way to it, once it is resolved.
    pub next_hop: Option<NextHopFacts>,
}

/// Which flows are wanted; everything that is not said matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The client's port.
    pub client_port: Option<u16>,
    /// The VIP's address.
    pub vip: Option<IpAddr>,
    /// The VIP's port.
    pub vip_port: Option<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
}

impl Filter {
    /// Whether a flow is wanted.
    pub fn matches(&self, key: &Key) -> bool {
        let (client, vip) = (words::client(key), key.service());
        self.client.is_none_or(|wanted| wanted == client.ip())
            && self.client_port.is_none_or(|wanted| wanted == client.port())
            && self.vip.is_none_or(|wanted| crate::config::address(wanted) == vip.address)
            && self.vip_port.is_none_or(|wanted| wanted.to_be_bytes() == vip.port)
            && self.protocol.is_none_or(|protocol| protocol.number() == vip.protocol)
    }
}

/// The flows that `filter` wants, at most `limit` (0 for all), and whether there were more.
///
/// # Errors
///
/// Those of reading the maps.
pub fn flows(
    pinned: &Pinned,
    names: &Names,
    filter: &Filter,
    limit: usize,
    clock: impl Fn() -> u64,
) -> Result<(Vec<Flow>, bool), PinnedError> {
    let mut found = Vec::new();
    let mut is_cut = false;
    pinned.each_flow(|key, entry| {
        if filter.matches(&key) {
            is_cut = limit != 0 && found.len() == limit;
            if !is_cut {
                found.push((key, *entry));
            }
        }
        !is_cut
    })?;
    let backends = pinned.backends()?;
    let now = tick(clock());
    found.sort_unstable_by_key(|(key, _)| *key);
    Ok((found.iter().filter_map(|(key, entry)| flow(key, entry, &backends, now, names)).collect(), is_cut))
}

fn flow(key: &Key, entry: &FlowEntry, backends: &[Target], now: u32, names: &Names) -> Option<Flow> {
    let vip = words::vip(&key.service())?;
    let backend = backends.get(usize::from(entry.backend)).copied().unwrap_or(Target::NONE);
    let backend = words::backend(entry.backend, &backend, vip, names);
    Some(Flow {
        client: words::client(key),
        vip,
        service: names.service(vip).map(str::to_owned),
        facts: words::flow_facts(entry, backend, now, names),
    })
}

/// The backends of every service, by VIP and address.
pub fn backends(readings: &Readings, names: &Names) -> Vec<ServiceBackend> {
    let mut found = Vec::new();
    for (key, service, shares) in &readings.services {
        let Some(vip) = words::vip(key) else { continue };
        let of_service =
            (0_u16..).zip(&readings.backends).filter(|(_, backend)| backend.state != 0 && backend.ring == service.ring);
        for (slot, target) in of_service {
            found.push(ServiceBackend {
                vip,
                service: names.service(vip).map(str::to_owned),
                backend: words::backend(slot, target, vip, names),
                ring_slots: shares.get(&slot).copied().unwrap_or(0),
                delivered: readings.delivered.get(&slot).copied().unwrap_or_default(),
                next_hop: words::next_hop(&target.next_hop),
            });
        }
    }
    found.sort_by_key(|backend| (backend.vip, backend.backend.address));
    found
}
