//! What must hold before a change is merged. Stops at the first step that does not.
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};
use xtask::ebpf;
use xtask::toolchain::Toolchain;

use crate::{fuzz, launch, setup, step, tiers};

/// Long enough to run every seed and to tell that the engine works.
const FUZZ_SECONDS: u64 = 20;

/// Seeds of small clusters: one or two minutes on two cores.
const SIMULATED: &str = "2000";

/// Runs every step, each with a heading and its time.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let start = Instant::now();
    let toolchain = setup::everything_and_linter(root)?;
    let target_dir = step::target_dir()?.join("ebpf-lints");

    check("Formatting", step::cargo(root, "fmt").args(["--all", "--check"]))?;
    check("Lints, for the host", &mut host_lints(root))?;
    check("Lints, for the bpf target", &mut bpf_lints(root, &toolchain, &target_dir))?;
    check("Documentation", &mut documentation(root))?;
    if tiers::run(root, None, &[])? != ExitCode::SUCCESS {
        bail!("tests failed");
    }
    launch::build_simulator(root)?;
    let mut simulator = Command::new(step::release_program(launch::SIMULATOR)?);
    check("Simulated clusters in which everything fails", simulator.args(["--seeds", SIMULATED]))?;
    let mut mutants = Command::new(step::release_program(launch::SIMULATOR)?);
    check("Planted faults, which the simulator must find", mutants.arg("--mutants"))?;
    if fuzz::is_possible() {
        fuzz::run(root, fuzz::What::Packets, FUZZ_SECONDS)?;
    } else {
        step::heading("A short search by the fuzzer: skipped, it needs a C++ compiler");
    }
    if step::is_root() {
        launch::build_lab(root)?;
        check("A short demo", &mut short_demo()?)?;
        // Its figures mean nothing here; it fails if a packet does not take the path that it measures.
        let mut bench = launch::bench_program(root, &toolchain)?;
        check("A short benchmark", bench.args(["--quick", "--rounds", "1"]))?;
    } else {
        step::heading("A short demo, a short benchmark: skipped, they need root");
    }

    let minutes = start.elapsed().as_secs() / 60;
    step::heading(&format!("Everything holds ({minutes} min {} s)", start.elapsed().as_secs() % 60));
    Ok(ExitCode::SUCCESS)
}

fn check(what: &str, command: &mut Command) -> Result<()> {
    step::heading(what);
    let took = step::run(command)?;
    eprintln!("passed in {:.1} s", took.as_secs_f64());
    Ok(())
}

fn host_lints(root: &Path) -> Command {
    let mut cargo = step::cargo(root, "clippy");
    cargo.args(["--workspace", "--all-targets", "--", "-D", "warnings"]);
    cargo
}

/// Clippy of the release that compiles the eBPF programs, started as cargo-clippy does it: that one would take the
/// host toolchain's driver, which knows nothing of the bpf target's `core`.
fn bpf_lints(root: &Path, toolchain: &Toolchain, target_dir: &Path) -> Command {
    let mut cargo = ebpf::cargo(root, toolchain, "check");
    cargo
        .args(["--package", "lb-ebpf", "--package", "lb-common", "--target-dir"])
        .arg(target_dir)
        .env("RUSTC_WORKSPACE_WRAPPER", toolchain.compiler.sibling("clippy-driver"))
        .env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    cargo
}

fn documentation(root: &Path) -> Command {
    let mut cargo = step::cargo(root, "doc");
    cargo.args(["--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings");
    cargo
}

fn short_demo() -> Result<Command> {
    let mut demo = Command::new(step::release_program("tandem-demo")?);
    demo.args(["--connections", "60", "--seconds", "8"]);
    Ok(demo)
}
