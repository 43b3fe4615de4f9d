//! `tandem top`: what happens a second, on a terminal or once for a log.

use std::{io::IsTerminal as _, thread, time::Duration};

use clap::Args;

use super::{
    Exit, Failure,
    paint::{self, Paint},
    place::Place,
    status::yes,
    table::Table,
};
use crate::{
    config::Names,
    inspect::{
        rates::{Rate, Top, between},
        status::{Readings, Verdict},
        words::{bytes, grouped, round_trip},
    },
    pinned::now_ns,
};

mod screen;

/// Watch services, backends, drops and members at work
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem top
  tandem top --once                            one look as text, for a log
  tandem top --once --interval 10s -o json     the averages of ten seconds

Reads the pinned maps of this host: it answers when the agent is dead, too. Keys: s sorts by the next column, q ends.
")]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Between looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Look twice, print the difference, and end
    #[arg(long)]
    once: bool,
}

/// Less is mostly noise, and work for nothing.
const SHORTEST: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST { Err("at least 100ms".to_owned()) } else { Ok(interval) }
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut source = Source { place: &arguments.place, names: arguments.place.names(), last: None };
    source.look()?;
    if arguments.once || arguments.place.is_for_programs() {
        thread::sleep(arguments.interval);
        let top = source.look()?;
        arguments.place.print(&top, |top| render(top, Order::default(), Paint::stdout()))?;
        return Ok(Exit::Ok);
    }
    if !std::io::stdout().is_terminal() {
        let text = "top draws on a terminal, and stdout is none; --once prints one look as text";
        return Err(Failure::new(Exit::Usage, text));
    }
    screen::run(arguments.interval, paint::is_wanted(true), || source.look())?;
    Ok(Exit::Ok)
}

/// Looks, and the difference to the one before.
struct Source<'a> {
    place: &'a Place,
    names: Names,
    last: Option<Readings>,
}

impl Source<'_> {
    /// The maps are opened each time: an upgrade puts others in their place.
    fn look(&mut self) -> Result<Top, Failure> {
        let now = Readings::glance(&self.place.open()?, now_ns)?;
        let top = between(self.last.as_ref().unwrap_or(&now), &now, &self.names);
        self.last = Some(now);
        Ok(top)
    }
}

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    /// As the configuration is: by address.
    #[default]
    Name,
    /// Packets a second, most first.
    Packets,
    /// Bytes a second, most first.
    Bytes,
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Packets,
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::Name,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Name => "address",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
        }
    }

    fn sort<T>(self, rows: &mut [T], rate: impl Fn(&T) -> Rate) {
        match self {
            Self::Name => {}
            Self::Packets => rows.sort_by(|a, b| rate(b).packets_per_s.total_cmp(&rate(a).packets_per_s)),
            Self::Bytes => rows.sort_by(|a, b| rate(b).bytes_per_s.total_cmp(&rate(a).bytes_per_s)),
        }
    }
}

/// The tables, each with a title.
fn tables(top: &Top, order: Order) -> [(&'static str, Table); 4] {
    [
        ("services", services(top, order)),
        ("backends", backends(top, order)),
        ("drops", drops(top, order)),
        ("members", members(top)),
    ]
}

fn services(top: &Top, order: Order) -> Table {
    let headers = ["SERVICE", "VIP", "SERVING", "DELIVERED/s", "BYTES/s", "HANDED/s", "DROPPED/s"];
    let mut table = Table::new(&headers, &[2, 3, 4, 5, 6]);
    let mut services: Vec<_> = top.services.iter().collect();
    order.sort(&mut services, |service| service.delivered);
    for service in services {
        table.row([
            service.name.clone().unwrap_or_default(),
            service.vip.to_string(),
            format!("{}/{}", service.serving, service.backends),
            packets_per_s(service.delivered),
            bytes_per_s(service.delivered),
            packets_per_s(service.handed_off),
            packets_per_s(service.dropped),
        ]);
    }
    table
}

fn backends(top: &Top, order: Order) -> Table {
    let mut table = Table::new(&["BACKEND", "ADDRESS", "OF", "STATE", "DELIVERED/s", "BYTES/s"], &[4, 5]);
    let mut backends: Vec<_> = top.backends.iter().collect();
    order.sort(&mut backends, |backend| backend.delivered);
    for found in backends {
        let backend = &found.backend;
        let state = if backend.reachable { backend.state.to_owned() } else { format!("{}, no way", backend.state) };
        table.row([
            backend.name.clone().unwrap_or_default(),
            backend.address.to_string(),
            found.vip.to_string(),
            state,
            packets_per_s(found.delivered),
            bytes_per_s(found.delivered),
        ]);
    }
    table
}

fn drops(top: &Top, order: Order) -> Table {
    let mut table = Table::new(&["DROPPED", "PACKETS/s", "BYTES/s", "PACKETS"], &[1, 2, 3]);
    let mut drops: Vec<_> = top.drops.iter().collect();
    order.sort(&mut drops, |dropped| dropped.rate);
    for dropped in drops {
        table.row([
            dropped.reason.to_owned(),
            packets_per_s(dropped.rate),
            bytes_per_s(dropped.rate),
            grouped(dropped.packets),
        ]);
    }
    table
}

fn members(top: &Top) -> Table {
    let mut table = Table::new(&["MEMBER", "ADDRESS", "FORWARDING", "ELIGIBLE", "RTT", "HANDED/s"], &[4, 5]);
    for member in &top.members {
        let this = if member.this { " (this)" } else { "" };
        table.row([
            format!("{}{this}", member.member.title()),
            member.member.address.to_string(),
            yes(member.forwarding),
            yes(member.eligible),
            member.rtt_ns.map(round_trip).unwrap_or_default(),
            if member.this { String::new() } else { packets_per_s(member.handed_off) },
        ]);
    }
    table
}

/// What stands above the tables: the verdict, then the sums.
fn heading(top: &Top) -> [String; 2] {
    let of = top.cluster.as_ref().map(|cluster| format!(" of {cluster}")).unwrap_or_default();
    let said = top.problems.first().map(|problem| format!(": {}", problem.text)).unwrap_or_default();
    let actions = top.actions.iter().filter(|action| action.rate.packets_per_s > 0.0);
    let actions = actions.map(|action| format!("{} {}", action.action, packets_per_s(action.rate)));
    let parts = [
        format!("{} packets/s, {}/s", packets_per_s(top.received), bytes(top.received.bytes_per_s as u64)),
        actions.collect::<Vec<_>>().join(", "),
        format!("{} flows, {} new/s", grouped(top.flows), grouped(top.new_flows_per_s.round() as u64)),
    ];
    let sums = parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("  |  ");
    [format!("{}{of}{said}", top.member.title()), sums]
}

fn verdict(top: &Top) -> &'static str {
    match top.verdict {
        Verdict::Ok => "ok",
        Verdict::Degraded => "degraded",
        Verdict::Down => "down",
    }
}

fn render(top: &Top, order: Order, paint: Paint) -> String {
    let [first, second] = heading(top);
    let word = match top.verdict {
        Verdict::Ok => paint.good(verdict(top)),
        Verdict::Degraded => paint.warning(verdict(top)),
        Verdict::Down => paint.bad(verdict(top)),
    };
    let tables = tables(top, order);
    let tables = tables.iter().filter(|(_, table)| !table.is_empty()).map(|(_, table)| table.render(true));
    std::iter::once(format!("{word}: {first}\n{second}\n")).chain(tables).collect::<Vec<_>>().join("\n")
}

/// Whole numbers, but the first ten, which would be 0 or 1 otherwise.
fn packets_per_s(rate: Rate) -> String {
    let packets = rate.packets_per_s;
    if packets > 0.0 && packets < 10.0 { format!("{packets:.1}") } else { grouped(packets.round() as u64) }
}

fn bytes_per_s(rate: Rate) -> String {
    bytes(rate.bytes_per_s.round() as u64)
}

#[cfg(test)]
mod tests {
    use lb_common::reason::Reason;

    use super::*;
    use crate::inspect::fixture::{names, readings};

    /// Two seconds at work.
    pub(super) fn top() -> Top {
        let (before, mut now) = (readings(), readings());
        now.now_ns += 2_000_000_000;
        now.liveness.lease_until_ns += 2_000_000_000;
        now.heard[2].probe_ns += 2_000_000_000;
        let delivered = &mut now.service_counters.get_mut(&3).unwrap().delivered;
        (delivered.packets, delivered.bytes) = (delivered.packets + 50_000, delivered.bytes + 4_000_000);
        let to_backend = now.delivered.get_mut(&1).unwrap();
        (to_backend.packets, to_backend.bytes) = (to_backend.packets + 50_000, to_backend.bytes + 4_000_000);
        now.handed_off.get_mut(&2).unwrap().packets += 20;
        now.counters[Reason::DeliverKnown as usize].packets += 50_000;
        now.counters[Reason::DropFragmentNoHead as usize].packets += 3;
        between(&before, &now, &names())
    }

    #[test]
    fn once_is_a_page_of_rates() {
        let expected = "\
ok: lb1 of edge-1
25,002 packets/s, 0 B/s  |  deliver 25,000, drop 1.5  |  12,412 flows, 0 new/s

SERVICE  VIP                  SERVING  DELIVERED/s   BYTES/s  HANDED/s  DROPPED/s
web      203.0.113.10:80/tcp      1/2       25,000  1953.1 KiB         0          0

BACKEND  ADDRESS    OF                   STATE     DELIVERED/s   BYTES/s
-        10.0.2.11  203.0.113.10:80/tcp  serving        25,000  1953.1 KiB
-        10.0.2.12  203.0.113.10:80/tcp  draining            0       0 B

DROPPED                PACKETS/s  BYTES/s  PACKETS
drop_fragment_no_head        1.5      0 B        6

MEMBER      ADDRESS    FORWARDING  ELIGIBLE    RTT  HANDED/s
lb1 (this)  10.0.1.11  yes         yes           -         -
lb2         10.0.1.12  yes         yes       84 us        10
";
        // Columns are as wide as what is in them, which `Table` has its own test for.
        let words = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(words(&render(&top(), Order::Name, Paint::off())), words(expected));
    }

    #[test]
    fn rows_are_sorted_by_what_is_asked_for() {
        let mut top = top();
        top.backends.reverse();
        let first = |order| tables(&top, order)[1].1.rows()[0][1].clone();
        assert_eq!(first(Order::Name), "10.0.2.12");
        assert_eq!(first(Order::Packets), "10.0.2.11");
        assert_eq!(first(Order::Bytes), "10.0.2.11");
        assert_eq!(Order::Name.next().next().next(), Order::Name);
    }
}
