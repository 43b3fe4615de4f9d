//! `tandem datapath`: the programs and links themselves, which outlive the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, builder::RangedI64ValueParser, value_parser};
use serde::Serialize;

use super::{Exit, Failure, paint::Paint, place::Output, print, table::Table};
use crate::{
    config::{FLOWS_LEAST, FLOWS_MOST},
    inspect::{
        datapath::{InspectError, Installation, PinnedLink, PinnedProgram, Role},
        words::{FORMAT_VERSION, duration, grouped},
    },
    io::{
        datapath::OBJECT,
        removal::{self, RemovalError},
        upgrade::{self as io_upgrade, Tally, UpgradeError, Upgraded, WINDOW, Wish},
    },
    pinned,
};

/// Look after the programs and links in the kernel, which outlive the agent
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem datapath status
  tandem datapath upgrade        this tandem's program in the place of the one that is attached, without a packet lost
  tandem datapath rollback       the one before
  tandem datapath detach         after the agent was stopped: packets are the host's again

The datapath is a set of maps, a program and a link for each interface, all pinned in --pin-dir. An agent that stops or dies leaves
them in place.
")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is attached, which program it is, and whether that is as it should be
    #[command(before_long_help = "\
Examples:
  tandem datapath status                  exit code 0: ok, 5: something is not as it should be, 3: nothing is pinned
  tandem datapath status -o json | jq '.programs[] | select(.role == \"current\").fingerprint'

Changes nothing, and works with the maps of any version.
")]
    Status {
        #[command(flatten)]
        pins: Pins,
        /// What to print
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Put this tandem's program in the place of the one that is attached, without a packet lost
    #[command(before_long_help = "\
Examples:
  tandem datapath upgrade --check        only the golden packets; changes nothing
  tandem datapath upgrade
  tandem datapath upgrade -o json --object /usr/lib/tandem/lb-ebpf
  tandem datapath upgrade --flows-max 4194304      larger tables, filled with the flows that are there

With an agent running or without. The program first gets golden packets on maps of its own, among them copies of this member's tables;
one that treats a packet otherwise than it should is not attached. Then it replaces the old one atomically and is watched for ten
seconds: if more is dropped than before, the old one is put back (exit code 1). `tandem run` of another version does the same when it
starts, and when node.flows_max has changed; so write it there, too. Tables of another layout are converted by an agent that
starts, and by nothing else. After these ten seconds `rollback` cannot bring the tables of before back: change their size again.
")]
    Upgrade {
        #[command(flatten)]
        pins: Pins,
        /// Only show it the golden packets
        #[arg(long)]
        check: bool,
        /// The programs of this file instead of those in this tandem
        #[arg(long, value_name = "FILE")]
        object: Option<PathBuf>,
        /// IPv4 flows that the table shall hold
        #[arg(long, value_name = "N", value_parser = flows())]
        flows_max: Option<u32>,
        /// IPv6 flows that the table shall hold
        #[arg(long, value_name = "N", value_parser = flows())]
        flows_v6_max: Option<u32>,
        /// What to print
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Put the program back that was attached before the last upgrade
    #[command(before_long_help = "\
Examples:
  tandem datapath rollback
  tandem datapath rollback -o json

With an agent running or without, and without a packet lost. The program that is taken off is refused from now on: an agent that
brings it leaves the one before attached, until `tandem datapath upgrade`.
")]
    Rollback {
        #[command(flatten)]
        pins: Pins,
        /// What to print
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Take the datapath off all interfaces and forget its flows; leaves no trace
    #[command(before_long_help = "\
Examples:
  tandem datapath detach
  tandem datapath detach --pin-dir /sys/fs/bpf/lb2

Works with the datapath of any version. Refuses while an agent runs, which would attach it again. The records of the flows live on at
the other members.
")]
    Detach {
        #[command(flatten)]
        pins: Pins,
    },
}

#[derive(Clone, Debug, Args)]
struct Pins {
    /// Pin directory of the member
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
}

/// As many as node.flows_max may say.
fn flows() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(FLOWS_LEAST as i64..=FLOWS_MOST as i64)
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Status { pins, output } => status(pins, *output),
        Command::Upgrade { pins, check, object, flows_max, flows_v6_max, output } => {
            let wish = Wish { only_check: *check, flows_max: *flows_max, flows_v6_max: *flows_v6_max };
            upgrade(pins, &wish, object.as_deref(), *output)
        }
        Command::Rollback { pins, output } => rollback(pins, *output),
        Command::Detach { pins } => detach(pins),
    }
}

fn status(pins: &Pins, output: Output) -> Result<Exit, Failure> {
    let installation = Installation::look(&pins.pin_dir)?;
    output.print(&installation, |installation| render(installation, Paint::stdout()))?;
    Ok(if installation.problems.is_empty() { Exit::Ok } else { Exit::Degraded })
}

/// What became of the programs; `-o json` prints this.
#[derive(Debug, Serialize)]
struct Change {
    format_version: u32,
    /// `same`, `passed`, `upgraded`, `rolled_back`.
    outcome: &'static str,
    /// The programs that are attached now, or were checked.
    fingerprints: Vec<String>,
    /// Golden packets that were as they should be.
    golden_packets: u64,
    /// While it was watched: packets that were dropped, and those that were delivered, handed off, answered or taken.
    watched: Option<Watched>,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct Watched {
    lost: u64,
    treated: u64,
}

impl From<Tally> for Watched {
    fn from(Tally { lost, treated }: Tally) -> Self {
        Self { lost, treated }
    }
}

impl Change {
    fn new(outcome: &'static str, fingerprints: Vec<String>, text: String) -> Self {
        Self { format_version: FORMAT_VERSION, outcome, fingerprints, golden_packets: 0, watched: None, text }
    }
}

fn upgrade(pins: &Pins, wish: &Wish, object: Option<&Path>, output: Output) -> Result<Exit, Failure> {
    let read;
    let object = match object {
        None => OBJECT,
        Some(path) => {
            let failed = |error| Failure::new(Exit::Usage, format!("{}: {error}. Nothing was changed", path.display()));
            read = fs::read(path).map_err(failed)?;
            &read
        }
    };
    let change = match io_upgrade::upgrade(&pins.pin_dir, object, wish)? {
        Upgraded::Same(program) => {
            let text = format!("nothing to do: program {program} is attached already\n");
            Change::new("same", vec![program.to_string()], text)
        }
        Upgraded::Passed(golden) => {
            let text = format!("passed: {} golden packets; nothing was changed\n", grouped(golden.cases));
            Change { golden_packets: golden.cases, ..Change::new("passed", Vec::new(), text) }
        }
        Upgraded::Done { interfaces, fingerprint, golden, tally } => {
            let seconds = WINDOW.as_secs();
            let (treated, lost) = (grouped(tally.treated), grouped(tally.lost));
            let text = format!(
                "upgraded {}: program {fingerprint}; {} golden packets passed; in {seconds} s {treated} packets treated, {lost} dropped\n",
                interfaces.join(", "),
                grouped(golden.cases),
            );
            let watched = Some(tally.into());
            Change {
                golden_packets: golden.cases,
                watched,
                ..Change::new("upgraded", vec![fingerprint.to_string()], text)
            }
        }
        Upgraded::RolledBack { tally, baseline_ppm } => {
            let share = |ppm: u32| format!("{}.{:02} %", ppm / 10_000, ppm / 100 % 100);
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "the new program dropped {} of {} packets ({}; before it {}), so the one before is attached again. \
                     `tandem status` counts what was dropped and why",
                    grouped(tally.lost),
                    grouped(tally.lost + tally.treated),
                    share(tally.lost_ppm()),
                    share(baseline_ppm),
                ),
            ));
        }
    };
    output.print(&change, |change| change.text.clone())?;
    Ok(Exit::Ok)
}

fn rollback(pins: &Pins, output: Output) -> Result<Exit, Failure> {
    let programs = io_upgrade::roll_back(&pins.pin_dir)?;
    let fingerprints: Vec<String> = programs.iter().map(|program| program.fingerprint.to_string()).collect();
    let text = format!("rolled back: program {} is attached again\n", fingerprints.join(", "));
    output.print(&Change::new("rolled_back", fingerprints, text), |change| change.text.clone())?;
    Ok(Exit::Ok)
}

fn detach(pins: &Pins) -> Result<Exit, Failure> {
    let from = removal::detach(&pins.pin_dir)?;
    let from = if from.is_empty() { "nothing".to_owned() } else { from.join(", ") };
    print(&format!("detached from {from}; {} is removed\n", pins.pin_dir.display()))?;
    Ok(Exit::Ok)
}

fn render(installation: &Installation, paint: Paint) -> String {
    let mut text = match installation.problems.as_slice() {
        [] => format!("{}: ", paint.good("ok")) + &attached(&installation.links) + "\n",
        [first, rest @ ..] => {
            let rest: String = rest.iter().map(|problem| format!("  also: {problem}\n")).collect();
            format!("{}: {first}\n{rest}", paint.warning("degraded"))
        }
    };
    let agent = installation.agent_pid.map_or_else(|| "none runs".to_owned(), |pid| format!("runs, process {pid}"));
    text += &format!("agent     {agent}\npins      {}\n", installation.pin_directory.display());
    if let Some(ms) = installation.watched_ms {
        text += &format!("upgrade   is watched for {} more\n", duration(ms));
    }
    if !installation.refused.is_empty() {
        text += &format!(
            "refused   {} (rolled back; `tandem datapath upgrade` tries again)\n",
            installation.refused.join(", ")
        );
    }
    let tables = [links(&installation.links), programs(&installation.programs)];
    tables.iter().filter(|table| !table.is_empty()).fold(text, |text, table| text + "\n" + &table.render(true))
}

fn attached(links: &[PinnedLink]) -> String {
    let names: Vec<&str> = links.iter().map(|link| link.interface.as_str()).collect();
    format!("attached to {}", names.join(", "))
}

fn links(links: &[PinnedLink]) -> Table {
    let mut table = Table::new(&["INTERFACE", "INDEX", "PROGRAM", "RUNS"], &[1, 2]);
    for link in links {
        let runs = link.runs.map_or("another", Role::name).to_owned();
        let index = if link.ifindex == 0 { "gone".to_owned() } else { link.ifindex.to_string() };
        table.row([link.interface.clone(), index, link.program_id.to_string(), runs]);
    }
    table
}

fn programs(programs: &[PinnedProgram]) -> Table {
    let mut table = Table::new(&["PROGRAM", "ROLE", "NAME", "FINGERPRINT", "LOADED", "VERIFIED"], &[0, 5]);
    for program in programs {
        table.row([
            program.id.to_string(),
            program.role.name().to_owned(),
            program.name.clone(),
            program.fingerprint.clone(),
            program.loaded_s.map(|s| format!("{} ago", duration(s * 1000))).unwrap_or_default(),
            program.verified_instructions.map(|count| grouped(count.into())).unwrap_or_default(),
        ]);
    }
    table
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        let exit = if matches!(error, InspectError::Absent(_)) { Exit::Absent } else { Exit::Failed };
        Self::new(exit, error.to_string())
    }
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        let exit = if matches!(error, UpgradeError::Absent(_)) { Exit::Absent } else { Exit::Failed };
        Self::new(exit, error.to_string())
    }
}

impl From<RemovalError> for Failure {
    fn from(error: RemovalError) -> Self {
        let exit = if matches!(error, RemovalError::Absent(_)) { Exit::Absent } else { Exit::Failed };
        Self::new(exit, error.to_string())
    }
}
