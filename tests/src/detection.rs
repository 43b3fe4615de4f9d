//! When each survivor's liveness masks notice that a member is gone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{member::Member, tables::sees_forwarding};

/// How often the masks are read: a small part of what is measured.
const INTERVAL: Duration = Duration::from_micros(500);

/// Watches the pinned masks of the survivors until all have noticed, or it is finished.
#[derive(Debug)]
pub struct Watch {
    names: Vec<String>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<BTreeMap<String, Instant>>,
}

impl Watch {
    /// Begins to watch for the end of member `victim`; before it comes, everybody must see it alive.
    pub fn start<'a>(survivors: impl Iterator<Item = &'a Member>, victim: u8) -> Result<Self> {
        let mut maps = Vec::new();
        for survivor in survivors {
            let map = survivor.tables().liveness_map()?;
            if !sees_forwarding(&map, victim)? {
                bail!("{} takes member {victim} for dead before it is killed", survivor.name());
            }
            maps.push((survivor.name().to_owned(), map));
        }
        let names = maps.iter().map(|(name, _)| name.clone()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut noticed = BTreeMap::new();
            while !maps.is_empty() && !flag.load(Ordering::Relaxed) {
                maps.retain(|(name, map)| {
                    let sees = sees_forwarding(map, victim).unwrap_or(true);
                    if !sees {
                        noticed.insert(name.clone(), Instant::now());
                    }
                    sees
                });
                thread::sleep(INTERVAL);
            }
            noticed
        });
        Ok(Self { names, stop, thread })
    }

    /// How long after `cut` each survivor noticed; none for those that have not.
    pub fn finish(self, cut: Instant) -> BTreeMap<String, Option<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let noticed = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let since = |name: &String| noticed.get(name).map(|at| at.saturating_duration_since(cut));
        self.names.iter().map(|name| (name.clone(), since(name))).collect()
    }
}
