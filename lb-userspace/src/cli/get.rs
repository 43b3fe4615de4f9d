//! `tandem get`: lists.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    thread,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{
    Exit, Failure,
    drain::Socket,
    is_read,
    place::{Output, Where, to_json, to_yaml},
    status,
    table::Table,
};
use crate::{
    config::Protocol,
    control::{api::EventLine, client},
    inspect::{
        advice::{self, Dropped},
        listing::{self, Filter, Flow, ServiceBackend},
        status::{MemberStatus, Readings, ServiceStatus, members, services},
        words::{bytes, duration, grouped},
    },
    pinned::now_ns,
};

/// List flows, members, services, backends, drops or events
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem get flows --vip 203.0.113.10:80 --limit 20
  tandem get flows --client 198.51.100.7 -o json
  tandem get members -o wide
  tandem get drops                                    what was dropped, why, and what to do
  tandem get events -w                                what happens, as it happens
  tandem get services -w -o json                      each that changes, one line each
  tandem get backends --no-headers | awk '$5 == \"draining\"'

Reads the pinned maps of this host: it answers when the agent is dead, too. Only events come from the agent.
")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Flows that this member knows: its own, and those it holds for others
    #[command(before_long_help = "\
Examples:
  tandem get flows --vip 203.0.113.10:80/tcp --client 198.51.100.7
  tandem get flows --limit 0 -o json | jq length
  tandem get flows -w -o name
")]
    Flows(Flows),
    /// Members and how this one sees them
    #[command(before_long_help = "\
Examples:
  tandem get members
  tandem get members -o json | jq '.[] | select(.forwarding | not)'
")]
    Members(Common),
    /// Services and the state of their backends
    #[command(before_long_help = "\
Examples:
  tandem get services
  tandem get services -o yaml
")]
    Services(Common),
    /// Backends of every service
    #[command(before_long_help = "\
Examples:
  tandem get backends
  tandem get backends -o json | jq '.[] | select(.state == \"draining\")'
")]
    Backends(Common),
    /// What was dropped since the maps were made, and what to do
    #[command(before_long_help = "\
Examples:
  tandem get drops
  tandem get drops -w -o name
  tandem get drops -o json | jq '.[] | {reason, packets, cure}'
")]
    Drops(Common),
    /// What happened at this member: the last 1,000 events of its agent
    #[command(before_long_help = "\
Examples:
  tandem get events
  tandem get events -w -o json | jq 'select(.level == \"warn\")'
")]
    Events(Events),
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    place: Where,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Go on: print what is new or has changed, by more than its age; JSON is one line for each then
    #[arg(short, long)]
    watch: bool,
    /// How often to look for changes
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration, requires = "watch")]
    interval: Duration,
    /// Leave the headers out
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text for people
    Table,
    /// The same with more columns
    Wide,
    /// Stable field names for programs
    Json,
    /// The same as YAML
    Yaml,
    /// One name a line
    Name,
}

#[derive(Debug, Args)]
struct Flows {
    #[command(flatten)]
    common: Common,
    /// Only flows to this VIP
    #[arg(long, value_name = "ADDRESS[:PORT][/tcp|udp|sctp]")]
    vip: Option<Endpoint>,
    /// Only flows of this client
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    client: Option<Endpoint>,
    /// At most so many; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

#[derive(Debug, Args)]
struct Events {
    #[command(flatten)]
    socket: Socket,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Go on with what happens; JSON is one line for each then
    #[arg(short, long)]
    watch: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.what {
        What::Flows(arguments) => arguments.common.list(&FLOWS, || arguments.find())?,
        What::Members(common) => common.list(&MEMBERS, || {
            let readings = common.readings()?;
            Ok(members(&readings, &common.place.names()))
        })?,
        What::Services(common) => common.list(&SERVICES, || {
            let readings = common.readings()?;
            Ok(services(&readings, &common.place.names()))
        })?,
        What::Backends(common) => common.list(&BACKENDS, || {
            let readings = common.readings()?;
            Ok(listing::backends(&readings, &common.place.names()))
        })?,
        What::Drops(common) => common.list(&DROPS, || Ok(advice::drops(&common.readings()?)))?,
        What::Events(arguments) => arguments.run()?,
    }
    Ok(Exit::Ok)
}

/// How a list of a kind is printed.
struct Kind<T> {
    table: fn(&[T]) -> Table,
    /// Adds the columns that only a wide terminal has room for.
    widen: fn(&[T], &mut Table),
    name: fn(&T) -> String,
}

const FLOWS: Kind<Flow> = Kind {
    table: flow_table,
    widen: |flows, table| {
        table.column("REVISION", flows.iter().map(|flow| flow.facts.revision.to_string()));
        table.column("TERM", flows.iter().map(|flow| flow.facts.term.to_string()));
        table.column("CREATOR", flows.iter().map(|flow| flow.facts.creator.to_string()));
        table.column("WITNESSED", flows.iter().map(|flow| status::yes(flow.facts.witnessed)));
        table.column("ADDRESS", flows.iter().map(|flow| flow.facts.backend.address.to_string()));
    },
    name: |flow| format!("{}>{}", flow.client, flow.vip),
};

const MEMBERS: Kind<MemberStatus> = Kind {
    table: status::members,
    widen: |members, table| {
        table.column("SEEN BY", members.iter().map(|member| member.seen_by.join(",")));
        table.column("NOT SEEN BY", members.iter().map(|member| member.not_seen_by.join(",")));
        table.column("BYTES", members.iter().map(|member| bytes(member.handed_off.bytes)));
    },
    name: |member| member.member.name.clone().unwrap_or_else(|| member.member.id.to_string()),
};

const SERVICES: Kind<ServiceStatus> = Kind {
    table: status::services,
    widen: |services, table| {
        table.column("ANSWERED", services.iter().map(|service| grouped(service.answered.packets)));
        table.column("BYTES", services.iter().map(|service| bytes(service.delivered.bytes)));
    },
    name: |service| service.vip.to_string(),
};

const BACKENDS: Kind<ServiceBackend> = Kind {
    table: backend_table,
    widen: |backends, table| {
        table.column("BYTES", backends.iter().map(|found| bytes(found.delivered.bytes)));
        table.column("SLOT", backends.iter().map(|found| found.backend.slot.to_string()));
        let mtu = |found: &ServiceBackend| found.next_hop.as_ref().map(|hop| hop.mtu.to_string()).unwrap_or_default();
        table.column("MTU", backends.iter().map(mtu));
    },
    name: |found| format!("{}>{}", found.vip, found.backend.address),
};

const DROPS: Kind<Dropped> = Kind {
    table: |drops| {
        let mut table = Table::new(&["REASON", "PACKETS", "BYTES", "WHAT TO DO"], &[1, 2]);
        for dropped in drops {
            let cure = dropped.cure.clone().unwrap_or_default();
            table.row([dropped.reason.to_owned(), grouped(dropped.packets), bytes(dropped.bytes), cure]);
        }
        table
    },
    widen: |drops, table| {
        table.column("CAUSE", drops.iter().map(|dropped| dropped.cause.clone().unwrap_or_default()));
        table.column("WHAT IT IS", drops.iter().map(|dropped| dropped.meaning.clone()));
    },
    name: |dropped| dropped.reason.to_owned(),
};

impl Common {
    fn readings(&self) -> Result<Readings, Failure> {
        Ok(Readings::glance(&self.place.open()?, now_ns)?)
    }

    /// Prints what `read` finds; while watching, what has changed since it was read before, until nobody reads it any more.
    fn list<T: Serialize>(&self, kind: &Kind<T>, read: impl Fn() -> Result<Vec<T>, Failure>) -> Result<(), Failure> {
        let mut items = read()?;
        if !self.watch {
            is_read(&self.rendered(kind, &items, !self.no_headers))?;
            return Ok(());
        }
        let mut seen = HashSet::new();
        let mut is_first = true;
        loop {
            let now: Vec<String> = items.iter().map(fingerprint).collect();
            let mut fingerprints = now.iter();
            items.retain(|_| fingerprints.next().is_some_and(|fingerprint| !seen.contains(fingerprint)));
            let with_headers = is_first && !self.no_headers;
            if !items.is_empty() && !is_read(&self.rendered(kind, &items, with_headers))? {
                return Ok(());
            }
            is_first &= items.is_empty();
            seen = now.into_iter().collect();
            thread::sleep(self.interval);
            items = read()?;
        }
    }

    fn rendered<T: Serialize>(&self, kind: &Kind<T>, items: &[T], with_headers: bool) -> String {
        match self.output {
            Format::Table => (kind.table)(items).render(with_headers),
            Format::Wide => {
                let mut table = (kind.table)(items);
                (kind.widen)(items, &mut table);
                table.render(with_headers)
            }
            Format::Json if self.watch => items.iter().map(to_line).collect(),
            Format::Json => to_json(items),
            Format::Yaml => to_yaml(items),
            Format::Name => items.iter().map(|item| format!("{}\n", (kind.name)(item))).collect(),
        }
    }
}

/// On one line.
fn to_line<T: Serialize>(item: &T) -> String {
    serde_json::to_string(item).expect("facts have string keys and no fallible types") + "\n"
}

/// What makes an item another one. Ages and round trips, which change all the time, do not.
fn fingerprint<T: Serialize>(item: &T) -> String {
    let mut value = serde_json::to_value(item).expect("facts have string keys and no fallible types");
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !name.ends_with("_ms") && !name.ends_with("_ns"));
    }
    value.to_string()
}

impl Flows {
    fn find(&self) -> Result<Vec<Flow>, Failure> {
        let place = &self.common.place;
        let (client, vip) = (self.client.unwrap_or_default(), self.vip.unwrap_or_default());
        let filter = Filter {
            client: client.address,
            client_port: client.port,
            vip: vip.address,
            vip_port: vip.port,
            protocol: vip.protocol.or(client.protocol),
        };
        let (found, is_cut) = listing::flows(&place.open()?, &place.names(), &filter, self.limit, now_ns)?;
        if is_cut && !self.common.watch {
            eprintln!("there are more than {} such flows; --limit 0 prints all", self.limit);
        }
        Ok(found)
    }
}

impl Events {
    fn run(&self) -> Result<(), Failure> {
        let mut past = Vec::new();
        let mut failure = None;
        let resource = if self.watch { "/v1/events" } else { "/v1/events?follow=false" };
        client::lines(&self.socket.socket, resource, |event: EventLine| {
            if !self.watch {
                past.push(event);
                return true;
            }
            let text = match self.output {
                Output::Table => event_text(&event),
                Output::Json => to_line(&event),
                Output::Yaml => to_yaml(&[event]),
            };
            is_read(&text).unwrap_or_else(|error| {
                failure = Some(error);
                false
            })
        })?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        if self.watch {
            let text = "the agent has ended, and with it the events";
            return Err(Failure::new(Exit::Absent, text));
        }
        self.output.print(&past, |past| past.iter().map(event_text).collect())
    }
}

fn event_text(event: &EventLine) -> String {
    let time = humantime::format_rfc3339_seconds(event.time);
    format!("{time}  {:<4}  {}\n", event.level, event.text)
}
pub(super) fn flow_table(flows: &[Flow]) -> Table {
    let headers = ["CLIENT", "VIP", "STATE", "PRIMARY", "BACKUP", "BACKEND", "IDLE", "AGE", "GENERATION"];
    let mut table = Table::new(&headers, &[8]);
    for flow in flows {
        let facts = &flow.facts;
        let member = |id: u8, name: &Option<String>| match (id, name) {
            (0, _) => String::new(),
            (_, Some(name)) => name.clone(),
            (id, None) => id.to_string(),
        };
        table.row([
            flow.client.to_string(),
            flow.vip.to_string(),
            facts.state.to_owned(),
            member(facts.primary, &facts.primary_name),
            member(facts.backup, &facts.backup_name),
            facts.backend.name.clone().unwrap_or_else(|| facts.backend.address.to_string()),
            duration(facts.idle_ms),
            duration(facts.age_ms),
            facts.generation.to_string(),
        ]);
    }
    table
}

pub(super) fn backend_table(backends: &[ServiceBackend]) -> Table {
    let headers = ["SERVICE", "VIP", "BACKEND", "ADDRESS", "STATE", "SHARE", "DELIVERED", "VIA"];
    let mut table = Table::new(&headers, &[5, 6]);
    for found in backends {
        let share = f64::from(found.ring_slots) * 100.0 / lb_common::ring::RING_SLOTS as f64;
        table.row([
            found.service.clone().unwrap_or_default(),
            found.vip.to_string(),
            found.backend.name.clone().unwrap_or_default(),
            found.backend.address.to_string(),
            found.backend.state.to_owned(),
            format!("{share:.1}%"),
            grouped(found.delivered.packets),
            found.next_hop.as_ref().map(|hop| format!("{} {}", hop.interface, hop.mac)).unwrap_or_default(),
        ]);
    }
    table
}

/// `ADDRESS`, `ADDRESS:PORT`, and either with `/tcp` or `/udp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) protocol: Option<Protocol>,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (socket, protocol) = match text.split_once('/') {
            Some((socket, protocol)) => (socket, Some(protocol.parse()?)),
            None => (text, None),
        };
        if let Ok(address) = socket.parse::<IpAddr>() {
            return Ok(Self { address: Some(address), port: None, protocol });
        }
        let socket: SocketAddr = socket.parse().map_err(|_unspecific| format!("{socket:?} is no address"))?;
        Ok(Self { address: Some(socket.ip()), port: Some(socket.port()), protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::fixture::{names, readings};

    #[test]
    fn a_wide_table_says_more_of_the_same_rows() {
        let (readings, names) = (readings(), names());
        let lines = |kind: &Kind<ServiceBackend>, wide: bool| {
            let items = listing::backends(&readings, &names);
            let mut table = (kind.table)(&items);
            if wide {
                (kind.widen)(&items, &mut table);
            }
            table.render(true).lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (table, wide) = (lines(&BACKENDS, false), lines(&BACKENDS, true));
        assert_eq!(table.len(), wide.len());
        assert!(table.iter().zip(&wide).all(|(narrow, wide)| wide.starts_with(narrow) && wide.len() > narrow.len()));
        assert!(wide[0].ends_with("MTU") && wide[1].ends_with("1500"), "{wide:?}");
        let drops = (DROPS.table)(&advice::drops(&readings)).render(true);
        assert!(drops.contains("drop_fragment_no_head        3  4500 B  keep UDP payloads under"), "{drops}");
        let named: Vec<String> = services(&readings, &names).iter().map(SERVICES.name).collect();
        assert_eq!(named, ["203.0.113.10:80/tcp"]);
    }

    #[test]
    fn an_item_that_only_grew_older_has_not_changed() {
        let (readings, names) = (readings(), names());
        let mut later = self::readings();
        later.now_ns += 1_000_000;
        let prints = |readings: &Readings| members(readings, &names).iter().map(fingerprint).collect::<Vec<_>>();
        assert_eq!(prints(&readings), prints(&later));
        later.liveness.eligible = 0b01;
        let (before, after) = (prints(&readings), prints(&later));
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }
}
