//! `tandem-accept`: the acceptance rows that take long or measure time, each figure beside its bound.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tests::{
    acceptance::{ROWS, Row},
    check::Check,
    interrupt, run,
};

/// Measures the acceptance rows and prints each figure beside its bound.
///
/// Needs root and an otherwise quiet machine: the bounds are times.
#[derive(Debug, Parser)]
#[command(name = "tandem-accept", version, after_help = EXAMPLES)]
struct Arguments {
    /// Only name the rows.
    #[arg(long)]
    list: bool,
    /// Only this row.
    row: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask accept            every row
  cargo xtask accept --list     their names
  cargo xtask accept joiner     one of them

Exit status: 0 every figure is within its bound; 1 one is not, or a row could not run; 2 no such row.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        ROWS.iter().for_each(|Row { name, what, .. }| println!("{name:<16}{what}"));
        return ExitCode::SUCCESS;
    }
    let wanted = |row: &&Row| arguments.row.as_ref().is_none_or(|name| name == row.name);
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    if rows.is_empty() {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        eprintln!("tandem-accept: there is no such row; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    interrupt::catch();
    if let Err(error) = run::require_root() {
        eprintln!("tandem-accept: {error:#}");
        return ExitCode::FAILURE;
    }
    let mut passed = true;
    for row in rows {
        passed &= print(row.name, (row.run)());
        if interrupt::happened() {
            return ExitCode::from(130);
        }
    }
    ExitCode::from(u8::from(!passed))
}

/// Prints a row's figures; answers whether all are within their bounds.
fn print(row: &str, outcome: Result<Vec<Check>>) -> bool {
    let checks = match outcome {
        Ok(checks) => checks,
        Err(error) => {
            println!("{row:<16}FAIL  {error:#}");
            return false;
        }
    };
    for Check { name, figure, bound, passed } in &checks {
        let verdict = if *passed { "PASS" } else { "FAIL" };
        println!("{row:<16}{name:<44}{figure:>12}   {bound:<12}{verdict}");
    }
    checks.iter().all(|check| check.passed)
}
