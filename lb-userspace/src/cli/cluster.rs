//! `tandem cluster`: what belongs to all members.

use std::{io, path::PathBuf};

use clap::{Args, Subcommand};

use super::{Exit, Failure};
use crate::config::Key;

/// Make what the members share
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem cluster keygen /etc/tandem/hash.key       then copy the file to the other members
")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a new cluster key: 32 hex digits, readable by the owner only
    #[command(before_long_help = "\
Examples:
  tandem cluster keygen /etc/tandem/hash.key
  tandem cluster keygen --force /etc/tandem/hash.key     replaces the key: see below

All members need the same file (`hash_key_file` in the configuration). With different keys they place flows
differently; replacing the key of a running cluster breaks connections that are not recorded.
")]
    Keygen {
        /// The file to write
        file: PathBuf,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let Command::Keygen { file, force } = &arguments.command;
    let name = file.display();
    let key = Key::generate().map_err(|error| Failure::new(Exit::Failed, format!("no random numbers: {error}")))?;
    key.write(file, *force).map_err(|error| {
        let text = match error.kind() {
            io::ErrorKind::AlreadyExists => format!("{name} exists and was not changed; --force replaces it"),
            io::ErrorKind::NotFound => format!("{name}: its directory does not exist; nothing was written"),
            _ => format!("writing {name}: {error}"),
        };
        Failure::new(Exit::Failed, text)
    })?;
    eprintln!("wrote a new key to {name}: copy it to every member, readable by root only (mode 600)");
    Ok(Exit::Ok)
}
