//! `tandem announce`: what a routing daemon must be told to export the VIPs that this member serves.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Exit, Failure, print};
use crate::config::{self, Host, Outline};

/// Help a routing daemon announce the VIPs that this member serves
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem announce render bird >> /etc/bird/bird.conf      then fill in the two AS numbers and the router, and `birdc configure`

With `announce_table = N` in [node] the agent keeps a blackhole route in that table for each VIP while this member is ready, and
takes it away when it drains, is no longer ready, or stops. A routing daemon exports them.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print configuration for a routing daemon
    #[command(before_long_help = "\
Examples:
  tandem announce render bird")]
    Render {
        /// Which
        daemon: Daemon,
        /// Configuration with `node.announce_table`
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Daemon {
    /// BIRD 2
    Bird,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let Command::Render { daemon: Daemon::Bird, config } = &arguments.command;
    let text = std::fs::read_to_string(config)
        .map_err(|error| Failure::new(Exit::Configuration, format!("cannot read {}: {error}", config.display())))?;
    let Some(table) = Outline::of(&text, config, &Host::default()).announce_table else {
        let text =
            format!("{} has no `announce_table` in [node]; for example: announce_table = 7411", config.display());
        return Err(Failure::new(Exit::Configuration, text));
    };
    print(&bird(table))?;
    Ok(Exit::Ok)
}

fn bird(table: u32) -> String {
    format!(
        r#"# The VIPs that Tandem serves on this host, and no others: the agent keeps them in the kernel's table {table}.
ipv4 table tandem4;
ipv6 table tandem6;
protocol kernel tandem4_routes {{ kernel table {table}; learn; ipv4 {{ table tandem4; import all; export none; }}; }}
protocol kernel tandem6_routes {{ kernel table {table}; learn; ipv6 {{ table tandem6; import all; export none; }}; }}

# One for each router; ROUTER is its address, OWN_AS and ROUTER_AS are the AS numbers.
protocol bgp tandem_router {{
    local as OWN_AS;
    neighbor ROUTER as ROUTER_AS;
    ipv4 {{ table tandem4; import none; export all; next hop self; }};
    ipv6 {{ table tandem6; import none; export all; next hop self; }};
}}
"#
    )
}
