//! Finds the eBPF toolchain and builds Tandem's eBPF programs with it.
//!
//! Two programs use this: `cargo xtask`, which may also install what is missing, and the build script of lb-userspace,
//! which never does. Both therefore agree on which compiler and which linker are right.
pub mod ebpf;
pub mod toolchain;

use std::path::{Path, PathBuf};

/// The root of the workspace that this copy of xtask was compiled in.
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}
