//! How long a person waits for the first demo, and for the next one.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{check::Check, command, run::Run};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// A person's patience for a demo that is built already.
const SECOND_LIMIT_MS: f64 = 60_000.0;
/// A person's patience for the first one, on two cores.
const FIRST_LIMIT_MS: f64 = 600_000.0;

/// This checkout was built to run this row, so its demo is a second one.
pub(super) fn second() -> Result<Vec<Check>> {
    Ok(vec![Check::ms_at_most("`cargo xtask demo`, again", Some(demo(Path::new(ROOT))?), SECOND_LIMIT_MS)])
}

/// Everything that the clone's target directory holds is made anew, the linker for eBPF included. What apt has already
/// installed on this machine is not counted: packages take as long as the network does.
pub(super) fn first() -> Result<Vec<Check>> {
    let run = Run::new()?;
    let clone = run.files().join("clone");
    command::run(Command::new("git").args(["clone", "--quiet", "--no-hardlinks", ROOT]).arg(&clone))?;
    let took = demo(&clone);
    fs::remove_dir_all(&clone).with_context(|| format!("cannot remove {}", clone.display()))?;
    Ok(vec![Check::ms_at_most("clone to receipt, apt packages installed", Some(took?), FIRST_LIMIT_MS)])
}

fn demo(root: &Path) -> Result<f64> {
    let mut command = Command::new("cargo");
    command.args(["xtask", "demo"]).current_dir(root).stdin(Stdio::null()).stdout(Stdio::null());
    // A build for this process is not one for the clone.
    command.env_remove("CARGO_TARGET_DIR").env_remove("TANDEM_BIN").env_remove("TANDEM_EBPF_OBJECT");
    let began = Instant::now();
    let status = command.status().context("cannot start `cargo xtask demo`")?;
    if !status.success() {
        bail!("`cargo xtask demo` in {} ended with {status}", root.display());
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}
