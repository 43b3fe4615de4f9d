//! `tandem-bench`: what a packet costs in each of its paths.

use std::{fs, net::SocketAddr, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, Result};
use clap::Parser;
use tests::{
    bench::{self, Against, Destination, Extent, Options},
    interrupt, run,
};

/// Measures what a packet costs in each of its paths, beside the least that any balancer must do.
///
/// Needs root. Words go to stderr, figures to stdout. Ratios hold within one run; nanoseconds only on a quiet machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version, after_help = EXAMPLES)]
struct Arguments {
    /// Also print the figures as one JSON object, on the last line of stdout.
    #[arg(long)]
    json: bool,
    /// What the members' state costs, instead: records, joiners, digests.
    #[arg(long, conflicts_with_all = ["against", "plot", "only", "part"])]
    cluster: bool,
    /// Small frames only, and three rounds.
    #[arg(long)]
    quick: bool,
    /// Another XDP program that is pinned and configured: measured with the same packets in the same run.
    #[arg(long, value_name = "PIN")]
    against: Option<PathBuf>,
    /// New flows a second that the other program records; it is not sent more SYNs than that.
    #[arg(long, value_name = "FLOWS", default_value_t = 100_000)]
    pace: u32,
    /// What the other program is called in the picture.
    #[arg(long, value_name = "NAME", default_value = "other program")]
    against_name: String,
    /// Also draw cost against the number of flows and of members; measures more of both.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Where the packets go; once per family. The other program must balance it.
    #[arg(long, value_name = "ADDR:PORT", default_values = ["203.0.113.10:80", "[2001:db8:ffff::10]:80"])]
    vip: Vec<SocketAddr>,
    /// Only paths whose name contains this, and the floor; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How often every row is measured [default: 9, or 3 with --quick].
    #[arg(long)]
    rounds: Option<usize>,
    /// The CPU to measure on [default: 1, away from most interrupts, if there is one].
    #[arg(long)]
    cpu: Option<usize>,
    /// Which part: what a packet costs alone, or packets a second through veth pairs [default: both].
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// The harness's object; `cargo xtask bench` builds it and says where it is.
    #[arg(long, value_name = "FILE", hide = true)]
    harness: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Cost,
    Live,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench                                    every path, about two minutes
  cargo xtask bench --quick --only established         one path, a few seconds
  cargo xtask bench --cluster                          what replication costs, a minute
  cargo xtask bench --json | tail -n 1 > bench.json
  cargo xtask bench --plot bench.svg
  cargo xtask bench --against /sys/fs/bpf/other/prog   beside another balancer for 203.0.113.10:80

Exit status: 0 measured; 1 could not measure, or a packet did not take the path that its row names.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::catch();
    match measure(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::happened() => ExitCode::from(130),
        Err(error) => {
            eprintln!("tandem-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure_cluster(json: bool) -> Result<()> {
    run::require_root()?;
    let figures = bench::cluster::run()?;
    print!("{figures}");
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}

fn measure(arguments: Arguments) -> Result<()> {
    if arguments.cluster {
        return measure_cluster(arguments.json);
    }
    let Arguments { json, quick, against, pace, against_name, plot, vip, only, rounds, cpu, part, harness, .. } =
        arguments;
    run::require_root()?;
    let report = bench::run(&Options {
        harness,
        extent: Extent { quick, only, against: against.is_some(), curves: plot.is_some() },
        against: against.map(|pin| Against { pin, pace }),
        vip: vip.into_iter().fold(Destination::VIP, Destination::with),
        rounds: rounds.unwrap_or(if quick { 3 } else { 9 }),
        cpu: cpu.unwrap_or_else(|| usize::from(thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1))),
        cost: part != Some(Part::Live),
        live: part != Some(Part::Cost),
    })?;
    println!("{report}");
    if let Some(plot) = plot {
        fs::write(&plot, report.picture(&against_name)).with_context(|| format!("cannot write {}", plot.display()))?;
    }
    if json {
        println!("{}", report.json());
    }
    Ok(())
}
