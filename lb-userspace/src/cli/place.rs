//! What all commands that look inside have in common: where the maps are, who gives names, how it is printed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Failure, print};
use crate::{
    config::{self, Names},
    pinned::{self, Pinned},
};

#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    /// Pin directory of the member
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
    /// Configuration file to take names from; without it things are called by id and address
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Text for people
    Table,
    /// Stable field names for programs
    Json,
}

impl Place {
    pub(super) fn open(&self) -> Result<Pinned, Failure> {
        Ok(Pinned::open(&self.pin_dir)?)
    }

    pub(super) fn names(&self) -> Names {
        Names::load(&self.config)
    }

    /// Prints `facts` as JSON, or what `text` makes of them.
    pub(super) fn print<T: Serialize + ?Sized>(
        &self,
        facts: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        self.output.print(facts, text)
    }
}

impl Output {
    /// Prints `facts` as JSON, or what `text` makes of them.
    pub(super) fn print<T: Serialize + ?Sized>(
        self,
        facts: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self {
            Self::Table => print(&text(facts)),
            Self::Json => {
                let json = serde_json::to_string_pretty(facts).expect("facts have string keys and no fallible types");
                print(&format!("{json}\n"))
            }
        }
    }
}
