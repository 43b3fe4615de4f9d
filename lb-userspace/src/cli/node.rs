//! `tandem node`: takes this member out by hand, and back.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{
    Exit, Failure,
    drain::{Socket, Wait},
};
use crate::control::{
    api::{DrainNode, Node},
    client::ask,
};

/// Take this member out of the cluster by hand, and back
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem node drain --wait        its flows go to the others, one by one; then it is safe to reboot
  tandem node undrain             it owns new flows again

Meanwhile it goes on forwarding, so no connection breaks. A restart of the agent ends the drain; `drain = true` of the member in
the configuration does not.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Its flows go to others, and it owns no new ones
    #[command(before_long_help = "\
Examples:
  tandem node drain --wait")]
    Drain {
        #[command(flatten)]
        socket: Socket,
        #[command(flatten)]
        wait: Wait,
    },
    /// It owns new flows again
    #[command(before_long_help = "\
Examples:
  tandem node undrain")]
    Undrain {
        #[command(flatten)]
        socket: Socket,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Drain { socket, wait } => {
            let node = set(socket, true)?;
            eprintln!("{}: draining, owns no new flows", node.name);
            wait.until_none(&format!("{}: no flow names it, safe to reboot", node.name), || {
                let node: Node = ask(&socket.socket, Method::GET, "/v1/node", None::<&()>)?;
                Ok(node.flows_left)
            })
        }
        Command::Undrain { socket } => {
            let node = set(socket, false)?;
            if node.draining {
                eprintln!("{}: the configuration still drains it (`drain = true` of the member)", node.name);
            } else {
                eprintln!("{}: owns new flows again", node.name);
            }
            Ok(Exit::Ok)
        }
    }
}

fn set(socket: &Socket, drain: bool) -> Result<Node, Failure> {
    Ok(ask(&socket.socket, Method::PUT, "/v1/node/drain", Some(&DrainNode { drain }))?)
}
