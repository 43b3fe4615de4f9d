//! `tandem cluster`: keys. Each member has one of its own; all share a secret.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Exit, Failure, print};
use crate::{
    config::{DEFAULT_STATE_DIRECTORY, Key},
    identity::{KEY_FILE, MemberKey},
};

/// Make keys: one for each member, and one secret for all of them
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem cluster secret /etc/tandem/hash.key       once; copy the file to the other members
  tandem cluster keygen                            on each member; paste what it prints into the configuration
")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a new key for this member, and print its public half
    #[command(before_long_help = "\
Examples:
  tandem cluster keygen                                    writes /var/lib/tandem/member.key
  tandem cluster keygen /var/lib/tandem/next.key           a second key, to replace the first one with
  tandem cluster keygen --force                            replaces the key: see below

The file (PKCS #8, PEM) never leaves this host. The line that is printed goes into this member's [[cluster.member]], in the
configuration of all members; a member whose key is not there is a stranger to them.

To replace a key without a pause: make a second one, list both (`public_key = [\"old\", \"new\"]`), reload all members; move the new file
over the old one, reload this member; take the old public key out, reload all.
")]
    Keygen {
        /// The file to write; default: member.key in the state directory
        file: Option<PathBuf>,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
    /// Print the public half of this member's key
    #[command(before_long_help = "\
Examples:
  tandem cluster public-key                                of /var/lib/tandem/member.key
  tandem cluster public-key /var/lib/tandem/next.key
")]
    PublicKey {
        /// The key's file; default: member.key in the state directory
        file: Option<PathBuf>,
    },
    /// Write a new secret for the cluster's flow hash: 32 hex digits, readable by the owner only
    #[command(before_long_help = "\
Examples:
  tandem cluster secret /etc/tandem/hash.key
  tandem cluster secret --force /etc/tandem/hash.key     replaces the secret: see below

All members need the same file (`hash_key_file` in the configuration). With different ones they place flows
differently; replacing that of a running cluster breaks connections that are not recorded.
")]
    Secret {
        /// The file to write
        file: PathBuf,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Keygen { file, force } => keygen(file.as_deref(), *force),
        Command::PublicKey { file } => {
            let file = file.clone().unwrap_or_else(default_file);
            let key = MemberKey::read(&file).map_err(|error| {
                let argument = format!(" {}", file.display());
                Failure::new(Exit::Failed, format!("{} {error}; {}", file.display(), error.cure(&file, &argument)))
            })?;
            show(&key)
        }
        Command::Secret { file, force } => secret(file, *force),
    }
}

fn keygen(file: Option<&Path>, force: bool) -> Result<Exit, Failure> {
    let path = file.map_or_else(default_file, Path::to_owned);
    if file.is_none() {
        // The agent makes it otherwise; a file that was named must not make directories of a misspelling.
        let made = fs::create_dir_all(DEFAULT_STATE_DIRECTORY);
        made.map_err(|error| Failure::new(Exit::Failed, format!("{DEFAULT_STATE_DIRECTORY}: {error}")))?;
    }
    let key = MemberKey::generate().map_err(no_random_numbers)?;
    key.write(&path, force).map_err(|error| not_written(&path, &error))?;
    eprintln!("wrote this member's key to {}; this goes into its [[cluster.member]], on every member:", path.display());
    show(&key)
}

fn show(key: &MemberKey) -> Result<Exit, Failure> {
    print(&format!("public_key = \"{}\"\n", key.public()))?;
    Ok(Exit::Ok)
}

fn secret(file: &Path, force: bool) -> Result<Exit, Failure> {
    let key = Key::generate().map_err(no_random_numbers)?;
    key.write(file, force).map_err(|error| not_written(file, &error))?;
    eprintln!("wrote a new secret to {}: copy it to every member, readable by root only (mode 600)", file.display());
    Ok(Exit::Ok)
}

fn default_file() -> PathBuf {
    Path::new(DEFAULT_STATE_DIRECTORY).join(KEY_FILE)
}

fn no_random_numbers(error: io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("no random numbers: {error}"))
}

fn not_written(file: &Path, error: &io::Error) -> Failure {
    let name = file.display();
    let text = match error.kind() {
        io::ErrorKind::AlreadyExists => format!("{name} exists and was not changed; --force replaces it"),
        io::ErrorKind::NotFound => format!("{name}: its directory does not exist; nothing was written"),
        _ => format!("writing {name}: {error}"),
    };
    Failure::new(Exit::Failed, text)
}
