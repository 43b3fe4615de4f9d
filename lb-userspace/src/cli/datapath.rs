//! `tandem datapath`: the programs and links themselves, which outlive the agent.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Exit, Failure, paint::Paint, place::Output, print, table::Table};
use crate::{
    inspect::{
        datapath::{InspectError, Installation, PinnedLink, PinnedProgram, Role},
        words::{duration, grouped},
    },
    io::removal::{self, RemovalError},
    pinned,
};

/// Look after the programs and links in the kernel, which outlive the agent
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem datapath status
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

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Status { pins, output } => status(pins, *output),
        Command::Detach { pins } => detach(pins),
    }
}

fn status(pins: &Pins, output: Output) -> Result<Exit, Failure> {
    let installation = Installation::look(&pins.pin_dir)?;
    output.print(&installation, |installation| render(installation, Paint::stdout()))?;
    Ok(if installation.problems.is_empty() { Exit::Ok } else { Exit::Degraded })
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

impl From<RemovalError> for Failure {
    fn from(error: RemovalError) -> Self {
        let exit = if matches!(error, RemovalError::Absent(_)) { Exit::Absent } else { Exit::Failed };
        Self::new(exit, error.to_string())
    }
}
