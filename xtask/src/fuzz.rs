//! The coverage-guided fuzzer: libFuzzer over the crate `model`, instrumented by options that the stable compiler has.
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::step;

/// SanitizerCoverage as libFuzzer wants it, and the checks of a debug build in an optimised one.
const FLAGS: &str = "build.rustflags=[\
    '-Cpasses=sancov-module',\
    '-Cllvm-args=-sanitizer-coverage-level=4',\
    '-Cllvm-args=-sanitizer-coverage-inline-8bit-counters',\
    '-Cllvm-args=-sanitizer-coverage-pc-table',\
    '-Cllvm-args=-sanitizer-coverage-trace-compares',\
    '-Ccodegen-units=1','-Cdebug-assertions','-Coverflow-checks']";

/// Longer than the longest of the seeds: tables and sixteen frames.
const INPUT_BYTES: u32 = 16_384;

/// Fuzzes for so long. What breaks is put among the regressions, which the unit tests run.
pub(crate) fn run(root: &Path, seconds: u64) -> Result<ExitCode> {
    if !is_possible() {
        bail!("libFuzzer is C++ and there is no compiler for it: run `sudo apt-get install g++`");
    }
    let folder = step::target_dir()?.join("fuzz");
    let host = host()?;
    step::heading("Building the fuzzer");
    step::run(
        step::cargo(root, "build")
            .args(["--release", "--package", "model", "--features", "engine", "--bin", "tandem-fuzz"])
            .args(["--target", &host, "--config", FLAGS, "--target-dir"])
            .arg(&folder),
    )?;
    let [corpus, seeds] = ["corpus", "seeds"].map(|name| folder.join(name));
    let regressions = root.join("model").join("regressions");
    for folder in [&corpus, &seeds] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut fuzzer = Command::new(folder.join(host).join("release").join("tandem-fuzz"));
    fuzzer
        .args([&corpus, &seeds, &regressions])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES}"))
        .arg(format!("-artifact_prefix={}/", regressions.display()))
        .args(["-timeout=10", "-print_final_stats=1"])
        .env("TANDEM_SEEDS", &seeds);
    step::heading(&step::line(&fuzzer));
    step::run(&mut fuzzer).context("an input was found that breaks what must hold; it is in model/regressions now")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether there is what the engine is built with; the eBPF linker needs it, too, where it is built here.
pub(crate) fn is_possible() -> bool {
    step::in_path("c++").is_some()
}

/// The compiler's own target: named, so that build scripts and macros are not instrumented.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("rustc does not start")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    Ok(host.to_owned())
}
