//! `tandem explain`: where a flow goes, and why.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::Args;
use lb_common::flow::{FlowKeyV4, FlowKeyV6};

use super::{Exit, Failure, paint::Paint, place::Place, status::yes, table::Table};
use crate::{
    config::Protocol,
    core::Key,
    inspect::{
        explain::{Choice, Explanation, Judgement, explain},
        words::{FlowFacts, PendingFacts, duration},
    },
    pinned::{Snapshot, now_ns},
};

/// Say where a flow goes, and why
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem explain 198.51.100.7:40000 203.0.113.10:80
  tandem explain 198.51.100.7:5353 203.0.113.10:53/udp -o json
  tandem explain [2001:db8::7]:40000 [2001:db8::10]:443

Decides on the flow's next packet with the datapath's own code on a copy of its tables, as if the packet reached this
host now. The flow need not exist. Nothing is written.
")]
pub(super) struct Arguments {
    /// The client
    #[arg(value_name = "SRC:PORT")]
    source: Source,
    /// The service; tcp if not said
    #[arg(value_name = "VIP:PORT[/tcp|udp|sctp]")]
    vip: Destination,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source(SocketAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination(SocketAddr, Protocol);

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let place = &arguments.place;
    let (Source(source), Destination(vip, protocol)) = (arguments.source, arguments.vip);
    let (ports, protocol) = ([source.port(), vip.port()].map(u16::to_be_bytes), protocol.number());
    let key: Key = match (source.ip(), vip.ip()) {
        (IpAddr::V4(source), IpAddr::V4(vip)) => {
            FlowKeyV4::new(source.octets(), vip.octets(), ports[0], ports[1], protocol).into()
        }
        (IpAddr::V6(source), IpAddr::V6(vip)) => {
            FlowKeyV6::new(source.octets(), vip.octets(), ports[0], ports[1], protocol).into()
        }
        _ => return Err(Failure::new(Exit::Usage, "the client and the VIP are of different families")),
    };
    let snapshot = Snapshot::take(&place.open()?, key, now_ns)?;
    place.print(&explain(&snapshot, &place.names()), |explanation| render(explanation, Paint::stdout()))?;
    Ok(Exit::Ok)
}

pub(super) fn render(explanation: &Explanation, paint: Paint) -> String {
    let service = explanation.service.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let lines = [
        ("flow", format!("{} -> {}{service}", explanation.client, explanation.vip)),
        ("here", here(explanation)),
        ("entry", entry(explanation.known.as_ref(), explanation.pending.as_ref())),
        ("hash", explanation.flow_hash.clone()),
    ];
    let answer = [
        ("verdict", paint.bold(&verdict(&explanation.verdict))),
        ("because", explanation.verdict.why.clone()),
        ("backend", explanation.backend.as_ref().map_or("none".into(), backend)),
    ];
    let text = |lines: &[(&str, String)]| -> String {
        lines.iter().map(|(title, text)| format!("{title:<9} {text}\n")).collect()
    };
    format!("{}\n{}\n{}", text(&lines), ranking(explanation).render(true), text(&answer))
}

fn here(explanation: &Explanation) -> String {
    let agent = if explanation.agent_alive { "alive" } else { "dead" };
    format!("{}, agent {agent}", explanation.receiver.title())
}

fn entry(known: Option<&FlowFacts>, pending: Option<&PendingFacts>) -> String {
    match (known, pending) {
        (Some(flow), _) => {
            let beginning = if flow.witnessed { "its beginning was seen" } else { "derived from later packets" };
            let (idle, age) = (duration(flow.idle_ms), duration(flow.age_ms));
            format!("{}, {beginning}, idle for {idle}, age {age}, generation {}", flow.state, flow.generation)
        }
        (None, Some(pending)) => {
            let (kind, packets, age) = (pending.kind, pending.packets, duration(pending.age_ms));
            format!("none yet; pending for {age} ({kind}, packets: {packets})")
        }
        (None, None) => "none".into(),
    }
}

fn verdict(verdict: &Judgement) -> String {
    let member = verdict.member.as_ref().map(|member| format!("{} ({})", member.title(), member.address));
    let action = match (verdict.action, member) {
        ("hand_off", Some(member)) => format!("hand off to {member}"),
        ("deliver", Some(member)) => format!("deliver from here, {member}"),
        (action, _) => action.to_owned(),
    };
    format!("{action}: {}", verdict.reason)
}

fn backend(choice: &Choice) -> String {
    let from = match choice.from {
        "entry" => "stored in the entry".to_owned(),
        "pending" => "where an earlier packet went".to_owned(),
        _ => format!("ring slot {}", choice.ring_slot),
    };
    let reachable = if choice.backend.reachable { "" } else { ", next hop not resolved" };
    format!("{}, {}, {from}{reachable}", choice.backend.title(), choice.backend.state)
}

fn ranking(explanation: &Explanation) -> Table {
    let mut table = Table::new(&["RANK", "MEMBER", "SCORE", "FORWARDING", "ELIGIBLE", "ROLE"], &[0]);
    for (rank, ranked) in (1..).zip(&explanation.ranking) {
        table.row([
            rank.to_string(),
            ranked.member.title(),
            ranked.score.clone(),
            yes(ranked.forwarding),
            yes(ranked.eligible),
            ranked.role.unwrap_or_default().to_owned(),
        ]);
    }
    table
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        socket(text).map(Self)
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, protocol) = match text.split_once('/') {
            Some((address, protocol)) => (address, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        Ok(Self(socket(address)?, protocol))
    }
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_unspecific| "ADDRESS:PORT expected, as in 198.51.100.7:40000 or [2001:db8::7]:40000".into())
}
