//! A machine that is busy with something else.

use std::{
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result};

/// Busy processes for each CPU.
const EACH: usize = 32;

/// Busy processes; dropped, they end.
#[derive(Debug)]
pub struct Hogs(Vec<Child>);

impl Hogs {
    /// Starts 32 for each CPU.
    pub fn start() -> Result<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let mut hogs = Self(Vec::new());
        for _ in 0..EACH * cpus {
            let hog = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
            hogs.0.push(hog.context("cannot start a busy process")?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _gone = hog.kill().and_then(|()| hog.wait());
        }
    }
}
