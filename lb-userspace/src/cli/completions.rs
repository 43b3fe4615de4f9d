//! `tandem completions`: what shells need to know to complete a command line.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Exit, Failure, print};

/// Print a script that makes a shell complete this command
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem completions bash > /etc/bash_completion.d/tandem
  tandem completions zsh > /usr/local/share/zsh/site-functions/_tandem
  tandem completions fish > ~/.config/fish/completions/tandem.fish
")]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    print(&script(arguments.shell))?;
    Ok(Exit::Ok)
}

pub(super) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tandem", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
