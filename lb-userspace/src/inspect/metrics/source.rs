//! Where an agent's metrics come from.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use super::exposition;
use crate::{
    config::Names,
    inspect::status::Readings,
    pinned::{Pinned, PinnedError, now_ns},
};

/// A member's pins and the names that its configuration gives.
#[derive(Debug)]
pub struct Source {
    pins: PathBuf,
    names: Mutex<Names>,
}

impl Source {
    /// The maps pinned in `pins`, which need not be there yet.
    pub fn new(pins: PathBuf, names: Names) -> Self {
        Self { pins, names: Mutex::new(names) }
    }

    /// Another configuration is in force.
    pub fn rename(&self, names: Names) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// What the maps say now. They are opened each time: an upgrade puts others in their place.
    ///
    /// # Errors
    ///
    /// Those of opening and reading the maps.
    pub fn exposition(&self) -> Result<String, PinnedError> {
        let readings = Readings::glance(&Pinned::open(&self.pins)?, now_ns)?;
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(exposition(&readings, &names))
    }
}
