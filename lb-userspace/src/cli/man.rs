//! `tandem man`: the help texts as manual pages.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Exit, Failure, print};

/// Print the manual page, or write one for each command
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem man | man -l -
  tandem man /usr/local/share/man/man1       tandem.1, tandem-run.1, and so on
")]
pub(super) struct Arguments {
    /// The directory to write the pages to; it must exist
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let pages = pages().map_err(|error| Failure::new(Exit::Failed, format!("manual pages: {error}")))?;
    match &arguments.directory {
        Some(directory) => write(directory, &pages)?,
        None => pages.first().map_or(Ok(()), |(_, page)| print(page))?,
    }
    Ok(Exit::Ok)
}

fn write(directory: &Path, pages: &[(String, String)]) -> Result<(), Failure> {
    for (name, page) in pages {
        let file = directory.join(name);
        let failed = |error: io::Error| Failure::new(Exit::Failed, format!("{}: {error}", file.display()));
        fs::write(&file, page).map_err(failed)?;
    }
    eprintln!("wrote {} pages to {}", pages.len(), directory.display());
    Ok(())
}

/// The names of the files and what is in them, that of `tandem` itself first.
pub(super) fn pages() -> io::Result<Vec<(String, String)>> {
    fn walk(command: &clap::Command, name: &str, pages: &mut Vec<(String, String)>) -> io::Result<()> {
        // A page is called what is typed, with a dash: `man tandem-config-check`.
        let mut page = Vec::new();
        Man::new(command.clone())
            .title(name)
            .source(concat!("tandem ", env!("CARGO_PKG_VERSION")))
            .render(&mut page)?;
        let help = command.get_before_long_help().map(ToString::to_string).unwrap_or_default();
        pages.push((format!("{name}.1"), String::from_utf8_lossy(&page).into_owned() + &examples(&help)));
        let is_own = |command: &&clap::Command| command.get_name() != "help" && !command.is_hide_set();
        command
            .get_subcommands()
            .filter(is_own)
            .try_for_each(|inner| walk(inner, &format!("{name}-{}", inner.get_name()), pages))
    }
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    walk(&command, "tandem", &mut pages)?;
    Ok(pages)
}

/// The examples that help begins with, and what is said after them: the generator of pages leaves them out.
fn examples(help: &str) -> String {
    let Some(examples) = help.strip_prefix("Examples:\n") else { return String::new() };
    let line = |line: &str| {
        let text = line.replace('\\', "\\e").replace('-', "\\-");
        // A line that begins with one of these is a request to the formatter.
        let guard = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
        format!("{guard}{text}\n")
    };
    format!(".SH EXAMPLES\n.nf\n{}.fi\n", examples.trim_end().lines().map(line).collect::<String>())
}
