//! Installs what is missing: on Debian as root. Anywhere else it says in one line which command does it.
//!
//! What is there is found by looking at files, so a second run costs a fraction of a second and no network.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::toolchain::{self, Compiler, LINKER_VERSION, Missing, Toolchain};

use crate::step;

/// Debian's rustc that comes with `core` for the bpf target.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// Clippy of the same release, which lints the eBPF programs for their own target.
const LINTER_PACKAGE: &str = "rust-web-clippy";

/// Programs that the demo and the privileged tests start, and the packages that hold them.
const LAB_PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("ethtool", "ethtool"), ("nft", "nftables"), ("bpftool", "bpftool")];

/// Sets up what building takes.
pub(crate) fn toolchain(root: &Path) -> Result<Toolchain> {
    packages(Vec::new())?;
    fitting_linker(root)
}

/// Sets up what building takes, and what the demo and the tests use.
pub(crate) fn everything(root: &Path) -> Result<Toolchain> {
    packages(missing_lab_packages())?;
    fitting_linker(root)
}

/// Sets up what CI takes: everything, and the linter for the bpf target.
pub(crate) fn everything_and_linter(root: &Path) -> Result<Toolchain> {
    let mut wanted = missing_lab_packages();
    match toolchain::compilers().first() {
        // With rustup the linter is a component, not a package.
        Some(compiler) if !compiler.is_packaged() => {}
        Some(compiler) if compiler.sibling("clippy-driver").is_file() => {}
        _ => wanted.push(LINTER_PACKAGE),
    }
    packages(wanted)?;
    let toolchain = fitting_linker(root)?;
    if !toolchain.compiler.sibling("clippy-driver").is_file() {
        bail!("there is no clippy for {}: run `rustup component add clippy --toolchain nightly`", toolchain.compiler);
    }
    Ok(toolchain)
}

fn missing_lab_packages() -> Vec<&'static str> {
    let missing = LAB_PROGRAMS.iter().filter(|(program, _)| step::in_path(program).is_none());
    missing.map(|(_, package)| *package).collect()
}

/// Installs `wanted`, and the compiler if there is none.
fn packages(mut wanted: Vec<&str>) -> Result<()> {
    let compiler_missing = toolchain::compilers().is_empty();
    if compiler_missing && !is_debian() {
        bail!("{}: run `rustup toolchain install nightly --component rust-src`", Missing::Compiler);
    }
    if compiler_missing {
        wanted.extend(COMPILER_PACKAGES);
    }
    if wanted.is_empty() {
        return Ok(());
    }
    require_apt(&wanted)?;
    step::heading("Updating apt's package lists");
    step::run(Command::new("apt-get").args(["update", "--quiet", "--quiet"]))?;
    if compiler_missing && !is_known_to_apt(COMPILER_PACKAGES[0]) {
        bail!(
            "this Debian has no package {}: run `rustup toolchain install nightly --component rust-src`",
            COMPILER_PACKAGES[0]
        );
    }
    apt_install(&wanted)
}

/// Finds a pair of compiler and linker, building the linker if there is none for the compiler.
fn fitting_linker(root: &Path) -> Result<Toolchain> {
    let compiler = match toolchain::find(root) {
        Ok(toolchain) => {
            eprintln!("eBPF toolchain: {toolchain}");
            return Ok(toolchain);
        }
        Err(Missing::Compiler) => bail!("{}", Missing::Compiler),
        Err(missing @ (Missing::Linker(_) | Missing::Mismatch(..))) => {
            eprintln!("{missing}");
            let (Missing::Linker(compiler) | Missing::Mismatch(compiler, _)) = missing else { unreachable!() };
            compiler
        }
    };
    install_linker(root, &compiler)?;
    let toolchain = toolchain::find(root).context("the linker that was just built is not usable")?;
    eprintln!("eBPF toolchain: {toolchain}");
    Ok(toolchain)
}

/// Builds bpf-linker against Debian's LLVM of the compiler's version.
fn install_linker(root: &Path, compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let tools = toolchain::tools_dir(root);
    let mut cargo = step::cargo(root, "install");
    cargo
        .args(["bpf-linker", "--locked", "--force", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&tools)
        // Without it the build looks in /usr/lib64 and does not find LLVM.
        .env("LLVM_PREFIX", &prefix);
    if !(is_debian() && step::is_root()) {
        let by_hand = step::line(&cargo).split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        bail!(
            "no bpf-linker of LLVM {llvm}: run `LLVM_PREFIX={prefix} cargo {by_hand}` with LLVM {llvm} installed there"
        );
    }
    step::heading("Updating apt's package lists");
    step::run(Command::new("apt-get").args(["update", "--quiet", "--quiet"]))?;
    let (headers, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    apt_install(&[&headers, &polly, "zlib1g-dev", "libzstd-dev", "g++"])?;
    step::heading(&format!("Building bpf-linker {LINKER_VERSION} for LLVM {llvm} into {}", tools.display()));
    let took = step::run(&mut cargo)?;
    eprintln!("built in {} s", took.as_secs());
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    step::heading(&format!("Installing with apt-get: {}", packages.join(" ")));
    // Never at the price of a package that is there, which apt would otherwise remove on a conflict.
    let options = ["install", "--yes", "--no-remove", "--no-install-recommends", "--quiet", "--quiet"];
    let mut apt = Command::new("apt-get");
    apt.args(options).args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]).args(packages);
    step::run(apt.env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

fn require_apt(packages: &[&str]) -> Result<()> {
    if is_debian() && step::is_root() {
        return Ok(());
    }
    let packages = packages.join(" ");
    if step::in_path("apt-get").is_none() {
        bail!("install with this system's package manager what Debian calls: {packages}");
    }
    bail!("missing: run `sudo apt-get update && sudo apt-get install --yes --no-install-recommends {packages}`");
}

fn is_known_to_apt(package: &str) -> bool {
    let shown = Command::new("apt-cache").args(["show", package]).output();
    shown.is_ok_and(|shown| shown.status.success())
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && step::in_path("apt-get").is_some()
}
