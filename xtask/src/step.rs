//! One step of a task: a heading, a command, the time it took.
use std::env;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Says on stderr what happens next.
pub(crate) fn heading(text: &str) {
    eprintln!("\n==> {text}");
}

/// The cargo that this was started by, in the workspace.
pub(crate) fn cargo(root: &Path, subcommand: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).arg(subcommand);
    cargo
}

/// Runs a command to its end and returns the time it took; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(start.elapsed())
}

/// Runs a command, passes its stdout on as it comes, and returns that together with whether the command succeeded.
pub(crate) fn run_and_read(command: &mut Command) -> Result<(bool, String)> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| cannot_start(command))?;
    let mut stdout = child.stdout.take().context("the child has no stdout")?;
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        // Chunks rather than lines: the name of a running test comes without its end of line.
        let length = stdout.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        said.extend_from_slice(&chunk[..length]);
        let mut out = std::io::stdout().lock();
        out.write_all(&chunk[..length])?;
        out.flush()?;
    }
    let status = child.wait()?;
    Ok((status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// The target directory, wherever cargo was told to put it: this program lies in it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let this = env::current_exe()?;
    Ok(this.ancestors().nth(2).context("this program does not lie in a target directory")?.to_path_buf())
}

/// The file of a program of the workspace that was built in release mode.
pub(crate) fn release_program(name: &str) -> Result<PathBuf> {
    Ok(target_dir()?.join("release").join(name))
}

/// The executable called `name`, looked for in `PATH` and in the system's folders, which users' `PATH` often lacks.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// True if this process has root's effective user id.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // "Uid:", then the real, the effective, the saved and the file system's id.
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", command.get_program().to_string_lossy())
}
