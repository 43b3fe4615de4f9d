//! Builds the crate lb-ebpf for the bpf target.
//!
//! Cargo cannot build one package of a workspace for another target with another compiler, so a second cargo does: started
//! by the build script of lb-userspace, in a target directory of its own (the first cargo holds the lock of the usual
//! one), and without the variables by which the first one would bend it to the host's compiler and flags.
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::toolchain::{self, BPF_TARGET, Core, Toolchain};

/// The crate.
const PACKAGE: &str = "lb-ebpf";

/// The binary with the programs that the agent carries, and the file in `OUT_DIR`.
pub const DATAPATH: &str = "lb-ebpf";

/// The binary with the benchmark's harness.
pub const BENCH: &str = "lb-bench";

/// Names an object that is used as it is instead of building one, for packagers that ship a checked object.
const OBJECT_VARIABLE: &str = "TANDEM_EBPF_OBJECT";

/// The build script of lb-userspace: puts the object at `OUT_DIR/lb-ebpf`.
///
/// Installs nothing; without a toolchain it fails with one line that names the remedy.
pub fn build_script() -> ExitCode {
    match script() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the programs of one binary in release mode and returns the object's path, which is below `out_dir`.
///
/// `features` are the crate's. `warn` gets what the compiler has to say, line by line.
pub fn build(
    root: &Path,
    out_dir: &Path,
    binary: &str,
    toolchain: &Toolchain,
    features: &[&str],
    warn: &mut dyn FnMut(&str),
) -> Result<PathBuf> {
    let target_dir = out_dir.join("ebpf");
    let mut cargo = cargo(root, toolchain, "build");
    cargo.args(["--quiet", "--package", PACKAGE, "--bin", binary]).arg("--target-dir").arg(&target_dir);
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    let output =
        cargo.stdin(Stdio::null()).output().with_context(|| format!("{:?} does not start", cargo.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the eBPF programs do not build with {toolchain}:\n{said}");
    }
    said.lines().for_each(warn);

    let object = out_dir.join(binary);
    let built = target_dir.join(BPF_TARGET).join("release").join(binary);
    fs::copy(&built, &object).with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(object)
}

/// A cargo that compiles for the bpf target with `toolchain`; `subcommand` is one that compiles.
pub fn cargo(root: &Path, toolchain: &Toolchain, subcommand: &str) -> Command {
    let compiler = &toolchain.compiler;
    let mut cargo = match compiler.core {
        Core::Prebuilt => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        // `-Z build-std` goes with the cargo of the same release.
        Core::FromSource => Command::new(compiler.sibling("cargo")),
    };
    scrub(&mut cargo);
    cargo
        .current_dir(root)
        .arg(subcommand)
        .args(["--locked", "--release", "--target", BPF_TARGET])
        // The kernel prints source lines in the verifier's log from the debug info that --btf turns into BTF.
        .args(["--config", "profile.release.debug=2", "--config", "profile.release.codegen-units=1"])
        .env("RUSTC", &compiler.rustc)
        // aya-ebpf uses `asm_experimental_arch`.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain));
    if compiler.core == Core::FromSource {
        cargo.args(["-Z", "build-std=core"]);
    }
    cargo
}

fn script() -> Result<()> {
    let root = crate::workspace_root();
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: this is a build script")?);
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    if let Some(object) = env::var_os(OBJECT_VARIABLE) {
        let object = PathBuf::from(object);
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, out_dir.join(DATAPATH))
            .with_context(|| format!("{OBJECT_VARIABLE} names {}, which cannot be copied", object.display()))?;
        return Ok(());
    }
    for input in
        ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-common/src", "lb-common/Cargo.toml", "Cargo.toml", "Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let toolchain = match toolchain::find(&root) {
        Ok(toolchain) => toolchain,
        Err(missing) => bail!("{missing}: run `cargo xtask setup`"),
    };
    println!("cargo::rerun-if-changed={}", toolchain.compiler.rustc.display());
    println!("cargo::rerun-if-changed={}", toolchain.linker.path.display());
    let features: &[&str] = if env::var_os("CARGO_FEATURE_LOG").is_some() { &["log"] } else { &[] };
    build(&root, &out_dir, DATAPATH, &toolchain, features, &mut |line| println!("cargo::warning={line}"))?;
    Ok(())
}

/// Flags for rustc, separated as `CARGO_ENCODED_RUSTFLAGS` wants them; paths may hold spaces.
fn rustflags(toolchain: &Toolchain) -> OsString {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker.path);
    // aya-ebpf's register layout for probes follows the host the programs are for.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.into());
    let arch = OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\""));
    [linker, "-Clink-arg=--btf".into(), arch].join(OsStr::new("\x1f"))
}

/// Takes out of the environment what cargo, rustup or clippy set for the host's build.
fn scrub(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(bends_the_build) {
            command.env_remove(name);
        }
    }
}

/// True for variables that change what a nested cargo compiles or with what. Network settings and the jobserver stay.
fn bends_the_build(variable: &str) -> bool {
    const EXACT: [&str; 12] = [
        "CLIPPY_ARGS",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    const PREFIXES: [&str; 11] = [
        "CARGO_BIN_",
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_CRATE_",
        "CARGO_ENCODED_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "RUSTC_",
    ];
    EXACT.contains(&variable) || PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_build_does_not_bend_the_nested_one() {
        for variable in
            ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "TARGET"]
        {
            assert!(bends_the_build(variable), "{variable}");
        }
        for variable in
            ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "CARGO_REGISTRIES_X_INDEX"]
        {
            assert!(!bends_the_build(variable), "{variable}");
        }
    }
}
