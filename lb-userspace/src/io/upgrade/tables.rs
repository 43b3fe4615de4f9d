//! Tables beside those that the links' programs use, and their change of places. See "other tables" in docs/design/0012.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
};

use lb_common::maps;
use tracing::{info, warn};

use super::{Changing, UpgradeError, failed, names};
use crate::io::{
    copying::{Copied, Copying, How},
    datapath::Entry,
    layouts::{CURRENT, Layout},
    pins,
};

/// In `pins::UPGRADE`: tables that are being filled.
const NEW: &str = "tables_new";
/// In `pins::UPGRADE`: those that the program before works with.
const OLD: &str = "tables_old";

impl Changing {
    /// Makes an empty directory for new tables.
    pub fn begin_tables(&self) -> Result<PathBuf, UpgradeError> {
        self.remove_tables(NEW)?;
        let path = self.tables(NEW);
        DirBuilder::new().mode(0o700).create(&path).map_err(failed(&path))?;
        Ok(path)
    }

    /// Fills the new tables for the first time: what is pinned is of `layout`.
    ///
    /// # Errors
    ///
    /// The flows do not fit.
    pub fn fill_tables(&self, layout: &'static Layout) -> Result<Copying, UpgradeError> {
        let path = self.tables(NEW);
        let mut copying = Copying::open(&self.pins, &path, layout).map_err(failed(&path))?;
        let copied = copying.run(How::Merge).map_err(failed(&path))?;
        let settings = ["flows_max", "flows_v6_max"];
        if let Some((Copied { found, without_room, .. }, setting)) =
            copied.into_iter().zip(settings).find(|(copied, _)| copied.without_room > 0)
        {
            return Err(UpgradeError::TooSmall { setting, flows: found, room: found - without_room });
        }
        info!(
            layout = layout.name,
            flows = copied[0].found,
            flows_v6 = copied[1].found,
            "flows copied into new tables"
        );
        Ok(copying)
    }

    /// Copies what has changed since the last time.
    pub fn follow_tables(&self, copying: &mut Copying, how: How) -> Result<(), UpgradeError> {
        let copied = copying.run(how).map_err(failed(&self.tables(NEW)))?;
        let without_room: u64 = copied.iter().map(|copied| copied.without_room).sum();
        if without_room > 0 {
            warn!(flows = without_room, "the new flow table is full; these flows have no entry in it");
        }
        Ok(())
    }

    /// Whether tables are being filled, or wait to be moved.
    pub(super) fn has_new_tables(&self) -> bool {
        self.tables(NEW).exists()
    }

    /// Moves the pinned tables to those of before, and the new ones in their places; goes on where it was interrupted.
    pub(super) fn move_tables(&self) -> Result<(), UpgradeError> {
        if !self.has_new_tables() {
            return Ok(());
        }
        let (new, old) = (self.tables(NEW), self.tables(OLD));
        match DirBuilder::new().mode(0o700).create(&old) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&old)(error)),
            _ => {}
        }
        for name in names(&new).collect::<Vec<_>>() {
            let pinned = self.pins.join(&name);
            if pinned.exists() && !old.join(&name).exists() {
                fs::rename(&pinned, old.join(&name)).map_err(failed(&pinned))?;
            }
            fs::rename(new.join(&name), &pinned).map_err(failed(&pinned))?;
        }
        self.remove_tables(NEW)
    }

    /// Gives the tables of before what was learned since, and their places back.
    pub(super) fn return_tables(&self) -> Result<(), UpgradeError> {
        let old = self.tables(OLD);
        if !old.exists() {
            return Ok(());
        }
        let copied = Copying::open(&self.pins, &old, &CURRENT).and_then(|mut copying| copying.run(How::Merge));
        let without_room: u64 = copied.map_err(failed(&old))?.iter().map(|copied| copied.without_room).sum();
        if without_room > 0 {
            warn!(flows = without_room, "the flow table of before is full; these flows have no entry in it");
        }
        for name in names(&old).collect::<Vec<_>>() {
            fs::rename(old.join(&name), self.pins.join(&name)).map_err(failed(&old))?;
        }
        self.remove_tables(OLD)
    }

    /// Removes the new tables; what a program learned in them, while links already ran it, stays known.
    pub(super) fn drop_new_tables(&self, were_used: bool) -> Result<(), UpgradeError> {
        let new = self.tables(NEW);
        // A node of their own means another layout: nothing writes the one before.
        if were_used && new.exists() && !new.join(maps::NODE).exists() {
            let copied = Copying::open(&new, &self.pins, &CURRENT).and_then(|mut copying| copying.run(How::Merge));
            copied.map_err(failed(&new))?;
        }
        self.remove_tables(NEW)
    }

    /// Removes the tables of before, and the programs that know no others.
    pub(super) fn forget_tables(&self) -> Result<(), UpgradeError> {
        if !self.tables(OLD).exists() {
            return Ok(());
        }
        Entry::ALL.iter().try_for_each(|entry| self.remove(&entry.previous_pin()))?;
        self.remove_tables(OLD)
    }

    fn remove_tables(&self, which: &str) -> Result<(), UpgradeError> {
        let path = self.tables(which);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    fn tables(&self, which: &str) -> PathBuf {
        self.pins.join(pins::UPGRADE).join(which)
    }
}
