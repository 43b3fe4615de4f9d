//! `tandem metrics`: what Prometheus would be told now.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, print};
use crate::{
    config::{self, Names},
    inspect::{metrics::exposition, status::Readings},
    pinned::{self, Pinned, now_ns},
};

/// Print this member's metrics once, as Prometheus reads them
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem metrics
  tandem metrics | grep -v '^#' | grep drop_
  tandem metrics > /var/lib/node_exporter/tandem.prom

Reads the pinned maps of this host: it answers when the agent is dead, too. With `metrics_listen = \"127.0.0.1:9477\"` in [node]
the agent answers Prometheus itself, at http://127.0.0.1:9477/metrics; docs/metrics.md has every metric.
")]
pub(super) struct Arguments {
    /// Pin directory of the member
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
    /// Configuration file to take names from; without it things are called by id and address
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let readings = Readings::glance(&Pinned::open(&arguments.pin_dir)?, now_ns)?;
    print(&exposition(&readings, &Names::load(&arguments.config)))?;
    Ok(Exit::Ok)
}
