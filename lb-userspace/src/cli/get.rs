//! `tandem get`: lists.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, Subcommand};

use super::{Exit, Failure, place::Place, status, table::Table};
use crate::{
    config::Protocol,
    inspect::{
        listing::{self, Filter, Flow, ServiceBackend},
        status::{Readings, members, services},
        words::{duration, grouped},
    },
    pinned::now_ns,
};

/// List flows, members, services or backends
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem get flows --vip 203.0.113.10:80 --limit 20
  tandem get flows --client 198.51.100.7 -o json
  tandem get members
  tandem get backends --no-headers | awk '$5 == \"draining\"'

Reads the pinned maps of this host: it answers when the agent is dead, too.
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
")]
    Services(Common),
    /// Backends of every service
    #[command(before_long_help = "\
Examples:
  tandem get backends
  tandem get backends -o json | jq '.[] | select(.state == \"draining\")'
")]
    Backends(Common),
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    place: Place,
    /// Leave the headers out
    #[arg(long)]
    no_headers: bool,
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

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.what {
        What::Flows(arguments) => flows(arguments)?,
        What::Members(common) => {
            let (readings, names) = (common.readings()?, common.place.names());
            common.print(&members(&readings, &names), status::members)?;
        }
        What::Services(common) => {
            let (readings, names) = (common.readings()?, common.place.names());
            common.print(&services(&readings, &names), status::services)?;
        }
        What::Backends(common) => {
            let (readings, names) = (common.readings()?, common.place.names());
            common.print(&listing::backends(&readings, &names), backend_table)?;
        }
    }
    Ok(Exit::Ok)
}

impl Common {
    fn readings(&self) -> Result<Readings, Failure> {
        Ok(Readings::take(&self.place.open()?, now_ns)?)
    }

    fn print<T: serde::Serialize>(&self, facts: &Vec<T>, table: impl FnOnce(&[T]) -> Table) -> Result<(), Failure> {
        self.place.print(facts, |facts| table(facts).render(!self.no_headers))
    }
}

fn flows(arguments: &Flows) -> Result<(), Failure> {
    let place = &arguments.common.place;
    let (client, vip) = (arguments.client.unwrap_or_default(), arguments.vip.unwrap_or_default());
    let filter = Filter {
        client: client.address,
        client_port: client.port,
        vip: vip.address,
        vip_port: vip.port,
        protocol: vip.protocol.or(client.protocol),
    };
    let (found, is_cut) = listing::flows(&place.open()?, &place.names(), &filter, arguments.limit, now_ns)?;
    arguments.common.print(&found, flow_table)?;
    if is_cut {
        eprintln!("there are more than {} such flows; --limit 0 prints all", arguments.limit);
    }
    Ok(())
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
