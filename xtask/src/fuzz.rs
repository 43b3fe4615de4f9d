//! The coverage-guided fuzzers: libFuzzer over the crate `model` and over the configuration's reader, instrumented by options that
//! the stable compiler has.
use std::fs;
use std::path::{Path, PathBuf};
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

/// What is fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// Tables and packets, in the datapath's model
    Packets,
    /// The text of a configuration
    Configuration,
}

impl What {
    /// The package and its program.
    fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Packets => ("model", "tandem-fuzz"),
            Self::Configuration => ("lb-userspace", "tandem-fuzz-config"),
        }
    }

    /// Where inputs that broke something are kept; unit tests run them.
    fn regressions(self, root: &Path) -> PathBuf {
        match self {
            Self::Packets => root.join("model").join("regressions"),
            Self::Configuration => root.join("lb-userspace").join("tests").join("fuzzed"),
        }
    }
}

/// Fuzzes for so long. What breaks is put among the regressions, which the unit tests run.
pub(crate) fn run(root: &Path, what: What, seconds: u64) -> Result<ExitCode> {
    if !is_possible() {
        bail!("libFuzzer is C++ and there is no compiler for it: run `sudo apt-get install g++`");
    }
    let (package, program) = what.program();
    let folder = step::target_dir()?.join("fuzz");
    let host = host()?;
    step::heading("Building the fuzzer");
    step::run(
        step::cargo(root, "build")
            .args(["--release", "--package", package, "--features", "engine", "--bin", program])
            .args(["--target", &host, "--config", FLAGS, "--target-dir"])
            .arg(&folder),
    )?;
    let [corpus, seeds] = ["corpus", "seeds"].map(|name| folder.join(program).join(name));
    let regressions = what.regressions(root);
    for folder in [&corpus, &seeds, &regressions] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut fuzzer = Command::new(folder.join(host).join("release").join(program));
    fuzzer
        .args([&corpus, &seeds, &regressions])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES}"))
        .arg(format!("-artifact_prefix={}/", regressions.display()))
        .args(["-timeout=10", "-print_final_stats=1"])
        .env("TANDEM_SEEDS", &seeds);
    step::heading(&step::line(&fuzzer));
    step::run(&mut fuzzer).with_context(|| {
        format!("an input was found that breaks what must hold; it is in {} now", regressions.display())
    })?;
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
