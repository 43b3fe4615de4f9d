//! `[cluster]` and its members.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::rank::MEMBERS_MAX;
use toml::Spanned;

use super::{
    Cluster, Member, Timeouts, beside,
    key::Key,
    problem::{Problem, Problems},
    section::{Section, reject_duplicates},
    value::{Handoff, Integer, MemberId, Name, Period, Replicate},
};

/// UDP and TCP port between members.
const DEFAULT_PORT: u16 = 7400;
/// Every peer is probed this often; with the misses it makes a death known within 120 ms.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// Fewer would turn one lost burst into a false alarm.
const DEFAULT_PROBE_MISSES: u8 = 5;

/// A member as far as it could be read.
pub(super) struct MemberDraft {
    pub(super) id: Option<Spanned<MemberId>>,
    pub(super) name: Option<Spanned<Name>>,
    pub(super) address: Option<Spanned<Ipv4Addr>>,
}

/// `[cluster]` as far as it could be read; `None` goes with a problem.
#[derive(Default)]
pub(super) struct ClusterDraft {
    pub(super) name: Option<Name>,
    key_file: Option<Spanned<PathBuf>>,
    generation: Option<u64>,
    port: Option<u16>,
    probe: Option<(Duration, u8)>,
    handoff: Option<Handoff>,
    replicate: Option<Replicate>,
    timeouts: Option<Timeouts>,
    pub(super) members: Vec<MemberDraft>,
}

impl ClusterDraft {
    pub(super) fn read(section: Option<Section<'_>>, problems: &Problems) -> Self {
        let Some(mut section) = section else {
            problems.push(
                Problem::new("[cluster] is missing").help("every file describes the cluster, even one of one member"),
            );
            return Self::default();
        };
        let members = section.tables("member", "[[cluster.member]]");
        if members.is_none() {
            let problem = Problem::new("the cluster has no members").at(section.span(), "needs a [[cluster.member]]");
            problems.push(problem.help("a member is: id = 1, name = \"lb1\", address = \"10.0.1.11\""));
        }
        let draft = Self {
            name: section.required("name").map(Spanned::into_inner),
            key_file: section.required("hash_key_file"),
            generation: section.or("generation", Integer::<0, { u64::MAX }>(0)).map(|generation| generation.0),
            port: section.or("port", Integer::<1, 65_535>(DEFAULT_PORT.into())).map(|port| port.0 as u16),
            probe: read_probe(section.table("probe", "cluster.probe")),
            handoff: section.or("handoff", Handoff::Owner),
            replicate: section.or("replicate", Replicate::Plausible),
            timeouts: read_timeouts(section.table("timeouts", "cluster.timeouts")),
            members: members.map(|members| read_members(members, problems)).unwrap_or_default(),
        };
        section.finish();
        draft
    }

    /// Adds the key. `None` goes with a problem.
    pub(super) fn resolve(self, path: &Path, problems: &Problems) -> Option<Cluster> {
        let hash_key = self.key_file.and_then(|file| read_key(path, &file, problems));
        let members = self.members.into_iter().map(MemberDraft::finish).collect::<Option<Vec<_>>>();
        let mut members = members?;
        members.sort_by_key(|member| member.id);
        let (probe_interval, probe_misses) = self.probe?;
        Some(Cluster {
            name: self.name?,
            hash_key: hash_key?,
            generation: self.generation?,
            port: self.port?,
            probe_interval,
            probe_misses,
            handoff: self.handoff?,
            replicate: self.replicate?,
            timeouts: self.timeouts?,
            members,
        })
    }
}

impl MemberDraft {
    fn finish(self) -> Option<Member> {
        Some(Member { id: self.id?.into_inner(), name: self.name?.into_inner(), address: self.address?.into_inner() })
    }
}

fn read_key(path: &Path, file: &Spanned<PathBuf>, problems: &Problems) -> Option<Key> {
    let key_path = beside(path, file.get_ref());
    Key::read(&key_path)
        .map_err(|error| {
            let problem = Problem::new(format!("the hash key file {} {error}", key_path.display()));
            problems.push(problem.at(file.span(), "").help(error.cure(&key_path)));
        })
        .ok()
}

fn read_members(tables: Spanned<Vec<Section<'_>>>, problems: &Problems) -> Vec<MemberDraft> {
    let span = tables.span();
    let members: Vec<MemberDraft> = tables
        .into_inner()
        .into_iter()
        .map(|mut section| {
            let member = MemberDraft {
                id: section.required("id"),
                name: section.required("name"),
                address: section.required("address"),
            };
            section.finish();
            member
        })
        .collect();
    if members.len() > MEMBERS_MAX {
        let problem = Problem::new(format!("{} members, and a cluster has at most {MEMBERS_MAX}", members.len()));
        problems.push(problem.at(span, ""));
    }
    let ids = members.iter().filter_map(|member| member.id.as_ref());
    reject_duplicates(ids.map(|id| (*id.get_ref(), id.span())), problems, |id| format!("two members have the id {id}"));
    let names = members.iter().filter_map(|member| member.name.as_ref());
    reject_duplicates(names.map(|name| (name.get_ref(), name.span())), problems, |name| {
        format!("two members have the name {name}")
    });
    let addresses = members.iter().filter_map(|member| member.address.as_ref());
    reject_duplicates(addresses.map(|address| (*address.get_ref(), address.span())), problems, |address| {
        format!("two members have the address {address}")
    });
    members
}

/// Below 2 ms probing costs more than it finds; above 1 s it finds too late for any client.
fn read_probe(section: Option<Section<'_>>) -> Option<(Duration, u8)> {
    let Some(mut section) = section else { return Some((DEFAULT_PROBE_INTERVAL, DEFAULT_PROBE_MISSES)) };
    let interval = section.or("interval", Period::<2, 1_000>(DEFAULT_PROBE_INTERVAL));
    let misses = section.or("misses", Integer::<2, 50>(DEFAULT_PROBE_MISSES.into()));
    section.finish();
    Some((interval?.0, misses?.0 as u8))
}

/// A timeout stays far below half of the 52 days after which ticks wrap; FIN and RST keep 30 s (law 5).
fn read_timeouts(section: Option<Section<'_>>) -> Option<Timeouts> {
    const WEEK: u64 = 7 * 24 * 3600 * 1000;
    let Some(mut section) = section else { return Some(Timeouts::DEFAULT) };
    let default = Timeouts::DEFAULT;
    let young = section.or("young", Period::<1_000, WEEK>(default.young));
    let tcp = section.or("tcp", Period::<1_000, WEEK>(default.tcp));
    let closing = section.or("closing", Period::<30_000, WEEK>(default.closing));
    let reset = section.or("reset", Period::<30_000, WEEK>(default.reset));
    let udp = section.or("udp", Period::<1_000, WEEK>(default.udp));
    section.finish();
    Some(Timeouts { young: young?.0, tcp: tcp?.0, closing: closing?.0, reset: reset?.0, udp: udp?.0 })
}
