//! Other versions of the eBPF programs: built from the same source with a feature of lb-ebpf, by the build's own code.

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow};
use xtask::{ebpf, toolchain};

/// A version; what it does otherwise is said in lb-ebpf's `variant.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Other instructions that do the same.
    OtherVersion,
    /// Drops what it should forward.
    DefectSeen,
    /// Drops it on real interfaces only.
    DefectUnseen,
    /// The verifier refuses it.
    DefectRefused,
}

impl Variant {
    const fn feature(self) -> &'static str {
        match self {
            Self::OtherVersion => "other-version",
            Self::DefectSeen => "defect-seen",
            Self::DefectUnseen => "defect-unseen",
            Self::DefectRefused => "defect-refused",
        }
    }

    /// The object's file; it is built if it is not there as the source has it.
    pub fn object(self) -> Result<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let own = std::env::current_exe().context("cannot find this executable")?;
        // `target/PROFILE/deps/test` or `target/PROFILE/program`.
        let profile =
            own.ancestors().skip(1).find(|path| !path.ends_with("deps")).context("not in a target directory")?;
        let folder = profile.join("variants");
        fs::create_dir_all(&folder)?;
        let root = xtask::workspace_root();
        let toolchain = toolchain::find(&root).map_err(|missing| anyhow!("{missing}: run `cargo xtask setup`"))?;
        let built = ebpf::build(&root, &folder, ebpf::DATAPATH, &toolchain, &[self.feature()], &mut |line| {
            eprintln!("{line}")
        })?;
        let object = folder.join(self.feature());
        fs::rename(&built, &object)?;
        Ok(object)
    }
}
