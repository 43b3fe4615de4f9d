//! The command line. Data goes to stdout, words go to stderr, and every exit code has one meaning.
//!
//! What it says to a program (exit codes, `-o json`) is stable; what it says to people may change.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

mod announce;
mod backend;
mod bugreport;
mod cluster;
mod completions;
mod config;
mod datapath;
mod decap;
mod doctor;
mod drain;
mod explain;
mod failure;
mod get;
mod man;
mod metrics;
mod node;
mod paint;
mod place;
mod run;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod top;

pub use failure::{Exit, Failure};

/// Tandem: a layer-4 load balancer whose members survive each other
#[derive(Debug, Parser)]
#[command(
    name = "tandem",
    version,
    args_conflicts_with_subcommands = true,
    before_long_help = "\
Examples:
  tandem                                                     how is this member? (= tandem status)
  tandem top                                                 what happens a second
  tandem get flows --vip 203.0.113.10:80                     who is connected
  tandem get drops                                           what is dropped, why, and what to do
  tandem explain 198.51.100.7:40000 203.0.113.10:80          where does this flow go, and why
  tandem config check                                        everything that is wrong with the configuration
  tandem cluster keygen                                      a new key for this member
  tandem doctor                                              what is wrong with this host, and what mends it
  tandem backend drain web-1 --wait                          no new flows to a server, until none are left
  tandem node drain --wait                                   this member gives its flows away: safe to reboot
  tandem datapath status                                     what is attached, with or without an agent
  tandem run --config /etc/tandem/tandem.toml                the agent",
    after_long_help = "\
Exit codes:
  0  ok
  1  failed
  2  wrong usage
  3  no datapath or agent found
  4  the configuration is invalid
  5  degraded (status, datapath status), or something found (doctor)
  6  not done in time (--wait)"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    status: status::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Arguments),
    Top(top::Arguments),
    Get(get::Arguments),
    Metrics(metrics::Arguments),
    Explain(explain::Arguments),
    Config(config::Arguments),
    Cluster(cluster::Arguments),
    Datapath(datapath::Arguments),
    Announce(announce::Arguments),
    Backend(backend::Arguments),
    Node(node::Arguments),
    Run(run::Arguments),
    Decap(decap::Arguments),
    Doctor(doctor::Arguments),
    Bugreport(bugreport::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => status::run(&cli.status),
        Some(Command::Status(arguments)) => status::run(&arguments),
        Some(Command::Top(arguments)) => top::run(&arguments),
        Some(Command::Get(arguments)) => get::run(&arguments),
        Some(Command::Metrics(arguments)) => metrics::run(&arguments),
        Some(Command::Explain(arguments)) => explain::run(&arguments),
        Some(Command::Config(arguments)) => config::run(&arguments),
        Some(Command::Cluster(arguments)) => cluster::run(&arguments),
        Some(Command::Datapath(arguments)) => datapath::run(&arguments),
        Some(Command::Announce(arguments)) => announce::run(&arguments),
        Some(Command::Backend(arguments)) => backend::run(&arguments),
        Some(Command::Node(arguments)) => node::run(&arguments),
        Some(Command::Run(arguments)) => run::run(&arguments),
        Some(Command::Decap(arguments)) => decap::run(&arguments),
        Some(Command::Doctor(arguments)) => doctor::run(&arguments),
        Some(Command::Bugreport(arguments)) => bugreport::run(&arguments),
        Some(Command::Completions(arguments)) => completions::run(&arguments),
        Some(Command::Man(arguments)) => man::run(&arguments),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

/// Prints data. A reader that has seen enough (`| head`) is no error.
fn print(data: &str) -> Result<(), Failure> {
    is_read(data).map(drop)
}

/// Prints data; whether somebody goes on reading.
fn is_read(data: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Failed, format!("writing to stdout: {error}"))),
    }
}
