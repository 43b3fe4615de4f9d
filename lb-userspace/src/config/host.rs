//! What a configuration must be told about the host it is read on.

use std::{ffi::CString, path::Path};

/// The host, and what the command line says about it; tests make their own.
pub struct Host<'a> {
    /// `--node`.
    pub node: Option<&'a str>,
    /// `--interface`, as often as given.
    pub interfaces: &'a [String],
    /// `--state-dir`: where this member's key is unless the file says otherwise.
    pub state: &'a Path,
    /// Whether an interface exists.
    pub interface_exists: &'a dyn Fn(&str) -> bool,
    /// The host's name.
    pub host_name: &'a dyn Fn() -> String,
}

impl Default for Host<'_> {
    fn default() -> Self {
        let state = Path::new(super::DEFAULT_STATE_DIRECTORY);
        Self { node: None, interfaces: &[], state, interface_exists: &interface_exists, host_name: &host_name }
    }
}

/// In this process's network namespace, which `/sys/class/net` need not be of.
fn interface_exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: `name` is a string that ends with a zero byte and lives until the call returns.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}
