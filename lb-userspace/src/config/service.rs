//! `[[service]]`, its VIPs and backends, and what services may not have in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
    time::Duration,
};

use lb_common::maps::{BACKENDS_MAX, SERVICES_MAX};
use toml::Spanned;

use super::{
    Backend, Service,
    cluster::ClusterDraft,
    health::{self, Health},
    problem::{Problem, Problems},
    section::{Section, reject_duplicates},
    value::{Affinity, Name, Period, Weight},
    vip::{Protocol, Vip},
};

/// A service as far as it could be read.
pub(super) struct ServiceDraft {
    pub(super) name: Option<Spanned<Name>>,
    pub(super) vips: Vec<Spanned<Vip>>,
    pub(super) backends: Vec<BackendDraft>,
    affinity: Option<Affinity>,
    echo: Option<bool>,
    pub(super) idle_timeout: Option<Option<Spanned<Duration>>>,
    health: Option<Option<Health>>,
}

/// A backend as far as it could be read.
pub(super) struct BackendDraft {
    pub(super) name: Option<Spanned<Name>>,
    pub(super) address: Option<Spanned<IpAddr>>,
    weight: Option<Weight>,
    drain: Option<bool>,
}

impl ServiceDraft {
    /// `None` goes with a problem.
    pub(super) fn finish(self) -> Option<Service> {
        Some(Service {
            name: self.name?.into_inner(),
            vips: self.vips.into_iter().map(Spanned::into_inner).collect(),
            backends: self.backends.into_iter().map(BackendDraft::finish).collect::<Option<_>>()?,
            affinity: self.affinity?,
            echo: self.echo?,
            idle_timeout: self.idle_timeout?.map(Spanned::into_inner),
            health: self.health?,
        })
    }
}

impl BackendDraft {
    fn finish(self) -> Option<Backend> {
        Some(Backend {
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            weight: self.weight?,
            drain: self.drain?,
        })
    }
}

pub(super) fn read_all(tables: Option<Spanned<Vec<Section<'_>>>>, problems: &Problems) -> Vec<ServiceDraft> {
    let Some(tables) = tables else { return Vec::new() };
    tables.into_inner().into_iter().map(|section| read(section, problems)).collect()
}

fn read(mut section: Section<'_>, problems: &Problems) -> ServiceDraft {
    if let Some(span) = section.lack("vip") {
        problems.push(Problem::new("the service has no VIP").at(span, "").help("vip = [\"203.0.113.10:80/tcp\"]"));
    }
    if let Some(span) = section.lack("backends") {
        let problem = Problem::new("the service has no backends").at(span, "");
        problems.push(problem.help("backends = [{ name = \"web-1\", address = \"10.0.2.11\" }]"));
    }
    let name = section.required("name");
    let vips: Vec<Spanned<Vip>> = section.list("vip");
    let draft = ServiceDraft {
        name,
        idle_timeout: read_idle_timeout(&mut section, &vips, problems),
        health: {
            let health = section.table("health", "health");
            health::read(health, &vips, problems)
        },
        vips,
        affinity: section.or("affinity", Affinity::Flow),
        echo: section.or("echo", true),
        backends: section
            .tables("backends", "a backend")
            .map(|tables| read_backends(tables, problems))
            .unwrap_or_default(),
    };
    section.demand("vip");
    section.demand("backends");
    section.finish();
    draft
}

/// Outer `None` goes with a problem.
fn read_idle_timeout(
    section: &mut Section<'_>,
    vips: &[Spanned<Vip>],
    problems: &Problems,
) -> Option<Option<Spanned<Duration>>> {
    const DAY: u64 = 24 * 3600 * 1000;
    let has_key = section.has("idle_timeout");
    let timeout = section.optional::<Period<1_000, DAY>>("idle_timeout");
    if let Some(timeout) = &timeout
        && !vips.is_empty()
        && vips.iter().all(|vip| vip.get_ref().protocol != Protocol::Udp)
    {
        let problem = Problem::new("`idle_timeout` is for UDP, and the service has no UDP VIP").at(timeout.span(), "");
        problems.push(problem.help("TCP and SCTP have `timeouts` in [cluster]"));
    }
    let timeout = timeout.map(|timeout| Spanned::new(timeout.span(), timeout.into_inner().0));
    if has_key { timeout.map(Some) } else { Some(None) }
}

fn read_backends(tables: Spanned<Vec<Section<'_>>>, problems: &Problems) -> Vec<BackendDraft> {
    let span = tables.span();
    let backends: Vec<BackendDraft> = tables
        .into_inner()
        .into_iter()
        .map(|mut section| {
            let backend = BackendDraft {
                name: section.required("name"),
                address: section.required("address"),
                weight: section.or("weight", Weight::DEFAULT),
                drain: section.or("drain", false),
            };
            section.finish();
            backend
        })
        .collect();
    let names = backends.iter().filter_map(|backend| backend.name.as_ref());
    reject_duplicates(names.map(|name| (name.get_ref(), name.span())), problems, |name| {
        format!("two backends of a service have the name {name}")
    });
    let addresses = backends.iter().filter_map(|backend| backend.address.as_ref());
    reject_duplicates(addresses.map(|address| (*address.get_ref(), address.span())), problems, |address| {
        format!("two backends of a service have the address {address}")
    });
    // That all of them drain is an operator's way to end a service, and valid.
    let idle = |backend: &BackendDraft| backend.weight.is_some_and(|weight| weight.get() == 0);
    if !backends.is_empty() && backends.iter().all(idle) {
        let problem = Problem::new("every backend of the service has weight 0: none would take new flows");
        problems.push(problem.at(span, "").help("give at least one a weight; to empty a service, set drain = true"));
    }
    backends
}

/// What is wrong between services, and between services and members.
pub(super) fn reject_conflicts(services: &[ServiceDraft], cluster: &ClusterDraft, problems: &Problems) {
    let names = services.iter().filter_map(|service| service.name.as_ref());
    reject_duplicates(names.map(|name| (name.get_ref(), name.span())), problems, |name| {
        format!("two services have the name {name}")
    });
    let vips = || services.iter().flat_map(|service| &service.vips);
    reject_duplicates(vips().map(|vip| (*vip.get_ref(), vip.span())), problems, |vip| {
        format!("the VIP {vip} is there twice")
    });
    reject_shared_addresses(services, cluster, problems);
    reject_unreachable(services, cluster, problems);
    reject_excess(services, problems);
}

/// A packet to an address that is two things at once would be taken for the wrong one, and could go round in circles.
fn reject_shared_addresses(services: &[ServiceDraft], cluster: &ClusterDraft, problems: &Problems) {
    let members: BTreeMap<IpAddr, Range<usize>> = cluster
        .members
        .iter()
        .flat_map(super::cluster::MemberDraft::addresses)
        .map(|address| (*address.get_ref(), address.span()))
        .collect();
    let mut vips = BTreeMap::new();
    for vip in services.iter().flat_map(|service| &service.vips) {
        let address = vip.get_ref().address;
        if let Some(member) = members.get(&address) {
            let problem = Problem::new(format!("the VIP {} has a member's address", vip.get_ref()));
            problems.push(problem.at(vip.span(), "a VIP").with(member.clone(), "the member"));
        }
        vips.entry(address).or_insert_with(|| vip.span());
    }
    let backends = services.iter().flat_map(|service| &service.backends);
    for address in backends.filter_map(|backend| backend.address.as_ref()) {
        let at = *address.get_ref();
        for (taken, owner) in [(members.get(&at), "member"), (vips.get(&at), "VIP")] {
            let Some(taken) = taken else { continue };
            let problem = Problem::new(format!("the backend address {at} is also a {owner}'s"));
            problems.push(problem.at(address.span(), "a backend").with(taken.clone(), format!("the {owner}")));
        }
    }
}

/// A delivery needs an address to come from, of the backend's family.
fn reject_unreachable(services: &[ServiceDraft], cluster: &ClusterDraft, problems: &Problems) {
    let backends =
        || services.iter().flat_map(|service| &service.backends).filter_map(|backend| backend.address.as_ref());
    for is_v4 in [true, false] {
        let Some(backend) = backends().find(|address| address.get_ref().is_ipv4() == is_v4) else { continue };
        if cluster.delivery_source.iter().any(|source| source.get_ref().address.is_ipv4() == is_v4) {
            continue;
        }
        let lacks = cluster
            .members
            .iter()
            .filter(|member| member.address.is_some())
            .find(|member| member.addresses().all(|address| address.get_ref().is_ipv4() != is_v4));
        let Some(member) = lacks else { continue };
        let (family, example) = if is_v4 { ("IPv4", "10.0.1.11") } else { ("IPv6", "2001:db8:1::11") };
        let problem = Problem::new(format!("no {family} address to deliver to {} from", backend.get_ref()));
        let problem = problem.at(backend.span(), format!("an {family} address"));
        let problem = match &member.address {
            Some(address) => problem.with(address.span(), "a member that has none"),
            None => problem,
        };
        problems.push(
            problem.help(format!("second_address = \"{example}\" for each member, or delivery_source in [cluster]")),
        );
    }
}

/// The maps that hold services and backends have a fixed size.
fn reject_excess(services: &[ServiceDraft], problems: &Problems) {
    let vips: Vec<Vip> = services.iter().flat_map(|service| &service.vips).map(|vip| *vip.get_ref()).collect();
    let addresses: BTreeSet<IpAddr> = vips.iter().map(|vip| vip.address).collect();
    let elements = vips.len() + addresses.len();
    if elements > SERVICES_MAX as usize {
        problems.push(Problem::new(format!(
            "{} VIPs on {} addresses: together at most {SERVICES_MAX} fit",
            vips.len(),
            addresses.len()
        )));
    }
    let backends: usize = services.iter().map(|service| service.vips.len() * service.backends.len()).sum();
    if backends >= BACKENDS_MAX as usize {
        problems.push(Problem::new(format!(
            "{backends} backends, counted once for each VIP of their service: at most {} fit",
            BACKENDS_MAX - 1
        )));
    }
}
