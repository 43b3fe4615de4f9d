//! Builds a program in release mode and becomes it.
//!
//! Becoming it rather than waiting for it: Ctrl-C, SIGTERM and the exit code are then the program's own, and nothing
//! can be left behind by a parent that died first.
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use xtask::{ebpf, toolchain::Toolchain};

use crate::{setup, step};

/// The program of `tests/sim`.
pub(crate) const SIMULATOR: &str = "tandem-sim";

/// Builds the agent and balances on `interfaces`.
pub(crate) fn agent(root: &Path, interfaces: Vec<OsString>, config: PathBuf, args: Vec<OsString>) -> Result<ExitCode> {
    setup::toolchain(root)?;
    step::heading("Building tandem");
    step::run(step::cargo(root, "build").args(["--release", "--package", "lb-userspace", "--bins"]))?;
    let mut tandem = as_root(&step::release_program("tandem")?);
    tandem.arg("run").arg("--config").arg(config);
    for interface in interfaces {
        tandem.arg("--interface").arg(interface);
    }
    become_program(tandem.args(args))
}

/// Builds the agent and the programs of the lab, and runs the one called `name` as root.
pub(crate) fn lab_program(root: &Path, name: &str, args: Vec<OsString>) -> Result<ExitCode> {
    setup::everything(root)?;
    become_program(as_root(&built(root, name)?).args(args))
}

/// Builds the benchmark and its harness, and measures as root.
pub(crate) fn bench(root: &Path, args: Vec<OsString>) -> Result<ExitCode> {
    let toolchain = setup::everything(root)?;
    build_lab(root)?;
    become_program(bench_program(root, &toolchain)?.args(args))
}

/// Builds the simulator, which takes no root and nothing but the toolchain, and runs it.
pub(crate) fn simulator(root: &Path, args: Vec<OsString>) -> Result<ExitCode> {
    setup::toolchain(root)?;
    build_simulator(root)?;
    become_program(Command::new(step::release_program(SIMULATOR)?).args(args))
}

/// Builds the simulator alone.
pub(crate) fn build_simulator(root: &Path) -> Result<()> {
    step::heading("Building the simulator");
    step::run(step::cargo(root, "build").args(["--release", "--package", "tests", "--bin", SIMULATOR]))?;
    Ok(())
}

/// Builds the harness, and names it to the benchmark, which is built already.
pub(crate) fn bench_program(root: &Path, toolchain: &Toolchain) -> Result<Command> {
    step::heading("Building the benchmark's harness");
    let out_dir = step::target_dir()?.join("bench");
    fs::create_dir_all(&out_dir).with_context(|| format!("cannot make {}", out_dir.display()))?;
    let harness = ebpf::build(root, &out_dir, ebpf::BENCH, toolchain, &[], &mut |line| eprintln!("{line}"))?;
    let mut bench = as_root(&step::release_program("tandem-bench")?);
    bench.arg("--harness").arg(harness);
    Ok(bench)
}

/// Prints the rows that the program called `name` holds, which takes no root and nothing but the toolchain.
pub(crate) fn list_rows(root: &Path, name: &str) -> Result<ExitCode> {
    setup::toolchain(root)?;
    become_program(Command::new(built(root, name)?).arg("--list"))
}

fn built(root: &Path, name: &str) -> Result<PathBuf> {
    build_lab(root)?;
    let program = step::release_program(name)?;
    if !program.is_file() {
        bail!("the package `tests` has no program {name} in this checkout");
    }
    Ok(program)
}

/// Builds the agent and every program of the lab.
pub(crate) fn build_lab(root: &Path) -> Result<()> {
    step::heading("Building tandem and its lab");
    step::run(step::cargo(root, "build").args([
        "--release",
        "--package",
        "lb-userspace",
        "--package",
        "tests",
        "--bins",
    ]))?;
    Ok(())
}

/// The program, started through sudo unless this is root already.
fn as_root(program: &Path) -> Command {
    if step::is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("-E").arg(program);
    sudo
}

fn become_program(command: &mut Command) -> Result<ExitCode> {
    step::heading(&step::line(command));
    // Returns only if it fails.
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}
