//! `tandem config import`: what ran on IPVS before.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{example_of_this_host, read};
use crate::{
    cli::{Exit, Failure, print},
    config::{Config, Imported, LeftOut, read_ipvsadm, read_keepalived},
};

/// Print a configuration made of keepalived's or of what `ipvsadm -Sn` saves
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem config import keepalived /etc/keepalived/keepalived.conf > tandem.toml
  ipvsadm -Sn | tandem config import ipvsadm - > tandem.toml
  tandem config import keepalived keepalived.conf --services >> /etc/tandem/tandem.toml

What has no counterpart is named on stderr, with its line. Exit code 0: all was taken over, 1: something was not. Changes nothing.
")]
pub(super) struct Import {
    /// Whose file it is
    #[arg(value_enum)]
    format: Format,
    /// The file; - for stdin
    file: PathBuf,
    /// Only the services, for a file that has the rest
    #[arg(long)]
    services: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A keepalived.conf: its virtual servers and checks
    Keepalived,
    /// What `ipvsadm -Sn` prints
    Ipvsadm,
}

pub(super) fn run(arguments: &Import) -> Result<Exit, Failure> {
    let text = read(&arguments.file)?;
    let imported = match arguments.format {
        Format::Keepalived => read_keepalived(&text),
        Format::Ipvsadm => read_ipvsadm(&text),
    };
    let (services, Imported { left_out, .. }) = (imported.to_toml(), &imported);
    let head = if arguments.services { String::new() } else { head()? };
    let whole = format!("{head}{services}");
    print(&whole)?;
    let path = arguments.file.display();
    for LeftOut { line, what } in left_out {
        match line {
            0 => eprintln!("{path}: {what}"),
            line => eprintln!("{path}:{line}: {what}"),
        }
    }
    if !arguments.services
        && let Err(error) = Config::check_text(&whole, "what was printed".as_ref())
    {
        eprintln!("{error}");
        return Ok(Exit::Failed);
    }
    Ok(if left_out.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// The example for this host, as far as the services.
fn head() -> Result<String, Failure> {
    let example = example_of_this_host(None, None, None)?;
    Ok(example.split_once("\n[[service]]").map_or(example.clone(), |(head, _)| head.to_owned() + "\n"))
}
