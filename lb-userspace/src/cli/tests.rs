//! What the commands print, and that help begins with examples everywhere.

use clap::CommandFactory;
use lb_common::{
    liveness::{Heard, LEFT_UNKNOWN, LIVENESS_BEHIND, LIVENESS_DRAINING, LIVENESS_PENDING},
    node::Node,
    rank::{Seed, seed},
};
use zerocopy::FromZeros;

use super::{paint::Paint, *};
use crate::inspect::{
    fixture::{self, NOW, readings},
    status::{Readings, Status},
};

#[test]
fn the_command_tree_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn long_help_begins_with_examples_and_an_example_of_each_parses() {
    fn walk(command: &clap::Command) -> usize {
        let mut count = 0;
        if command.get_name() != "help" {
            let help = command.get_before_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:\n  tandem "), "{} has no examples", command.get_name());
            for example in help.lines().filter_map(|line| line.strip_prefix("  tandem")) {
                let words =
                    example.split("   ").next().unwrap_or_default().split(['|', '>']).next().unwrap_or_default();
                let words = std::iter::once("tandem").chain(words.split_whitespace());
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{example}: {error}");
                }
                count += 1;
            }
        }
        count + command.get_subcommands().map(walk).sum::<usize>()
    }
    assert!(walk(&Cli::command()) > 15);
}

#[test]
fn a_bare_command_is_status_with_its_options() {
    let cli = Cli::try_parse_from(["tandem", "-o", "json", "--pin-dir", "/x"]).unwrap();
    assert!(cli.command.is_none());
}

#[test]
fn endpoints_may_leave_out_port_and_protocol() {
    let parse = |text: &str| text.parse::<get::Endpoint>().map(|found| (found.port, found.protocol));
    let tcp = Some(crate::config::Protocol::Tcp);
    assert_eq!(parse("203.0.113.10"), Ok((None, None)));
    assert_eq!(parse("203.0.113.10:80"), Ok((Some(80), None)));
    assert_eq!(parse("203.0.113.10:80/tcp"), Ok((Some(80), tcp)));
    assert_eq!(parse("203.0.113.10/tcp"), Ok((None, tcp)));
    assert!(parse("web").is_err());
}

#[test]
fn columns_are_aligned_and_never_empty() {
    let mut table = table::Table::new(&["NAME", "COUNT"], &[1]);
    table.row(["a".into(), "5".into()]);
    table.row([String::new(), "1,000".into()]);
    assert_eq!(table.render(true), "NAME  COUNT\na         5\n-     1,000\n");
    assert_eq!(table.render(false), "a      5\n-  1,000\n");
}

#[test]
fn every_reason_is_documented_with_what_is_done() {
    use lb_common::reason::{Action, Reason};

    let documentation = include_str!("../../../docs/reasons.md");
    for reason in Reason::ALL {
        let title = format!("\n### `{}`\n", reason.name());
        let (before, after) =
            documentation.split_once(&title).unwrap_or_else(|| panic!("{} is not documented", reason.name()));
        let section = before.rsplit("\n## ").next().and_then(|section| section.lines().next()).unwrap_or_default();
        let expected = match reason.action() {
            Action::Pass => "Left to the host",
            Action::Deliver => "Delivered to a backend",
            Action::HandOff => "Handed to another member",
            Action::Answer | Action::Consume => "Answered or taken",
            Action::Drop => "Dropped",
        };
        assert_eq!(section, expected, "{}", reason.name());
        let text = after.split("\n#").next().unwrap_or_default();
        assert!(reason.action() != Action::Drop || text.contains("**Cure**"), "{} has no cure", reason.name());
    }
    let documented = documentation.matches("\n### `").count();
    assert_eq!(documented, Reason::ALL.len(), "a reason is documented that does not exist");
}

fn judged(readings: &Readings) -> Status {
    crate::inspect::status::status(readings, &fixture::names())
}

#[test]
fn status_of_a_healthy_member_is_one_screen() {
    let expected = "\
ok: lb1 of edge-1, 2 of 2 members take new flows

agent     alive, lease for 80 ms, incarnation 5
servers   epoch 7
attached  to eth0
flows     12,345 of 1,048,576 (IPv4), 67 of 262,144 (IPv6)

ID  MEMBER      ADDRESS    FORWARDING  ELIGIBLE  PROBE     ECHO      RTT    INCARNATION  HANDED  VIA
1   lb1 (this)  10.0.1.11  yes         yes       -         -         -      5                 -  -
2   lb2         10.0.1.12  yes         yes       7 ms ago  2 ms ago  84 us  3               567  lo 02:00:00:00:00:09

SERVICE  VIP                  SERVING  DRAINING  DOWN  REMOVED  UNREACHABLE  NEW FLOWS  DELIVERED  HANDED  DROPPED
web      203.0.113.10:80/tcp        1         1     0        0            0  yes        1,234,567     567        3

OUTCOME                ACTION     PACKETS     BYTES
deliver_known          deliver  1,234,567  94.2 MiB
drop_fragment_no_head  drop             3    4500 B
";
    assert_eq!(status::render(&judged(&readings()), Paint::off()), expected);
}

#[test]
fn a_change_of_servers_a_drain_and_disbelief_have_their_lines() {
    let said = |change: fn(&mut Readings)| {
        let mut readings = readings();
        change(&mut readings);
        status::render(&judged(&readings), Paint::off())
    };
    let waits = said(|r| (r.liveness.flags, r.liveness.awaited) = (LIVENESS_PENDING, 0b10));
    assert!(waits.contains("servers   epoch 7, a change waits for lb2\n"), "{waits}");
    let grace = said(|r| r.liveness.grace_until_ns = NOW + 5_000_000_000);
    assert!(grace.contains("servers   epoch 7, flows of before go on by the old ones for 5.0 s\n"), "{grace}");
    for (left, text) in [
        (LEFT_UNKNOWN, "draining  flows are being counted\n"),
        (1234, "draining  1,234 flows left\n"),
        (0, "draining  done, no flow names this member\n"),
    ] {
        let mut readings = readings();
        (readings.liveness.flags, readings.liveness.left) = (LIVENESS_DRAINING, left);
        readings.liveness.eligible = 0b10;
        let drains = status::render(&judged(&readings), Paint::off());
        assert!(drains.contains(text) && drains.contains("this member is draining: it owns no new flows"), "{drains}");
    }
    let disbelieved = said(|r| r.liveness.flags = 0x01_02_00);
    let reason = "lb2 is not believed, its session was ended: it made a record as another member; look at its host";
    assert!(disbelieved.contains(reason), "{disbelieved}");
    let behind = said(|r| (r.liveness.flags, r.liveness.eligible) = (LIVENESS_BEHIND, 0b10));
    assert!(behind.contains("does not have the cluster's servers"), "{behind}");
}

#[test]
fn every_cause_of_a_bad_verdict_has_its_line() {
    type Fault = fn(&mut Readings);
    let faults: [(Fault, &str); 16] = [
        (
            |r| r.heard[2].forwarding = 0b10,
            "degraded: lb1 of edge-1: this member is not seen by lb2, whose probes arrive: look at its way there and back",
        ),
        (
            |r| {
                // A third member, alive, that sees this one and not lb2.
                r.node.seeds[2] = Seed { seed: seed(3), id: 3 };
                (r.node.members, r.liveness.forwarding, r.liveness.eligible) = (3, 0b111, 0b111);
                r.members.push(r.members[2]);
                r.heard[2].forwarding = 0b111;
                r.heard.push(Heard { forwarding: 0b101, ..r.heard[2] });
            },
            "degraded: lb1 of edge-1: lb2 is not seen by member 3, and is from here: look at the way between them",
        ),
        (
            |r| r.flows[1].flows = 250_000,
            "degraded: lb1 of edge-1: the table of IPv6 flows is 95 % full: beyond it new flows are unprotected",
        ),
        (
            |r| r.unprotected_per_s = 1_234,
            "degraded: lb1 of edge-1: flows are unprotected, 1234 packets a second: over the budget of new flows, or no room \
             (deliver_over_budget, deliver_table_full)",
        ),
        (|r| r.interfaces.clear(), "down: lb1 of edge-1: the datapath is attached to no interface"),
        (
            |r| r.node = Node::new_zeroed(),
            "down: member 0 of edge-1: the agent has not configured the datapath: everything is left to the host",
        ),
        (
            |r| r.liveness.lease_until_ns = NOW - 3_200_000_000,
            "degraded: lb1 of edge-1: the agent has been dead for 3.2 s: known flows go on, new ones are left to other members",
        ),
        (
            |r| r.liveness.lease_until_ns = 0,
            "degraded: lb1 of edge-1: the agent has never vouched for this datapath: known flows go on, new ones are left to \
             other members",
        ),
        (|r| r.liveness.eligible = 0b10, "degraded: lb1 of edge-1: this member is not ready: it owns no new flows"),
        (
            |r| r.liveness.eligible = 0b01,
            "degraded: lb1 of edge-1: lb2 owns no new flows: its agent is dead or not ready",
        ),
        (
            |r| (r.liveness.forwarding, r.liveness.eligible) = (0b01, 0b01),
            "degraded: lb1 of edge-1: lb2 is not forwarding: its echoes arrive, but it has not been ready since",
        ),
        (
            |r| {
                (r.liveness.forwarding, r.liveness.eligible) = (0b01, 0b01);
                (r.heard[2].probe_ns, r.heard[2].echo_ns) = (NOW - 5_000_000_000, NOW - 5_000_000_000);
            },
            "degraded: lb1 of edge-1: lb2 is not forwarding: last echo 5.0 s ago",
        ),
        (
            |r| {
                (r.liveness.forwarding, r.liveness.eligible) = (0b01, 0b01);
                r.heard[2].echo_ns = 0;
            },
            "degraded: lb1 of edge-1: lb2 is not forwarding: its probes arrive, but no echo ever did: the link \
             carries one direction only, or its driver drops XDP_TX",
        ),
        (
            |r| r.backends[1].state = 4,
            "degraded: lb1 of edge-1: web (203.0.113.10:80/tcp) takes no new flows: none of its backends is serving",
        ),
        (
            |r| r.backends[2].next_hop.ifindex = 0,
            "degraded: lb1 of edge-1: web (203.0.113.10:80/tcp): next hop not resolved for 1 of its backends",
        ),
        (
            |r| r.flows[0].flows = 1_000_000,
            "degraded: lb1 of edge-1: the flow table is 95 % full: beyond it new flows are unprotected",
        ),
    ];
    for (fault, expected) in faults {
        let mut readings = readings();
        fault(&mut readings);
        let status = judged(&readings);
        assert_eq!(status.problems.len(), 1, "{:?}", status.problems);
        assert_eq!(status::render(&status, Paint::off()).lines().next(), Some(expected));
    }
}

#[test]
fn the_worst_comes_first_and_the_rest_follows() {
    let mut readings = readings();
    readings.liveness.eligible = 0b01;
    readings.interfaces.clear();
    let text = status::render(&judged(&readings), Paint::off());
    let lines: Vec<_> = text.lines().take(2).collect();
    assert_eq!(lines[0], "down: lb1 of edge-1: the datapath is attached to no interface");
    assert_eq!(lines[1], "  also: lb2 owns no new flows: its agent is dead or not ready");
}

#[test]
fn json_has_the_fields_that_programs_rely_on() {
    let json = serde_json::to_value(judged(&readings())).unwrap();
    assert_eq!(json["verdict"], "ok");
    assert_eq!(json["member"]["name"], "lb1");
    assert_eq!(json["agent"]["lease_ms"], 80);
    assert_eq!(json["members"][1]["rtt_ns"], 84_000);
    assert_eq!(json["members"][1]["address"], "10.0.1.12");
    assert_eq!(json["services"][0]["vip"], "203.0.113.10:80/tcp");
    assert_eq!(json["flows"]["used"], 12_345);
    assert_eq!(json["packets"][1]["reason"], "drop_fragment_no_head");
}

#[test]
fn completions_and_pages_know_every_command() {
    let bash = completions::script(clap_complete::Shell::Bash);
    let pages = man::pages().unwrap();
    let page = |name: &str| pages.iter().find(|(file, _)| file == name).map(|(_, page)| page.as_str());
    assert_eq!(pages[0].0, "tandem.1");
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(bash.contains(&format!("tandem,{name})")), "{name} is not completed");
        assert!(page(&format!("tandem-{name}.1")).is_some_and(|page| page.contains("tandem ")), "{name} has no page");
    }
    let check = page("tandem-config-check.1").unwrap();
    assert!(check.contains("\\-\\-elsewhere") && check.contains("EXAMPLES\n.nf\n  tandem config check"), "{check}");
}

#[test]
fn yaml_says_what_json_says() {
    let status = judged(&readings());
    let read: serde_json::Value = serde_saphyr::from_str(&place::to_yaml(&status)).unwrap();
    assert_eq!(read, serde_json::to_value(&status).unwrap());
    let drops = crate::inspect::advice::drops(&readings());
    let read: serde_json::Value = serde_saphyr::from_str(&place::to_yaml(&drops)).unwrap();
    assert_eq!(read, serde_json::to_value(&drops).unwrap());
}
