//! SIGINT and SIGTERM as a flag, so that the lab is always taken down by its destructors.
//!
//! A signal that killed the process would leave namespaces, pins and agents behind. With
//! [`catch`] in force the lab's waits end with an error instead, and unwinding cleans up.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The longest time between a signal and the moment a waiting lab notices it.
const SLICE: Duration = Duration::from_millis(20);

/// Turns SIGINT, SIGTERM and SIGHUP into a flag from here on.
pub fn catch() {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// Whether a signal asked the lab to end.
pub fn happened() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Errors once a signal asked the lab to end.
pub fn check() -> Result<()> {
    if happened() {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps; ends early with an error when a signal arrives.
pub fn pause(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(SLICE));
    }
}

/// Waits until `done` answers true, asking every `interval`; false when `limit` passes first.
pub fn wait_until(limit: Duration, interval: Duration, mut done: impl FnMut() -> bool) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        pause(interval)?;
    }
}
