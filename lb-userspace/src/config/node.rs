//! `[node]`: what concerns one member only, and which member this is.

use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
};

use lb_common::maps::FLOWS_MAX;
use toml::Spanned;

use super::{
    Budgets, DEFAULT_STATE_DIRECTORY, Node, beside,
    cluster::ClusterDraft,
    host::Host,
    problem::{Problem, Problems},
    section::{Section, nearest, reject_duplicates},
    value::{Integer, InterfaceName, MemberId, MultiBuffer, OnStop, OtherTraffic, TooBig},
};
use crate::identity::{KEY_FILE, MemberKey};

/// The fewest flows that a table may be made for: a test can fill it.
pub const FLOWS_LEAST: u64 = 16;
/// The most: 8 GB.
pub const FLOWS_MOST: u64 = 1 << 26;

/// Without a word about it, the table of IPv6 flows is a quarter of the other: its memory is taken at the start, too.
fn flows_v6_max(flows_max: u32) -> u32 {
    (flows_max / 4).max(FLOWS_LEAST as u32)
}

/// `[node]` as far as it could be read; `None` in the simple settings goes with a problem.
pub(super) struct NodeDraft {
    pub(super) name: Option<Spanned<String>>,
    pub(super) key_file: Option<Spanned<PathBuf>>,
    pub(super) interfaces: Vec<Spanned<InterfaceName>>,
    /// Where interfaces should have been listed, if none are and there is such a place.
    no_interfaces: Option<Option<Range<usize>>>,
    pub(super) cluster_interface: Option<Spanned<InterfaceName>>,
    on_stop: Option<OnStop>,
    pub(super) announce_table: Option<u32>,
    metrics_listen: Option<SocketAddr>,
    pub(super) flows_max: Option<u32>,
    pub(super) flows_v6_max: Option<u32>,
    pub(super) multi_buffer: Option<MultiBuffer>,
    pub(super) other_traffic: Option<OtherTraffic>,
    too_big: Option<TooBig>,
    budgets: Option<Budgets>,
}

impl NodeDraft {
    pub(super) fn read(section: Option<Section<'_>>, problems: &Problems) -> Self {
        let Some(mut section) = section else {
            return Self {
                name: None,
                key_file: None,
                interfaces: Vec::new(),
                no_interfaces: Some(None),
                cluster_interface: None,
                on_stop: Some(OnStop::Keep),
                announce_table: None,
                metrics_listen: None,
                flows_max: Some(FLOWS_MAX),
                flows_v6_max: Some(flows_v6_max(FLOWS_MAX)),
                multi_buffer: Some(MultiBuffer::Auto),
                other_traffic: Some(OtherTraffic::Pass),
                too_big: Some(TooBig::Answer),
                budgets: Some(Budgets::DEFAULT),
            };
        };
        let name = section.optional("name");
        // From a table that a test can fill to one of 8 GB.
        let flows_max =
            section.or("flows_max", Integer::<FLOWS_LEAST, FLOWS_MOST>(FLOWS_MAX.into())).map(|max| max.0 as u32);
        let of_v4 = flows_v6_max(flows_max.unwrap_or(FLOWS_MAX));
        let draft = Self {
            name,
            key_file: section.optional("key_file"),
            no_interfaces: section.lack("interfaces").map(Some),
            interfaces: section.list("interfaces"),
            cluster_interface: section.optional("cluster_interface"),
            on_stop: section.or("on_stop", OnStop::Keep),
            // Those below have names, or are small numbers that people use.
            announce_table: section
                .optional::<Integer<256, { u32::MAX as u64 }>>("announce_table")
                .map(|table| table.into_inner().0 as u32),
            metrics_listen: section.optional("metrics_listen").map(Spanned::into_inner),
            flows_max,
            flows_v6_max: section
                .or("flows_v6_max", Integer::<FLOWS_LEAST, FLOWS_MOST>(of_v4.into()))
                .map(|max| max.0 as u32),
            multi_buffer: section.or("multi_buffer", MultiBuffer::Auto),
            other_traffic: section.or("other_traffic", OtherTraffic::Pass),
            too_big: section.or("too_big", TooBig::Answer),
            budgets: read_budgets(section.table("budgets", "node.budgets")),
        };
        section.demand("interfaces");
        section.finish();
        let interfaces = draft.interfaces.iter();
        reject_duplicates(interfaces.map(|name| (name.get_ref(), name.span())), problems, |name| {
            format!("the interface {name} is there twice")
        });
        draft
    }

    /// Adds what the host and the command line say. `None` goes with a problem.
    pub(super) fn resolve(
        self,
        cluster: &ClusterDraft,
        path: &Path,
        host: &Host<'_>,
        problems: &Problems,
    ) -> Option<Node> {
        let id = self.member(cluster, host, problems);
        let key = id.filter(|_| cluster.members.len() > 1).map(|id| self.key(id, cluster, path, host, problems));
        let interfaces =
            self.interfaces(host, problems).and_then(|interfaces| self.cluster_first(interfaces, problems));
        Some(Node {
            id: id?,
            key: match key {
                None => None,
                Some(key) => Some(key?),
            },
            interfaces: interfaces?,
            on_stop: self.on_stop?,
            announce_table: self.announce_table,
            metrics_listen: self.metrics_listen,
            flows_max: self.flows_max?,
            flows_v6_max: self.flows_v6_max?,
            multi_buffer: self.multi_buffer?,
            other_traffic: self.other_traffic?,
            too_big: self.too_big?,
            budgets: self.budgets?,
        })
    }

    /// The key of member `id`, which the cluster's file must have the public half of.
    fn key(
        &self,
        id: MemberId,
        cluster: &ClusterDraft,
        path: &Path,
        host: &Host<'_>,
        problems: &Problems,
    ) -> Option<MemberKey> {
        let at = |problem: Problem| match &self.key_file {
            Some(file) => problem.at(file.span(), ""),
            None => problem,
        };
        let (file, argument) = match &self.key_file {
            Some(file) => (beside(path, file.get_ref()), format!(" {}", beside(path, file.get_ref()).display())),
            None if host.state == Path::new(DEFAULT_STATE_DIRECTORY) => (host.state.join(KEY_FILE), String::new()),
            None => (host.state.join(KEY_FILE), format!(" {}", host.state.join(KEY_FILE).display())),
        };
        let key = MemberKey::read(&file).map_err(|error| {
            let problem = Problem::new(format!("this member's key file {} {error}", file.display()));
            problems.push(at(problem).help(error.cure(&file, &argument)));
        });
        let key = key.ok()?;
        let own = cluster.members.iter().find(|member| member.id.as_ref().is_some_and(|own| *own.get_ref() == id));
        // Without a valid one there is a problem already.
        let listed = own?.public_keys.as_ref()?;
        if !listed.get_ref().0.contains(&key.public()) {
            let problem = Problem::new(format!("the key in {} is not this member's", file.display()));
            let problem = problem.at(listed.span(), "this is");
            problems.push(problem.help(format!(
                "put its public half here (`public_key = \"{}\"`, or a list of both while one replaces the other), or put the right key there",
                key.public()
            )));
            return None;
        }
        Some(key)
    }

    fn member(&self, cluster: &ClusterDraft, host: &Host<'_>, problems: &Problems) -> Option<MemberId> {
        let named = |name: &str| {
            let member = cluster
                .members
                .iter()
                .find(|member| member.name.as_ref().is_some_and(|member| member.get_ref().as_str() == name))?;
            Some(member.id.as_ref().map(|id| *id.get_ref()))
        };
        let (name, source, span) = match (host.node, &self.name) {
            (Some(name), _) => (name.to_owned(), "from --node", None),
            (None, Some(name)) => (name.get_ref().clone(), "from node.name", Some(name.span())),
            (None, None) => ((host.host_name)(), "the host name", None),
        };
        // Hosts with a full name may be listed by their first label.
        let label = name.split_once('.').map_or(name.as_str(), |(label, _)| label);
        if let Some(id) = named(&name).or_else(|| self.name.is_none().then(|| named(label)).flatten()) {
            return id;
        }
        if cluster.members.is_empty() {
            return None;
        }
        let names: Vec<&str> =
            cluster.members.iter().filter_map(|member| Some(member.name.as_ref()?.get_ref().as_str())).collect();
        let problem = Problem::new(format!("no member of the cluster has the name {name:?} ({source})"));
        let problem = match span {
            Some(span) => {
                let near = nearest(&name, &names).map(|near| format!("did you mean {near:?}?"));
                problem.at(span, near.unwrap_or_default())
            }
            None => problem,
        };
        problems.push(problem.help(format!("members: {}; choose one with --node or node.name", names.join(", "))));
        None
    }

    fn interfaces(&self, host: &Host<'_>, problems: &Problems) -> Option<Vec<InterfaceName>> {
        if !host.interfaces.is_empty() {
            return interfaces_of_the_command_line(host, problems);
        }
        if let Some(place) = &self.no_interfaces {
            let problem = Problem::new("no interfaces");
            let problem = match place {
                Some(span) => problem.at(span.clone(), ""),
                None => problem,
            };
            problems.push(problem.help("interfaces = [\"eth0\"] in [node], or --interface eth0"));
            return None;
        }
        for name in self.interfaces.iter().filter(|name| !(host.interface_exists)(name.get_ref().as_str())) {
            let problem = Problem::new(format!("this host has no interface {}", name.get_ref()));
            problems.push(problem.at(name.span(), "").help("`ip -br link` lists them"));
        }
        Some(self.interfaces.iter().map(|name| name.get_ref().clone()).collect())
    }

    /// Brings the cluster's interface to the front; without the key the first one is the cluster's.
    fn cluster_first(&self, mut interfaces: Vec<InterfaceName>, problems: &Problems) -> Option<Vec<InterfaceName>> {
        let Some(cluster) = &self.cluster_interface else { return Some(interfaces) };
        let Some(at) = interfaces.iter().position(|name| name == cluster.get_ref()) else {
            let problem =
                Problem::new(format!("the cluster interface {} is not among the interfaces", cluster.get_ref()));
            problems.push(problem.at(cluster.span(), "").help("add it to node.interfaces"));
            return None;
        };
        interfaces[..=at].rotate_right(1);
        Some(interfaces)
    }
}

fn interfaces_of_the_command_line(host: &Host<'_>, problems: &Problems) -> Option<Vec<InterfaceName>> {
    let mut interfaces = Vec::new();
    for name in host.interfaces {
        match name.parse::<InterfaceName>() {
            Ok(name) if interfaces.contains(&name) => {}
            Ok(name) if (host.interface_exists)(name.as_str()) => interfaces.push(name),
            _ => {
                let problem = Problem::new(format!("this host has no interface {name} (from --interface)"));
                problems.push(problem.help("`ip -br link` lists them"));
            }
        }
    }
    Some(interfaces)
}

fn read_budgets(section: Option<Section<'_>>) -> Option<Budgets> {
    let Some(mut section) = section else { return Some(Budgets::DEFAULT) };
    let mut budget = |key, default: u32| section.or(key, Integer::<0, 100_000_000>(default.into()));
    let tcp = budget("tcp", Budgets::DEFAULT.tcp);
    let udp = budget("udp", Budgets::DEFAULT.udp);
    let derived = budget("derived", Budgets::DEFAULT.derived);
    let sctp = budget("sctp", Budgets::DEFAULT.sctp);
    let answers = budget("answers", Budgets::DEFAULT.answers);
    section.finish();
    let [tcp, udp, derived, sctp, answers] =
        [tcp?, udp?, derived?, sctp?, answers?].map(|Integer(per_second)| per_second as u32);
    Some(Budgets { tcp, udp, derived, sctp, answers })
}
