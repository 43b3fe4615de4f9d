//! Installs what is missing: on Debian as root. Anywhere else it says in one line which command does it.
//!
//! What is there is found by looking at files, so a second run costs a fraction of a second and no network.
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::toolchain::{self, Compiler, LINKER_VERSION, Missing, Toolchain};

use crate::step;

/// Debian's rustc that comes with `core` for the bpf target.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// Clippy of the same release, which lints the eBPF programs for their own target.
const LINTER_PACKAGE: &str = "rust-web-clippy";

/// The other way to a compiler, outside Debian.
const NIGHTLY: &str = "rustup toolchain install nightly --component rust-src";

/// What packs packages.
const CARGO_DEB_VERSION: &str = "3.8.0";

/// Programs that the demo and the privileged tests start, and the packages that hold them.
const LAB_PROGRAMS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("bpftool", "bpftool"),
    ("ping", "iputils-ping"),
    ("bird", "bird2"),
    ("python3", "python3"),
    ("openssl", "openssl"),
    ("curl", "curl"),
];

/// Sets up what building takes.
pub(crate) fn toolchain(root: &Path) -> Result<Toolchain> {
    install(root, Vec::new())
}

/// Sets up what building takes, and what the demo and the privileged tests use.
pub(crate) fn everything(root: &Path) -> Result<Toolchain> {
    install(root, missing_lab_packages())
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
    let toolchain = install(root, wanted)?;
    if !toolchain.compiler.sibling("clippy-driver").is_file() {
        bail!("there is no clippy for {}: run `rustup component add clippy --toolchain nightly`", toolchain.compiler);
    }
    Ok(toolchain)
}

fn missing_lab_packages() -> Vec<&'static str> {
    let missing = LAB_PROGRAMS.iter().filter(|(program, _)| step::in_path(program).is_none());
    missing.map(|(_, package)| *package).collect()
}

/// Installs the packages `wanted`, the compiler if there is none, and a linker if there is none that fits.
fn install(root: &Path, mut wanted: Vec<&str>) -> Result<Toolchain> {
    let compiler_missing = toolchain::compilers().is_empty();
    if compiler_missing && !is_debian() {
        bail!("{}: run `{NIGHTLY}`", Missing::Compiler);
    }
    if compiler_missing {
        wanted.extend(COMPILER_PACKAGES);
    }
    let mut apt = Apt::default();
    if !wanted.is_empty() {
        require_apt(&wanted)?;
        apt.update()?;
        if compiler_missing && !apt.knows(COMPILER_PACKAGES[0]) {
            bail!("this Debian has no package {}: run `{NIGHTLY}`", COMPILER_PACKAGES[0]);
        }
        apt.install(&wanted)?;
    }
    let toolchain = match toolchain::find(root) {
        Err(missing @ Missing::Compiler) => return Err(missing.into()),
        Err(missing @ (Missing::Linker(_) | Missing::Mismatch(..))) => {
            install_linker(root, &missing, &mut apt)?;
            toolchain::find(root).context("the linker that was just built is not usable")?
        }
        Ok(toolchain) => toolchain,
    };
    eprintln!("eBPF toolchain: {toolchain}");
    Ok(toolchain)
}

/// Builds bpf-linker against Debian's LLVM of the compiler's version.
fn install_linker(root: &Path, missing: &Missing, apt: &mut Apt) -> Result<()> {
    let (Missing::Linker(Compiler { llvm, .. }) | Missing::Mismatch(Compiler { llvm, .. }, _)) = missing else {
        bail!("{missing}");
    };
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let tools = toolchain::tools_dir(root);
    let options = format!("--locked --force --version {LINKER_VERSION} --no-default-features --features llvm-{llvm}");
    let libraries = format!("llvm-{llvm}-dev libpolly-{llvm}-dev zlib1g-dev libzstd-dev g++");
    if !(is_debian() && step::is_root()) {
        let build = format!("LLVM_PREFIX={prefix} cargo install bpf-linker {options} --root {}", tools.display());
        if is_debian() && !Path::new(&prefix).join("include").is_dir() {
            bail!("{missing}: run `{} && {build}`", sudo_apt(&libraries));
        }
        bail!("{missing}: run `{build}`");
    }
    apt.update()?;
    apt.install(&libraries.split(' ').collect::<Vec<_>>())?;

    step::heading(&format!("{missing}: building {LINKER_VERSION} into {}", tools.display()));
    let mut cargo = step::cargo(root, "install");
    cargo.arg("bpf-linker").args(options.split(' ')).arg("--root").arg(&tools);
    // Without it the build looks in /usr/lib64 and does not find LLVM.
    cargo.env("LLVM_PREFIX", &prefix);
    // Else cargo advises to add the folder to PATH, which nobody needs.
    let path = env::var_os("PATH").unwrap_or_default();
    cargo.env("PATH", env::join_paths([tools.join("bin")].into_iter().chain(env::split_paths(&path)))?);
    let took = step::run(&mut cargo)?;
    eprintln!("built in {} s", took.as_secs());
    Ok(())
}

/// The program that packs packages, built if it is not there.
pub(crate) fn cargo_deb(root: &Path) -> Result<PathBuf> {
    let tools = toolchain::tools_dir(root);
    let program = tools.join("bin").join("cargo-deb");
    if !program.is_file() {
        step::heading(&format!("Building cargo-deb {CARGO_DEB_VERSION} into {}", tools.display()));
        let mut cargo = step::cargo(root, "install");
        step::run(cargo.args(["cargo-deb", "--locked", "--version", CARGO_DEB_VERSION, "--root"]).arg(&tools))?;
    }
    Ok(program)
}

/// Debian's package manager.
#[derive(Default)]
struct Apt {
    updated: bool,
}

impl Apt {
    /// Reads the package lists anew, once: a fresh machine has none.
    fn update(&mut self) -> Result<()> {
        if !self.updated {
            step::heading("Updating apt's package lists");
            step::run(Command::new("apt-get").args(["update", "--quiet", "--quiet"]))?;
            self.updated = true;
        }
        Ok(())
    }

    fn knows(&self, package: &str) -> bool {
        let shown = Command::new("apt-cache").args(["show", package]).output();
        shown.is_ok_and(|shown| shown.status.success())
    }

    fn install(&self, packages: &[&str]) -> Result<()> {
        step::heading(&format!("Installing with apt-get: {}", packages.join(" ")));
        // Never at the price of a package that is there, which apt would otherwise remove on a conflict.
        let options = ["install", "--yes", "--no-remove", "--no-install-recommends", "--quiet", "--quiet"];
        let mut apt = Command::new("apt-get");
        apt.args(options).args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]).args(packages);
        // Every package it unpacks is a line; what went wrong comes on stderr.
        step::run(apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))?;
        Ok(())
    }
}

fn require_apt(packages: &[&str]) -> Result<()> {
    if is_debian() && step::is_root() {
        return Ok(());
    }
    let packages = packages.join(" ");
    if step::in_path("apt-get").is_none() {
        bail!("install with this system's package manager what Debian calls: {packages}");
    }
    bail!("packages are missing: run `{}`", sudo_apt(&packages));
}

fn sudo_apt(packages: &str) -> String {
    format!("sudo apt-get update && sudo apt-get install --yes --no-install-recommends {packages}")
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && step::in_path("apt-get").is_some()
}
