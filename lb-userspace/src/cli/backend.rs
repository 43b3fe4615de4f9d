//! `tandem backend`: takes a server out by hand, and back.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{
    Exit, Failure,
    drain::{Socket, Wait},
    table::Table,
};
use crate::control::{
    api::{Backend, Backends, DrainBackend, Matched},
    client::ask,
};

/// Take a backend out of service by hand, and back
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem backend drain web-1                    no new flows to web-1, at all members; those it has stay
  tandem backend drain web-1 --wait             until none are left
  tandem backend drain web-1 --service api      only of one service
  tandem backend undrain web-1                  new flows again
  tandem backend list                           what the file, operators and checks say of each

The drain is kept as long as one member's agent knows of it, beside what the configuration says; to keep it for good, set
`drain = true` in the file.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// No new flows to it; those it has stay
    #[command(before_long_help = "\
Examples:
  tandem backend drain web-1
  tandem backend drain web-1 --wait --timeout 10m")]
    Drain {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        wait: Wait,
    },
    /// New flows to it again
    #[command(before_long_help = "\
Examples:
  tandem backend undrain web-1")]
    Undrain {
        #[command(flatten)]
        which: Which,
    },
    /// What the file, operators and checks say of each
    #[command(before_long_help = "\
Examples:
  tandem backend list
  tandem backend list -o json")]
    List {
        #[command(flatten)]
        socket: Socket,
        /// What to print
        #[arg(short, long, value_enum, default_value_t = super::place::Output::Table)]
        output: super::place::Output,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// The backend's name
    name: String,
    /// Only as a backend of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Drain { which, wait } => {
            set(which, true)?;
            wait.until_none(&format!("{}: no flow is left", which.name), || {
                let of_it = list(&which.socket)?.into_iter().filter(|backend| which.is(backend));
                Ok(Some(of_it.map(|backend| backend.flows).sum()))
            })
        }
        Command::Undrain { which } => {
            set(which, false)?;
            let by_file = list(&which.socket)?.into_iter().any(|backend| which.is(&backend) && backend.drained_by_file);
            if by_file {
                eprintln!("{}: the configuration still drains it (`drain = true`)", which.name);
            }
            Ok(Exit::Ok)
        }
        Command::List { socket, output } => {
            let backends = list(socket)?;
            output.print(&backends, |backends| table(backends))?;
            Ok(Exit::Ok)
        }
    }
}

impl Which {
    fn is(&self, backend: &Backend) -> bool {
        backend.name == self.name && self.service.as_ref().is_none_or(|service| backend.service == *service)
    }
}

fn set(which: &Which, drain: bool) -> Result<(), Failure> {
    let order = DrainBackend { backend: which.name.clone(), service: which.service.clone(), drain };
    let Matched { matched } = ask(&which.socket.socket, Method::PUT, "/v1/backends/drain", Some(&order))?;
    let (name, s) = (&which.name, if matched == 1 { "" } else { "s" });
    let what = if drain { "drained: no new flows" } else { "takes new flows again" };
    eprintln!("{name}: {what}, at {matched} VIP{s}");
    Ok(())
}

fn list(socket: &Socket) -> Result<Vec<Backend>, Failure> {
    let Backends { backends } = ask(&socket.socket, Method::GET, "/v1/backends", None::<&()>)?;
    Ok(backends)
}

fn table(backends: &[Backend]) -> String {
    let mut table = Table::new(&["SERVICE", "VIP", "BACKEND", "ADDRESS", "STATE", "CHECKS HERE", "FLOWS"], &[6]);
    for backend in backends {
        let state = match (backend.down, backend.drained, backend.drained_by_file) {
            (true, ..) => "down",
            (_, true, _) => "drained by hand",
            (_, _, true) => "drained by the file",
            (false, false, false) => "serving",
        };
        let answers = backend.answers.map_or("-", |answers| if answers { "answers" } else { "fails" });
        table.row([
            backend.service.clone(),
            backend.vip.clone(),
            backend.name.clone(),
            backend.address.to_string(),
            state.to_owned(),
            answers.to_owned(),
            backend.flows.to_string(),
        ]);
    }
    table.render(true)
}
