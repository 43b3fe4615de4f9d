//! `tandem run`: the agent, until it is told to stop.

use std::{io::IsTerminal, path::PathBuf};

use clap::{Args, ValueEnum};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use super::{Exit, Failure, paint};
use crate::{
    agent,
    config::{self, Config, ConfigError, Host},
    control,
    io::{
        attach::Mode,
        trial::{UNDONE, beside, undo_unfinished},
    },
    pinned,
};

/// Run the agent of this member
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem run
  tandem run --config tandem.toml --node lb2 --interface eth1
  tandem run --config tandem.toml --pin-dir /sys/fs/bpf/lb2 --state-dir /var/lib/tandem-lb2

Attaches the datapath, or takes over the one that is pinned, without a packet lost. In the foreground until SIGTERM or SIGINT, which
say goodbye to the peers; SIGHUP reads the configuration again. An invalid configuration changes nothing.
Logs go to stderr; TANDEM_LOG sets what is logged (info by default; see tracing's EnvFilter).
")]
pub(super) struct Arguments {
    /// Configuration, the same file on every member
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Which member this is; default: node.name of the file, else the host name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Attach here instead of to node.interfaces; may be given several times
    #[arg(long, value_name = "IF")]
    interface: Vec<String>,
    /// Where maps and links are pinned; one directory for each member on a host
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
    /// Where the number of starts and the member's key are kept; one directory for each member on a host
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_STATE_DIRECTORY)]
    state_dir: PathBuf,
    /// Where it answers `tandem backend`, `tandem node` and curl; one for each member on a host
    #[arg(long, value_name = "FILE", default_value = control::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Who runs the XDP program
    #[arg(long, value_enum, default_value_t = XdpMode::Native)]
    xdp_mode: XdpMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum XdpMode {
    /// The network driver
    Native,
    /// The network stack: slower by an order of magnitude, works on every interface
    Generic,
}

impl From<XdpMode> for Mode {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Native => Self::Native,
            XdpMode::Generic => Self::Generic,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let (node, interfaces) = (arguments.node.as_deref(), &arguments.interface);
    start_log();
    match undo_unfinished(&arguments.config, &arguments.state_dir) {
        Ok(None) => {}
        Ok(Some(generation)) => warn!(
            "generation {generation} of the configuration was on trial when the agent ended: the one before it is back, what was \
             tried is in {}",
            beside(&arguments.config, UNDONE).display()
        ),
        Err(error) => warn!(%error, "cannot tell whether a configuration was on trial when the agent ended"),
    }
    let unreadable = |error: std::io::Error| {
        let path = arguments.config.clone();
        ConfigError::Unreadable { path, error: error.to_string() }
    };
    let text = std::fs::read_to_string(&arguments.config).map_err(unreadable)?;
    let host = Host { node, interfaces, state: &arguments.state_dir, ..Host::default() };
    let config = Config::parse(&text, &arguments.config, &host)?;
    let options = agent::Options {
        config: arguments.config.clone(),
        node: arguments.node.clone(),
        interfaces: arguments.interface.clone(),
        pins: arguments.pin_dir.clone(),
        state: arguments.state_dir.clone(),
        socket: arguments.socket.clone(),
        mode: arguments.xdp_mode.into(),
    };
    agent::run(&options, &config, text).map_err(|error| Failure::new(Exit::Failed, format!("{error:#}")))?;
    Ok(Exit::Ok)
}

/// Logs to stderr; the journal keeps its own time.
pub(super) fn start_log() {
    let filter = EnvFilter::try_from_env("TANDEM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(paint::is_wanted(std::io::stderr().is_terminal()))
        .with_target(false);
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().init(),
        None => log.init(),
    }
}
