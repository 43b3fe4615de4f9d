//! What the text alone says: as much as can be read of a file that may be wrong.

use std::path::Path;

use toml::de::DeTable;

use super::{
    Config, Handoff, VERSION,
    cluster::{ClusterDraft, DIRECT_LEAST},
    host::Host,
    node::NodeDraft,
    problem::{Problem, Problems},
    section::Section,
    service::{self, ServiceDraft},
    value::Integer,
};

pub(super) struct Draft {
    pub(super) cluster: ClusterDraft,
    pub(super) services: Vec<ServiceDraft>,
    pub(super) node: NodeDraft,
}

impl Draft {
    /// Reads `text`; `None` when it is not TOML or of another version, and anything else that is said of it would mislead.
    pub(super) fn read(text: &str, problems: &Problems) -> Option<Self> {
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let problem = Problem::new(format!("not TOML: {}", error.message()));
            problems.push(match error.span() {
                Some(span) => problem.at(span, ""),
                None => problem,
            });
        }
        if !errors.is_empty() {
            return None;
        }
        let mut file = Section::new("the file", &document, problems);
        if !file.has("version") {
            problems.push(
                Problem::new("the file has no version")
                    .at(0..0, "")
                    .help(format!("begin it with `version = {VERSION}`")),
            );
        }
        let version = file.optional::<Integer<0, { u64::MAX }>>("version");
        file.demand("version");
        if let Some(version) = version.filter(|version| version.get_ref().0 != VERSION) {
            let problem = Problem::new("the file is of a version that this program does not read");
            let problem = problem.at(version.span(), format!("version {VERSION} expected"));
            problems.push(problem.help("rewrite it, or use a tandem that reads this version on all members"));
            return None;
        }
        let cluster = ClusterDraft::read(file.table("cluster", "[cluster]"), problems);
        let services = service::read_all(file.tables("service", "[[service]]"), problems);
        let node = NodeDraft::read(file.table("node", "[node]"), problems);
        file.demand("cluster");
        file.finish();
        service::reject_conflicts(&services, &cluster, problems);
        reject_hasty(&services, &cluster, problems);
        Some(Self { cluster, services, node })
    }

    /// Adds what only the host knows. `None` goes with a problem, and a problem makes the result worthless.
    pub(super) fn resolve(self, path: &Path, host: &Host<'_>, problems: &Problems) -> Option<Config> {
        let node = self.node.resolve(&self.cluster, path, host, problems);
        let cluster = self.cluster.resolve(path, problems);
        let services = self.services.into_iter().map(ServiceDraft::finish).collect::<Option<Vec<_>>>();
        Some(Config { cluster: cluster?, node: node?, services: services? })
    }
}

/// Services whose flows would end at owners that do not see their packets; `[cluster]` has the same for all others.
fn reject_hasty(services: &[ServiceDraft], cluster: &ClusterDraft, problems: &Problems) {
    if cluster.handoff != Some(Handoff::Direct) {
        return;
    }
    let timeouts = services.iter().filter_map(|service| service.idle_timeout.as_ref()?.as_ref());
    for timeout in timeouts.filter(|timeout| *timeout.get_ref() < DIRECT_LEAST) {
        let problem =
            Problem::new("with `handoff = \"direct\"` an `idle_timeout` is at least 10s").at(timeout.span(), "");
        problems.push(problem.help("owners hear of packets that they do not see every 5s; choose a longer one"));
    }
}
