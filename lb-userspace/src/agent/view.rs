//! The configuration as the core sees it.

use std::time::Duration;

use lb_common::{
    address::{Address, mapped},
    node::BUDGET_WINDOW_SHIFT,
};

use crate::{
    config::{Config, Replicate},
    core::view::{Backend, Limits, Member, Probing, Service, Timeouts, View},
};

/// The view that `config` gives to its member.
pub(super) fn of(config: &Config) -> View {
    let cluster = &config.cluster;
    let member = |member: &crate::config::Member| Member {
        id: member.id.get(),
        name: member.name.as_str().to_owned(),
        address: mapped(member.address.octets()),
    };
    let budgets = config.node.budgets;
    View {
        me: config.node.id.get(),
        members: cluster.members.iter().map(member).collect(),
        cluster: cluster.name.as_str().to_owned(),
        generation: cluster.generation,
        hash: config.cluster_hash(),
        hash_key: cluster.hash_key.words(),
        port: cluster.port,
        probing: Probing { interval: cluster.probe_interval, misses: u32::from(cluster.probe_misses) },
        first_packet: cluster.replicate == Replicate::FirstPacket,
        timeouts: Timeouts {
            young: cluster.timeouts.young,
            established: cluster.timeouts.tcp,
            closing: cluster.timeouts.closing,
            reset: cluster.timeouts.reset,
            udp: cluster.timeouts.udp,
        },
        budgets: [budgets.tcp, budgets.udp, budgets.derived, budgets.tcp, budgets.derived].map(per_window),
        services: config.services.iter().map(service).collect(),
        limits: Limits { flows: config.node.flows_max as usize, ..Limits::default() },
    }
}

/// Where packets are sent by `view`, apart from this member.
pub(super) fn targets(view: &View) -> Vec<Address> {
    let peers = view.members.iter().filter(|member| member.id != view.me).map(|member| member.address);
    let backends = view.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address);
    let own = view.member(view.me).map(|member| member.address);
    peers.chain(backends).filter(|address| Some(*address) != own).collect()
}

fn service(service: &crate::config::Service) -> Service {
    let backend = |backend: &crate::config::Backend| Backend {
        name: backend.name.as_str().to_owned(),
        address: mapped(backend.address.octets()),
        weight: backend.weight.get(),
        drain: backend.drain,
    };
    Service {
        name: service.name.as_str().to_owned(),
        vips: service.vips.iter().map(crate::config::Vip::key).collect(),
        backends: service.backends.iter().map(backend).collect(),
    }
}

/// A budget is configured per second and spent per window; the least is one flow a window.
fn per_window(per_second: u32) -> u32 {
    const WINDOW: Duration = Duration::from_nanos(1 << BUDGET_WINDOW_SHIFT);
    let flows = u128::from(per_second) * WINDOW.as_nanos() / 1_000_000_000;
    u32::try_from(flows).unwrap_or(u32::MAX).max(u32::from(per_second > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_per_second_is_spread_over_windows() {
        assert_eq!(per_window(0), 0);
        assert_eq!(per_window(1), 1);
        assert_eq!(per_window(125_000), 16_777);
        assert_eq!(per_window(u32::MAX), 576_460_752);
    }
}
