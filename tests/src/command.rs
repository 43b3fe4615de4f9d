//! Running the tools the lab is built with, so that a failure names the command and what it said.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The `ip` command.
pub fn ip() -> Command {
    Command::new("ip")
}

/// Runs `command` to its end and returns its stdout; an error carries the command line and its stderr.
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, "")
}

/// Like [`run`], with `input` on the command's stdin.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let line = describe(command);
    let mut child = command
        // Ctrl-C is for the lab, not for the tool that is taking it down.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`{}", package_hint(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("writing to `{line}`"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}{}", output.status, said.trim(), context_of(input));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn package_hint(command: &Command) -> &'static str {
    match command.get_program().to_str() {
        Some("ip") => " (apt-get install iproute2)",
        Some("ethtool") => " (apt-get install ethtool)",
        Some("bpftool") => " (apt-get install bpftool)",
        _ => "",
    }
}

fn context_of(input: &str) -> String {
    if input.is_empty() { String::new() } else { format!("\nits input was:\n{input}") }
}
