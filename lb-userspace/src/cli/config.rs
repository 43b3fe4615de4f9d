//! `tandem config`: the configuration's file, before an agent reads it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Exit, Failure, place::Output, print};
use crate::{
    config::{self, Config, ConfigError, Example, Host, OwnMember},
    io::netlink::Netlink,
};

mod change;
mod import;

/// Write, check, show and change the configuration
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem config init > tandem.toml       a file to begin with, for this host
  tandem config check tandem.toml        everything that is wrong with it
  tandem config show                     every setting that is in effect, defaults among them
  tandem config diff                     what `apply` would change
  tandem config apply --confirm 60s      at all members; back by itself unless `tandem config confirm` follows
  tandem config import ipvsadm rules     what ran on IPVS before, as a configuration
")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a commented file to begin with: a cluster whose first member is this host
    #[command(before_long_help = "\
Examples:
  tandem config init > /etc/tandem/tandem.toml
  tandem config init --interface eth1 --address 10.0.1.11 > tandem.toml

Changes nothing. `tandem config check` accepts what is printed as soon as there is the secret that it names, which `tandem cluster
secret` makes.
")]
    Init {
        /// Where packets for VIPs come in [default: the interface of the default route]
        #[arg(long, value_name = "IF")]
        interface: Option<String>,
        /// This member's address [default: the one that packets to the default route come from]
        #[arg(long, value_name = "ADDR")]
        address: Option<IpAddr>,
        /// What this member is called [default: the host name]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Say everything that is wrong with a file, each with its line
    #[command(before_long_help = "\
Examples:
  tandem config check                            /etc/tandem/tandem.toml, as `tandem run` reads it here
  tandem config check --elsewhere *.toml         what the files say by themselves: for a repository, an editor

Exit code 0: valid, 4: something is wrong with one of them. Changes nothing.
")]
    Check {
        /// The files
        #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
        files: Vec<PathBuf>,
        /// Leave out what depends on the host: interfaces, key files, which member it is
        #[arg(long, conflicts_with_all = ["node", "interface", "state_dir"])]
        elsewhere: bool,
        #[command(flatten)]
        here: Here,
    },
    /// Print every setting that is in effect on this host, as a file that means the same
    #[command(before_long_help = "\
Examples:
  tandem config show
  tandem config show tandem.toml --node lb2
  tandem config show -o json | jq .cluster.timeouts

Of the file, not of an agent, which may not have been told yet. Secrets are not shown, only where they are.
")]
    Show {
        /// The file
        #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
        file: PathBuf,
        #[command(flatten)]
        here: Here,
        /// What to print: TOML, or JSON with the same keys
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    Diff(change::Diff),
    Apply(change::ApplyArguments),
    Confirm(change::Confirm),
    Rollback(change::Rollback),
    Import(import::Import),
    /// Print a JSON schema of the file, for editors
    #[command(before_long_help = "\
Examples:
  tandem config schema > /usr/share/tandem/tandem.schema.json

Editors that know TOML (taplo, Even Better TOML) take it from a first line `#:schema /usr/share/tandem/tandem.schema.json`.
")]
    Schema,
}

/// What the command line of `tandem run` may say, too.
#[derive(Clone, Debug, Args)]
struct Here {
    /// Which member this is; default: node.name of the file, else the host name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// In the place of node.interfaces; may be given several times
    #[arg(long, value_name = "IF")]
    interface: Vec<String>,
    /// Where the member's key is
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_STATE_DIRECTORY)]
    state_dir: PathBuf,
}

impl Here {
    fn host(&self) -> Host<'_> {
        Host { node: self.node.as_deref(), interfaces: &self.interface, state: &self.state_dir, ..Host::default() }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Init { interface, address, node } => init(interface.as_deref(), *address, node.as_deref()),
        Command::Check { files, elsewhere, here } => check(files, (!elsewhere).then_some(here)),
        Command::Show { file, here, output } => show(file, here, *output),
        Command::Diff(arguments) => change::diff(arguments),
        Command::Apply(arguments) => change::apply(arguments),
        Command::Confirm(arguments) => change::confirm(arguments),
        Command::Rollback(arguments) => change::rollback(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Schema => {
            print(&format!("{:#}\n", Config::schema()))?;
            Ok(Exit::Ok)
        }
    }
}

/// All files are read; the exit code tells of the worst.
fn check(files: &[PathBuf], here: Option<&Here>) -> Result<Exit, Failure> {
    let mut exit = Exit::Ok;
    for file in files {
        let checked = read(file).and_then(|text| match here {
            Some(here) => Config::parse(&text, file, &here.host()).map(|_valid| ()),
            None => Config::check_text(&text, file),
        });
        match checked {
            Ok(()) => eprintln!("{} is valid", file.display()),
            Err(error) => {
                Failure::from(error).report();
                exit = Exit::Configuration;
            }
        }
    }
    Ok(exit)
}

fn show(file: &Path, here: &Here, output: Output) -> Result<Exit, Failure> {
    let effective = Config::effective(&read(file)?, file, &here.host())?;
    output.print(&effective.to_json(), |_| effective.to_toml())?;
    Ok(Exit::Ok)
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let text = if file == Path::new("-") { io::read_to_string(io::stdin()) } else { std::fs::read_to_string(file) };
    text.map_err(|error| ConfigError::Unreadable { path: file.to_owned(), error: error.to_string() })
}

fn init(interface: Option<&str>, address: Option<IpAddr>, node: Option<&str>) -> Result<Exit, Failure> {
    print(&example_of_this_host(interface, address, node)?)?;
    eprintln!("`tandem cluster secret /etc/tandem/hash.key` makes the secret that the file names");
    Ok(Exit::Ok)
}

/// A file to begin with, for what this host says of itself and is not said here.
fn example_of_this_host(
    interface: Option<&str>,
    address: Option<IpAddr>,
    node: Option<&str>,
) -> Result<String, Failure> {
    let name = node.map_or_else(|| (Host::default().host_name)(), str::to_owned);
    let (interface, address) = match (interface, address) {
        (Some(interface), Some(address)) => (interface.to_owned(), address),
        _ => {
            let (found, source) = way_out().ok_or_else(|| {
                let text = "this host has no default route to tell by which interface and address it is to be reached";
                Failure::new(Exit::Failed, format!("{text}: say both, with --interface and --address"))
            })?;
            (interface.map_or(found, str::to_owned), address.unwrap_or(source))
        }
    };
    Ok(Example::of(&OwnMember { name: &name, address, interface: &interface }))
}

/// The interface of the default route, and the address that packets leave it from.
fn way_out() -> Option<(String, IpAddr)> {
    let mut netlink = Netlink::open().ok()?;
    let route = [true, false].into_iter().find_map(|is_v4| netlink.default_route(is_v4).ok()?)?;
    let interface = netlink.link_by_index(route.ifindex).ok()??.name;
    // Connecting a datagram socket sends nothing, and chooses the source.
    let any: IpAddr = if route.via.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((route.via, 9)).ok()?;
    Some((interface, socket.local_addr().ok()?.ip()))
}
