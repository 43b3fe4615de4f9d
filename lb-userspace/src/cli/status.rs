//! `tandem status`: one screen, one verdict.

use clap::Args;

use super::{Exit, Failure, paint::Paint, place::Place, table::Table};
use crate::{
    inspect::{
        status::{Agent, Drain, Epoch, MemberStatus, Readings, ServiceStatus, Status, Verdict, status},
        words::{Member, bytes, duration, grouped, round_trip},
    },
    pinned::now_ns,
};

/// Say how this member is; the same as no command
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem status                          exit code 0: ok, 5: degraded or down, 3: nothing runs here
  tandem status -o json | jq .verdict
  tandem status --pin-dir /sys/fs/bpf/lb2

Reads the pinned maps of this host: it answers when the agent is dead, too.
")]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let place = &arguments.place;
    let readings = Readings::take(&place.open()?, now_ns)?;
    let status = status(&readings, &place.names());
    place.print(&status, |status| render(status, Paint::stdout()))?;
    Ok(if status.verdict == Verdict::Ok { Exit::Ok } else { Exit::Degraded })
}

pub(super) fn render(status: &Status, paint: Paint) -> String {
    let tables = [members(&status.members), services(&status.services), packets(status)];
    let tables = tables.iter().filter(|table| !table.is_empty()).map(|table| table.render(true));
    [verdict(status, paint), facts(status)].into_iter().chain(tables).collect::<Vec<_>>().join("\n")
}

fn verdict(status: &Status, paint: Paint) -> String {
    let this = status.member.title();
    let of = status.cluster.as_ref().map(|cluster| format!(" of {cluster}")).unwrap_or_default();
    let eligible = status.members.iter().filter(|member| member.eligible).count();
    let members = status.members.len();
    let word = match status.verdict {
        Verdict::Ok => paint.good("ok"),
        Verdict::Degraded => paint.warning("degraded"),
        Verdict::Down => paint.bad("down"),
    };
    let summary = match status.problems.as_slice() {
        [] => format!("{this}{of}, {eligible} of {members} members take new flows"),
        [problem, ..] => format!("{this}{of}: {}", problem.text),
    };
    let mut text = format!("{word}: {summary}\n");
    for problem in status.problems.iter().skip(1) {
        text += &format!("  also: {}\n", problem.text);
    }
    text
}

fn facts(status: &Status) -> String {
    let agent = match status.agent {
        Agent { alive: true, lease_ms, .. } => format!("alive, lease for {}", duration(lease_ms.unwrap_or(0))),
        Agent { dead_for_ms: Some(ms), .. } => format!("dead for {}", duration(ms)),
        Agent { .. } => "never alive".into(),
    };
    let interfaces = if status.interfaces.is_empty() { "nothing".into() } else { status.interfaces.join(", ") };
    let [flows, flows_v6] = [status.flows, status.flows_v6].map(|table| {
        let about = if table.exact { "" } else { "about " };
        format!("{about}{} of {}", grouped(table.used), grouped(table.max.into()))
    });
    let drain = match status.drain {
        None => String::new(),
        Some(Drain { left: None }) => "draining  flows are being counted\n".into(),
        Some(Drain { left: Some(0) }) => "draining  done, no flow names this member\n".into(),
        Some(Drain { left: Some(left) }) => format!("draining  {} flows left\n", grouped(left.into())),
    };
    format!(
        "agent     {agent}, incarnation {}\nservers   {}\n{drain}attached  to {interfaces}\n\
         flows     {flows} (IPv4), {flows_v6} (IPv6)\n",
        status.incarnation,
        epoch(&status.epoch),
    )
}

fn epoch(epoch: &Epoch) -> String {
    let titles: Vec<String> = epoch.waits_for.iter().map(Member::title).collect();
    let mut text = match epoch.number {
        0 => "no epoch yet".to_owned(),
        number => format!("epoch {number}"),
    };
    if !titles.is_empty() {
        text += &format!(", a change waits for {}", titles.join(", "));
    } else if epoch.pending {
        text += ", a change is pending";
    }
    if let Some(ms) = epoch.grace_ms {
        text += &format!(", flows of before go on by the old ones for {}", duration(ms));
    }
    text
}

/// Also what `tandem get members` prints.
pub(super) fn members(members: &[MemberStatus]) -> Table {
    let headers =
        ["ID", "MEMBER", "ADDRESS", "FORWARDING", "ELIGIBLE", "PROBE", "ECHO", "RTT", "INCARNATION", "HANDED", "VIA"];
    let mut table = Table::new(&headers, &[9]);
    for status in members {
        let ago = |ms: Option<u64>| ms.map(|ms| format!("{} ago", duration(ms))).unwrap_or_default();
        let this = if status.this { " (this)" } else { "" };
        table.row([
            status.member.id.to_string(),
            format!("{}{this}", status.member.title()),
            status.member.address.to_string(),
            yes(status.forwarding),
            yes(status.eligible),
            ago(status.probe_age_ms),
            ago(status.echo_age_ms),
            status.rtt_ns.map(round_trip).unwrap_or_default(),
            if status.incarnation == 0 { String::new() } else { status.incarnation.to_string() },
            if status.this { String::new() } else { grouped(status.handed_off.packets) },
            status.next_hop.as_ref().map(|hop| format!("{} {}", hop.interface, hop.mac)).unwrap_or_default(),
        ]);
    }
    table
}

/// Also what `tandem get services` prints.
pub(super) fn services(services: &[ServiceStatus]) -> Table {
    let headers = [
        "SERVICE",
        "VIP",
        "SERVING",
        "DRAINING",
        "DOWN",
        "REMOVED",
        "UNREACHABLE",
        "NEW FLOWS",
        "DELIVERED",
        "HANDED",
        "DROPPED",
    ];
    let mut table = Table::new(&headers, &[2, 3, 4, 5, 6, 8, 9, 10]);
    for service in services {
        table.row([
            service.name.clone().unwrap_or_default(),
            service.vip.to_string(),
            service.serving.to_string(),
            service.draining.to_string(),
            service.down.to_string(),
            service.removed.to_string(),
            service.unreachable.to_string(),
            yes(service.takes_new_flows),
            grouped(service.delivered.packets),
            grouped(service.handed_off.packets),
            grouped(service.dropped.packets),
        ]);
    }
    table
}

fn packets(status: &Status) -> Table {
    let mut table = Table::new(&["OUTCOME", "ACTION", "PACKETS", "BYTES"], &[2, 3]);
    for count in &status.packets {
        let (reason, action) = (count.reason.to_owned(), count.action.to_owned());
        table.row([reason, action, grouped(count.packets), bytes(count.bytes)]);
    }
    table
}

pub(super) fn yes(fact: bool) -> String {
    if fact { "yes".into() } else { "no".into() }
}
