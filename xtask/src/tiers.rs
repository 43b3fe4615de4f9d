//! The tests, tier by tier: the lower a tier, the less it needs and the sooner it fails.
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{launch, step};

/// A group of tests that need the same.
struct Tier {
    name: &'static str,
    what: &'static str,
    /// Needs root: it loads programs into the kernel.
    root: bool,
    /// Starts the agent's release build, whose file `TANDEM_BIN` names.
    agent: bool,
    /// What is handed to `cargo test`; one call each.
    selections: &'static [&'static [&'static str]],
    /// What is handed to the test programs.
    options: &'static [&'static str],
}

const TIERS: [Tier; 4] = [
    Tier {
        name: "unit",
        what: "units and properties",
        root: false,
        agent: false,
        selections: &[
            &["--package", "lb-common", "--package", "lb-userspace", "--package", "model", "--package", "xtask"],
            &["--package", "tests", "--lib", "--bin", "tandem-demo", "--bin", "tandem-accept", "--bin", "tandem-bench"],
        ],
        options: &[],
    },
    Tier {
        name: "sim",
        what: "a simulated cluster",
        root: false,
        agent: false,
        selections: &[&["--package", "tests", "--bin", "tandem-sim"]],
        options: &[],
    },
    Tier {
        name: "datapath",
        what: "the kernel's verdicts, packet by packet",
        root: true,
        agent: false,
        selections: &[&["--package", "tests", "--test", "datapath"]],
        options: &[],
    },
    Tier {
        name: "cluster",
        what: "agents in network namespaces, real TCP",
        root: true,
        agent: true,
        selections: &[&["--package", "tests", "--test", "cluster"]],
        // Every test has the machine for itself: most of them measure time.
        options: &["--test-threads=1"],
    },
];

/// How a tier ended.
enum Outcome {
    Ran { green: bool, tests: Counts, took: Duration },
    Skipped(&'static str),
}

/// Sums of libtest's closing lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// The tiers' names, lowest first.
pub(crate) fn names() -> Vec<&'static str> {
    TIERS.iter().map(|tier| tier.name).collect()
}

/// Runs every tier, or only the one called `only`, and prints a summary. Later tiers run even if an earlier one fails.
pub(crate) fn run(root: &Path, only: Option<&str>, filter: &[String]) -> Result<ExitCode> {
    let is_root = step::is_root();
    let mut outcomes = Vec::new();
    for tier in TIERS.iter().filter(|tier| only.is_none_or(|only| only == tier.name)) {
        let outcome = if tier.root && !is_root {
            Outcome::Skipped("needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask test`")
        } else {
            tier.run(root, filter)?
        };
        outcomes.push((tier, outcome));
    }
    step::heading("Summary");
    for (tier, outcome) in &outcomes {
        eprintln!("{:<10}{outcome}", tier.name);
    }
    let green = outcomes.iter().all(|(_, outcome)| !matches!(outcome, Outcome::Ran { green: false, .. }));
    Ok(if green { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Tier {
    fn run(&self, root: &Path, filter: &[String]) -> Result<Outcome> {
        if self.agent {
            launch::build_lab(root)?;
        }
        step::heading(&format!("Tests, tier {}: {}", self.name, self.what));
        let start = Instant::now();
        let mut green = true;
        let mut tests = Counts::default();
        for selection in self.selections {
            let mut cargo = step::cargo(root, "test");
            cargo.args(*selection).arg("--no-fail-fast").arg("--").args(self.options).args(filter);
            if self.agent {
                cargo.env("TANDEM_BIN", step::release_program("tandem")?);
            }
            let (succeeded, said) = step::run_and_read(&mut cargo)?;
            green &= succeeded;
            tests.add(&said);
        }
        Ok(Outcome::Ran { green, tests, took: start.elapsed() })
    }
}

impl Counts {
    /// Adds the closing lines in what `cargo test` printed: `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, said: &str) {
        for closing in said.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            for figure in closing.split(['.', ';']) {
                match figure.trim().split_once(' ') {
                    Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                    Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                    Some((count, "ignored")) => self.ignored += count.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Skipped(why) => write!(f, "skipped   {why}"),
            Self::Ran { green, tests, took } => {
                let verdict = if *green { "passed" } else { "FAILED" };
                let Counts { passed, failed, ignored } = tests;
                write!(f, "{verdict}    {passed} passed, {failed} failed, {ignored} ignored, {} s", took.as_secs())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_several_test_programs_add_up() {
        let mut counts = Counts::default();
        counts.add("test a ... ok\n\ntest result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n");
        counts
            .add("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s\n");
        assert_eq!(counts, Counts { passed: 7, failed: 3, ignored: 1 });
    }
}
