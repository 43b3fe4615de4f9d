//! `[cluster]` and its members.

use std::{
    net::IpAddr,
    ops::Range,
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
    value::{Handoff, Integer, MemberId, Name, Period, Prefix, PublicKeys, Replicate},
};

/// UDP and TCP port between members.
const DEFAULT_PORT: u16 = 7400;
/// Every peer is probed this often; with the misses it makes a death known within 120 ms.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// Fewer would turn one lost burst into a false alarm.
const DEFAULT_PROBE_MISSES: u8 = 5;
/// Longer than a client waits between two packets of a connection that has just begun.
const DEFAULT_GRACE: Duration = Duration::from_secs(60);
/// Longer than a restart takes, of an agent and of most machines' services.
const DEFAULT_TAKEOVER_AFTER: Duration = Duration::from_secs(30);

/// A member as far as it could be read.
pub(super) struct MemberDraft {
    pub(super) id: Option<Spanned<MemberId>>,
    pub(super) name: Option<Spanned<Name>>,
    pub(super) address: Option<Spanned<IpAddr>>,
    pub(super) second_address: Option<Spanned<IpAddr>>,
    hand_off_source: Option<Spanned<Prefix>>,
    drain: Option<bool>,
    pub(super) public_keys: Option<Spanned<PublicKeys>>,
}

/// `[cluster]` as far as it could be read; `None` goes with a problem.
#[derive(Default)]
pub(super) struct ClusterDraft {
    pub(super) name: Option<Name>,
    pub(super) key_file: Option<Spanned<PathBuf>>,
    generation: Option<u64>,
    pub(super) port: Option<u16>,
    probe: Option<(Duration, u8)>,
    pub(super) handoff: Option<Handoff>,
    replicate: Option<Replicate>,
    grace: Option<Duration>,
    takeover_after: Option<Duration>,
    timeouts: Option<Timeouts>,
    pub(super) delivery_source: Vec<Spanned<Prefix>>,
    pub(super) members: Vec<MemberDraft>,
}

impl ClusterDraft {
    pub(super) fn read(section: Option<Section<'_>>, problems: &Problems) -> Self {
        let Some(mut section) = section else {
            problems.push(
                Problem::new("[cluster] is missing")
                    .at(0..0, "")
                    .help("every file describes the cluster, even one of one member"),
            );
            return Self::default();
        };
        let members = section.tables("member", "[[cluster.member]]");
        if members.is_none() {
            let problem = Problem::new("the cluster has no members").at(section.span(), "needs a [[cluster.member]]");
            problems.push(problem.help("a member is: id = 1, name = \"lb1\", address = \"10.0.1.11\""));
        }
        let timeouts_at;
        let draft = Self {
            name: section.required("name").map(Spanned::into_inner),
            key_file: section.required("hash_key_file"),
            generation: section.or("generation", Integer::<0, { u64::MAX }>(0)).map(|generation| generation.0),
            port: section.or("port", Integer::<1, 65_535>(DEFAULT_PORT.into())).map(|port| port.0 as u16),
            probe: read_probe(section.table("probe", "cluster.probe")),
            handoff: section.or("handoff", Handoff::Owner),
            replicate: section.or("replicate", Replicate::Plausible),
            grace: section.or("grace", Period::<0, 600_000>(DEFAULT_GRACE)).map(|grace| grace.0),
            takeover_after: section
                .or("takeover_after", Period::<1_000, 86_400_000>(DEFAULT_TAKEOVER_AFTER))
                .map(|takeover_after| takeover_after.0),
            timeouts: {
                let timeouts = section.table("timeouts", "cluster.timeouts");
                timeouts_at = timeouts.as_ref().map(Section::span);
                read_timeouts(timeouts)
            },
            delivery_source: section.list("delivery_source"),
            members: members.map(|members| read_members(members, problems)).unwrap_or_default(),
        };
        reject_second_of_a_family(&draft.delivery_source, problems);
        if let (Some(at), Some(timeouts)) = (timeouts_at, draft.timeouts) {
            reject_hasty(draft.handoff, timeouts, at, problems);
        }
        section.demand("member");
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
            grace: self.grace?,
            takeover_after: self.takeover_after?,
            timeouts: self.timeouts?,
            delivery_source: self.delivery_source.into_iter().map(Spanned::into_inner).collect(),
            members,
        })
    }
}

impl MemberDraft {
    fn finish(self) -> Option<Member> {
        Some(Member {
            id: self.id?.into_inner(),
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            second_address: self.second_address.map(Spanned::into_inner),
            hand_off_source: self.hand_off_source.map(Spanned::into_inner),
            drain: self.drain?,
            public_keys: self.public_keys.map(|keys| keys.into_inner().0).unwrap_or_default(),
        })
    }

    /// Its addresses, as far as they could be read.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Spanned<IpAddr>> {
        self.address.iter().chain(&self.second_address)
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
    let mut keyless = Vec::new();
    let members: Vec<MemberDraft> = tables
        .into_inner()
        .into_iter()
        .map(|mut section| {
            let member = MemberDraft {
                id: section.required("id"),
                name: section.required("name"),
                address: section.required("address"),
                second_address: section.optional("second_address"),
                hand_off_source: section.optional("hand_off_source"),
                drain: section.or("drain", false),
                public_keys: section.optional("public_key"),
            };
            if !section.has("public_key") {
                keyless.push((section.span(), member.name.as_ref().map(|name| name.get_ref().clone())));
            }
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
    let addresses = members.iter().flat_map(MemberDraft::addresses);
    reject_duplicates(addresses.map(|address| (*address.get_ref(), address.span())), problems, |address| {
        format!("two members have the address {address}")
    });
    let keys = members.iter().filter_map(|member| member.public_keys.as_ref());
    let keys = keys.flat_map(|keys| keys.get_ref().0.iter().map(|key| (key.to_string(), keys.span())));
    reject_duplicates(keys, problems, |_| "a key is one member's, and here is one twice".to_owned());
    if (2..=MEMBERS_MAX).contains(&members.len()) {
        reject_keyless(keyless, problems);
    }
    reject_mixed_families(&members, problems);
    reject_overlaps(&members, problems);
    members
}

/// Whoever is not known by a key could be anybody.
fn reject_keyless(members: Vec<(Range<usize>, Option<Name>)>, problems: &Problems) {
    for (span, name) in members {
        let name = name.map_or_else(|| "a member".to_owned(), |name| name.to_string());
        let problem = Problem::new(format!("{name} has no `public_key`, by which its peers know it")).at(span, "");
        problems.push(problem.help("`tandem cluster keygen`, on each member, prints the line to put here"));
    }
}

/// Every member must reach every other by one address; that of the other family is for deliveries only.
fn reject_mixed_families(members: &[MemberDraft], problems: &Problems) {
    let mut addresses = members.iter().filter_map(|member| member.address.as_ref());
    let Some(first) = addresses.next() else { return };
    let is_v4 = first.get_ref().is_ipv4();
    for address in addresses.filter(|address| address.get_ref().is_ipv4() != is_v4) {
        let problem =
            Problem::new("the addresses of the members are of both families: they could not all reach each other");
        let problem = problem.at(address.span(), family(address.get_ref())).with(first.span(), family(first.get_ref()));
        problems.push(
            problem.help("give all members an `address` of one family, and one of the other as `second_address`"),
        );
    }
    for member in members {
        let (Some(address), Some(second)) = (&member.address, &member.second_address) else { continue };
        if address.get_ref().is_ipv4() == second.get_ref().is_ipv4() {
            let problem = Problem::new("`second_address` must be of the other family than `address`");
            let problem = problem.at(second.span(), family(second.get_ref())).with(address.span(), "");
            problems.push(
                problem
                    .help("packets to backends of the other family come from it; leave it out without such backends"),
            );
        }
    }
}

/// Peers tell by its source whose hand-off a packet is.
fn reject_overlaps(members: &[MemberDraft], problems: &Problems) {
    let mut before: Vec<&Spanned<Prefix>> = Vec::new();
    for member in members {
        let Some(source) = &member.hand_off_source else { continue };
        if let Some(address) = &member.address
            && address.get_ref().is_ipv4() != source.get_ref().address.is_ipv4()
        {
            let problem = Problem::new("`hand_off_source` must be of the family of `address`, to which hand-offs go");
            let problem = problem.at(source.span(), family(&source.get_ref().address));
            problems.push(problem.with(address.span(), family(address.get_ref())));
        }
        if let Some(other) = before.iter().find(|other| other.get_ref().overlaps(source.get_ref())) {
            let problem = Problem::new("the hand-offs of two members could come from the same address");
            let problem = problem.at(source.span(), "overlaps").with(other.span(), "with this");
            problems.push(problem.help("a `hand_off_source` belongs to one member"));
        }
        before.push(source);
    }
}

fn reject_second_of_a_family(prefixes: &[Spanned<Prefix>], problems: &Problems) {
    let is_v4 = |prefix: &&Spanned<Prefix>| prefix.get_ref().address.is_ipv4();
    for (at, prefix) in prefixes.iter().enumerate() {
        if let Some(first) = prefixes[..at].iter().find(|first| is_v4(first) == is_v4(&prefix)) {
            let problem = Problem::new("`delivery_source` holds two prefixes of one family");
            let problem = problem.at(prefix.span(), "the second").with(first.span(), "the first");
            problems.push(problem.help("one of each family at most; a shorter prefix holds more addresses"));
        }
    }
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Below 2 ms probing costs more than it finds; above 1 s it finds too late for any client.
fn read_probe(section: Option<Section<'_>>) -> Option<(Duration, u8)> {
    let Some(mut section) = section else { return Some((DEFAULT_PROBE_INTERVAL, DEFAULT_PROBE_MISSES)) };
    let interval = section.or("interval", Period::<2, 1_000>(DEFAULT_PROBE_INTERVAL));
    let misses = section.or("misses", Integer::<2, 50>(DEFAULT_PROBE_MISSES.into()));
    section.finish();
    Some((interval?.0, misses?.0 as u8))
}

/// An owner that sees no packet of a flow hears of its traffic from the sweeps of those who do, one every 5 s.
pub(super) const DIRECT_LEAST: Duration = Duration::from_secs(10);

/// Idle timeouts that would end live flows whose packets their owner does not see.
fn reject_hasty(handoff: Option<Handoff>, timeouts: Timeouts, at: Range<usize>, problems: &Problems) {
    let Timeouts { young, tcp, udp, sctp, .. } = timeouts;
    if handoff != Some(Handoff::Direct) || [young, tcp, udp, sctp].iter().all(|timeout| *timeout >= DIRECT_LEAST) {
        return;
    }
    let problem = Problem::new("with `handoff = \"direct\"` a flow may be idle for at least 10s");
    problems.push(problem.at(at, "one of `young`, `tcp`, `udp`, `sctp` is shorter").help(
        "owners hear of packets that they do not see every 5s; choose longer timeouts, or `handoff = \"owner\"`",
    ));
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
    let sctp = section.or("sctp", Period::<1_000, WEEK>(default.sctp));
    let sctp_closing = section.or("sctp_closing", Period::<30_000, WEEK>(default.sctp_closing));
    section.finish();
    Some(Timeouts {
        young: young?.0,
        tcp: tcp?.0,
        closing: closing?.0,
        reset: reset?.0,
        udp: udp?.0,
        sctp: sctp?.0,
        sctp_closing: sctp_closing?.0,
    })
}
