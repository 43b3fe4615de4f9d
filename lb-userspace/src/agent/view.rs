//! The configuration as the core sees it.

use std::time::Duration;

use lb_common::{
    address::Address,
    node::{BUDGET_WINDOW_SHIFT, PROBE_KEYS},
};

use crate::{
    config::{self, Affinity, Config, Handoff, OtherTraffic, Replicate, TooBig, address},
    core::view::{AllDown, Backend, Limits, Member, Prefix, Probing, Service, Timeouts, View},
    io::handshake::Trust,
};

/// The view that `config` gives to its member.
pub(super) fn of(config: &Config) -> View {
    let cluster = &config.cluster;
    let keys = |member: &config::Member| {
        let mut keys = [[0; 2]; PROBE_KEYS];
        let own = config.node.key.as_ref().filter(|_| member.id != config.node.id);
        for (place, public) in keys.iter_mut().zip(&member.public_keys) {
            let (me, peer) = (config.node.id.get(), member.id.get());
            *place = own.and_then(|own| own.probe_key(cluster.name.as_str(), me, peer, public)).unwrap_or_default();
        }
        keys
    };
    let member = |member: &config::Member| Member {
        id: member.id.get(),
        name: member.name.as_str().to_owned(),
        address: address(member.address),
        second_address: member.second_address.map(address),
        drain: member.drain,
        hand_off_source: member.hand_off_source.as_ref().map(prefix),
        probe_keys: keys(member),
    };
    let node = &config.node;
    let budgets = node.budgets;
    let delivery_source = |is_v4| {
        let mut sources = cluster.delivery_source.iter();
        sources.find(|source| source.address.is_ipv4() == is_v4).map(prefix)
    };
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
        direct: cluster.handoff == Handoff::Direct,
        drop_other: node.other_traffic == OtherTraffic::Drop,
        drop_oversized: node.too_big == TooBig::Drop,
        delivery_sources: [delivery_source(true), delivery_source(false)],
        timeouts: Timeouts {
            young: cluster.timeouts.young,
            established: cluster.timeouts.tcp,
            closing: cluster.timeouts.closing,
            reset: cluster.timeouts.reset,
            udp: cluster.timeouts.udp,
            sctp: cluster.timeouts.sctp,
            sctp_closing: cluster.timeouts.sctp_closing,
        },
        grace: cluster.grace,
        takeover_after: cluster.takeover_after,
        budgets: [budgets.tcp, budgets.udp, budgets.derived, budgets.sctp, budgets.answers].map(per_window),
        services: config.services.iter().map(service).collect(),
        limits: Limits {
            flows: node.flows_max as usize + node.flows_v6_max as usize,
            flows_v6: node.flows_v6_max as usize,
            ..Limits::default()
        },
    }
}

/// Whom `config` believes.
pub(super) fn trust(config: &Config) -> Trust {
    let peers = config.cluster.members.iter().filter(|member| member.id != config.node.id);
    let peers = peers.map(|member| (member.id.get(), member.public_keys.clone())).collect();
    Trust { own: config.node.key.clone(), peers }
}

/// Where packets are sent by `view`, apart from this member.
pub(super) fn targets(view: &View) -> Vec<Address> {
    let peers = view.members.iter().filter(|member| member.id != view.me).map(|member| member.address);
    let backends = view.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address);
    let own = view.member(view.me).map(|member| member.address);
    peers.chain(backends).filter(|address| Some(*address) != own).collect()
}

fn service(service: &config::Service) -> Service {
    let backend = |backend: &config::Backend| Backend {
        name: backend.name.as_str().to_owned(),
        address: address(backend.address),
        weight: backend.weight.get(),
        drain: backend.drain,
        down: false,
    };
    Service {
        name: service.name.as_str().to_owned(),
        vips: service.vips.iter().map(config::Vip::key).collect(),
        backends: service.backends.iter().map(backend).collect(),
        affinity: service.affinity == Affinity::Source,
        echo: service.echo,
        idle_timeout: service.idle_timeout,
        checked: service.health.as_ref().map(|health| match health.all_down {
            config::AllDown::Keep => AllDown::Keep,
            config::AllDown::Drop => AllDown::Drop,
        }),
    }
}

/// In the form of types for both families: an IPv4 prefix is mapped.
fn prefix(prefix: &config::Prefix) -> Prefix {
    let mapped_bits = if prefix.address.is_ipv4() { 96 } else { 0 };
    Prefix { address: address(prefix.address), length: mapped_bits + prefix.length }
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
