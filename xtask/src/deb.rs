//! The package for Debian and its relatives.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{setup, step};

/// Builds the package, and prints its path on stdout.
pub(crate) fn run(root: &Path, version: Option<&str>) -> Result<ExitCode> {
    println!("{}", build(root, version)?.display());
    Ok(ExitCode::SUCCESS)
}

fn build(root: &Path, version: Option<&str>) -> Result<PathBuf> {
    setup::toolchain(root)?;
    let cargo_deb = setup::cargo_deb(root)?;
    step::heading("Building tandem");
    step::run(step::cargo(root, "build").args(["--release", "--package", "lb-userspace", "--bin", "tandem"]))?;
    let tandem = step::release_program("tandem")?;

    step::heading("Writing what tandem says of itself");
    let staged = step::target_dir()?.join("package");
    if staged.exists() {
        fs::remove_dir_all(&staged).with_context(|| format!("cannot empty {}", staged.display()))?;
    }
    let pages = staged.join("man");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    step::run(Command::new(&tandem).arg("man").arg(&pages))?;
    for (arguments, name) in [
        (&["completions", "bash"][..], "tandem.bash"),
        (&["completions", "zsh"], "_tandem"),
        (&["completions", "fish"], "tandem.fish"),
        (&["config", "schema"], "tandem.schema.json"),
    ] {
        let said = Command::new(&tandem).args(arguments).output().context("cannot start tandem")?;
        anyhow::ensure!(said.status.success(), "`tandem {}` failed", arguments.join(" "));
        fs::write(staged.join(name), said.stdout).with_context(|| format!("cannot write {name}"))?;
    }

    step::heading("Packing");
    let mut deb = Command::new(cargo_deb);
    deb.current_dir(root).args(["--package", "lb-userspace", "--no-build", "--quiet", "--strip"]);
    if let Some(version) = version {
        deb.args(["--deb-version", version]);
    }
    let package = step::target_dir()?.join("package").join("tandem.deb");
    step::run(deb.arg("--output").arg(&package).stdout(std::process::Stdio::null()))?;
    Ok(package)
}
