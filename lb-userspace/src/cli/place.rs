//! What all commands that look inside have in common: where the maps are, who gives names, how it is printed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Failure, print};
use crate::{
    config::{self, Names},
    pinned::{self, Pinned},
};

/// Where to look, and how to print.
#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    place: Where,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Where to look.
#[derive(Clone, Debug, Args)]
pub(super) struct Where {
    /// Pin directory of the member
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
    /// Configuration file to take names from; without it things are called by id and address
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Text for people
    Table,
    /// Stable field names for programs
    Json,
    /// The same as YAML
    Yaml,
}

impl Where {
    pub(super) fn open(&self) -> Result<Pinned, Failure> {
        Ok(Pinned::open(&self.pin_dir)?)
    }

    pub(super) fn names(&self) -> Names {
        Names::load(&self.config)
    }
}

impl Place {
    pub(super) fn open(&self) -> Result<Pinned, Failure> {
        self.place.open()
    }

    pub(super) fn names(&self) -> Names {
        self.place.names()
    }

    /// Whether no person reads it.
    pub(super) fn is_for_programs(&self) -> bool {
        self.output != Output::Table
    }

    /// Prints `facts` as JSON or YAML, or what `text` makes of them.
    pub(super) fn print<T: Serialize + ?Sized>(
        &self,
        facts: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        self.output.print(facts, text)
    }
}

impl Output {
    /// Prints `facts` as JSON or YAML, or what `text` makes of them.
    pub(super) fn print<T: Serialize + ?Sized>(
        self,
        facts: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        print(&match self {
            Self::Table => text(facts),
            Self::Json => to_json(facts),
            Self::Yaml => to_yaml(facts),
        })
    }
}

/// `facts` as JSON for people and programs.
pub(super) fn to_json<T: Serialize + ?Sized>(facts: &T) -> String {
    serde_json::to_string_pretty(facts).expect("facts have string keys and no fallible types") + "\n"
}

/// The same as YAML.
pub(super) fn to_yaml<T: Serialize + ?Sized>(facts: &T) -> String {
    serde_saphyr::to_string(&facts).expect("facts have string keys and no fallible types")
}
