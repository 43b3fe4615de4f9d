//! `tandem decap`: the servers' side.

use std::net::Ipv4Addr;

use clap::Args;

use super::{
    Exit, Failure,
    run::{XdpMode, start_log},
};
use crate::decap::{self, Prefix};

/// On a server without a tunnel device: take the balancers' outer header off
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem decap --interface eth0 --from 10.0.1.0/24 --vip 203.0.113.10
  tandem decap --interface eth0 --from 10.0.1.11 10.0.1.12 10.0.1.13 --vip 203.0.113.10 203.0.113.11

The server needs the VIP on its loopback interface (`ip addr add 203.0.113.10/32 dev lo`). Takes the outer header off IP-in-IP packets that come
from the balancers and hold a packet for a VIP; everything else passes untouched.
In the foreground until SIGTERM or SIGINT; prints `ready` once it is attached.
")]
pub(super) struct Arguments {
    /// The interface that the balancers' packets come in by
    #[arg(long, value_name = "IF")]
    interface: String,
    /// Where the balancers are
    #[arg(long, value_name = "PREFIX", required = true, num_args = 1..)]
    from: Vec<Prefix>,
    /// The VIPs of this server
    #[arg(long, value_name = "ADDR", required = true, num_args = 1..)]
    vip: Vec<Ipv4Addr>,
    /// Who runs the XDP program
    #[arg(long, value_enum, default_value_t = XdpMode::Native)]
    xdp_mode: XdpMode,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let options = decap::Options {
        interface: arguments.interface.clone(),
        from: arguments.from.clone(),
        vips: arguments.vip.clone(),
        mode: arguments.xdp_mode.into(),
    };
    start_log();
    decap::run(&options).map_err(|error| Failure::new(Exit::Failed, format!("{error:#}")))?;
    Ok(Exit::Ok)
}
