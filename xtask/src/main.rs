//! `cargo xtask`: sets up, builds, runs, tests and measures Tandem.
//!
//! Words go to stderr, so that what the started programs print on stdout can be piped. Exit codes: 0 done, 1 something
//! failed, 2 usage; `run`, `demo`, `bench`, `sim` and `accept` end with the exit code of the program that they start.
mod ci;
mod deb;
mod fuzz;
mod launch;
mod setup;
mod step;
mod tiers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures Tandem
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", before_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo             kill one of three balancers under live connections
  cargo xtask test             every test that fits a CI run
  cargo xtask accept --list    long and timed rows of the acceptance lists
  cargo xtask run --interface eth0 --config tandem.toml";

/// The program that holds the rows of the acceptance lists.
const ACCEPTANCE: &str = "tandem-accept";

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: the eBPF toolchain, and the programs that the demo and the tests use
    #[command(before_long_help = "Examples:\n  cargo xtask setup")]
    Setup,
    /// Build, and balance on a NIC
    #[command(before_long_help = "\
Examples:
  cargo xtask run --interface eth0 --config tandem.toml
  cargo xtask run --interface eth0 --config tandem.toml -- --node lb2 --xdp-mode generic")]
    Run {
        /// The NIC to attach to instead of the interfaces in the configuration; may be given more than once
        #[arg(long, value_name = "IF")]
        interface: Vec<OsString>,
        /// The cluster's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// More arguments for `tandem run`
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Build, and show a balancer dying under live connections
    #[command(before_long_help = "\
Examples:
  cargo xtask demo
  cargo xtask demo --connections 200 --kill primary
  cargo xtask demo --naive       the same schedule without a cluster: connections break
  cargo xtask demo -- --help     the demo's own options")]
    Demo {
        /// Arguments for the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run all tests that fit a CI run; without root, those that need none
    #[command(before_long_help = "\
Examples:
  cargo xtask test
  cargo xtask test --tier cluster
  cargo xtask test draining      only tests whose name contains `draining`")]
    Test {
        /// Run this tier only
        #[arg(long, value_name = "NAME", value_parser = tiers::names())]
        tier: Option<String>,
        /// Run only tests whose name contains one of these
        filter: Vec<String>,
    },
    /// Measure what a packet costs in each of its paths, and print every figure as a ratio to the floor
    #[command(before_long_help = "\
Examples:
  cargo xtask bench
  cargo xtask bench --quick
  cargo xtask bench --cluster
  cargo xtask bench --json | tail -n 1 > bench.json
  cargo xtask bench -- --help    the benchmark's own options")]
    Bench {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Simulate clusters in which everything fails, one for each seed
    #[command(before_long_help = "\
Examples:
  cargo xtask sim
  cargo xtask sim --seeds 1000000 --jobs 1
  cargo xtask sim --seed 534       one seed, with its story
  cargo xtask sim --mutants        every planted fault is found
  cargo xtask sim -- --help        the simulator's own options")]
    Sim {
        /// Arguments for the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Look for inputs that break what must hold of all of them, guided by coverage: packets and tables, or configurations
    #[command(before_long_help = "\
Examples:
  cargo xtask fuzz
  cargo xtask fuzz --seconds 3600
  cargo xtask fuzz --what configuration --seconds 600")]
    Fuzz {
        /// Inputs of what
        #[arg(long, value_enum, default_value_t = fuzz::What::Packets)]
        what: fuzz::What,
        /// How long
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
    },
    /// Build the package for Debian: the program, its units, manual pages, completions, an example configuration
    #[command(before_long_help = "\
Examples:
  cargo xtask deb
  sudo apt install $(cargo xtask deb)")]
    Deb {
        /// The package's version, if not the program's
        #[arg(long, value_name = "VERSION")]
        package_version: Option<String>,
    },
    /// All that must hold before a change is merged: formatting, lints, documentation, tests, a short search by the fuzzer, a short demo, a short benchmark
    #[command(before_long_help = "Examples:\n  cargo xtask ci")]
    Ci,
    /// Run rows of the acceptance lists, the long and the timed ones, and print figure and bound of each
    #[command(before_long_help = "\
Examples:
  cargo xtask accept             every row
  cargo xtask accept --list      their names
  cargo xtask accept ROW         one of them")]
    Accept {
        /// Print the names of the rows
        #[arg(long, conflicts_with = "row")]
        list: bool,
        /// Run this row only
        row: Option<OsString>,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    let root = xtask::workspace_root();
    match task {
        Task::Setup => setup::everything(&root).map(|_| ExitCode::SUCCESS),
        Task::Run { interface, config, args } => launch::agent(&root, interface, config, args),
        Task::Demo { args } => launch::lab_program(&root, "tandem-demo", args),
        Task::Bench { args } => launch::bench(&root, args),
        Task::Sim { args } => launch::simulator(&root, args),
        Task::Accept { list: true, .. } => launch::list_rows(&root, ACCEPTANCE),
        Task::Accept { row, .. } => launch::lab_program(&root, ACCEPTANCE, row.into_iter().collect()),
        Task::Test { tier, filter } => {
            // Without root the tiers that need more than the toolchain are skipped.
            if step::is_root() {
                setup::everything(&root)?
            } else {
                setup::toolchain(&root)?
            };
            tiers::run(&root, tier.as_deref(), &filter)
        }
        Task::Fuzz { what, seconds } => fuzz::run(&root, what, seconds),
        Task::Deb { package_version } => deb::run(&root, package_version.as_deref()),
        Task::Ci => ci::run(&root),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_demo_gets_its_arguments_as_they_are() {
        let cli = Cli::try_parse_from(["xtask", "demo", "--kill", "primary", "--json"]).unwrap();
        let Task::Demo { args } = cli.task else { panic!("not the demo") };
        assert_eq!(args, ["--kill", "primary", "--json"]);
    }

    #[test]
    fn what_follows_two_dashes_goes_to_the_agent() {
        let line = ["xtask", "run", "--interface", "eth0", "--config", "a.toml", "--", "--node", "lb1"];
        let Task::Run { interface, args, .. } = Cli::try_parse_from(line).unwrap().task else { panic!("not run") };
        assert_eq!((interface, args), (vec!["eth0".into()], vec!["--node".into(), "lb1".into()]));
    }
}
