//! Event rings: what XDP tells the agent about flows.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::{ArrayOfMaps, Map, MapData, MapError, RingBuf},
    util::nr_cpus,
};
use lb_common::{
    flow::{EventV4, EventV6, FlowEntry},
    maps::{self, CPUS_MAX, EVENT_RING_BYTES},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use tokio::io::unix::AsyncFd;
use tracing::warn;
use zerocopy::FromBytes as _;

use super::{
    datapath::{Datapath, DatapathError, inner_map},
    pins::RING_PREFIX,
};
use crate::core::Key;

/// Events taken per wake-up, shared by the rings that are ready, so that a flood of new flows does not hold up probes.
const BUDGET: usize = 512;
/// Rings looked at per wake-up.
const RINGS_AT_ONCE: usize = 16;

/// The rings of all CPUs.
pub struct EventRings {
    rings: Vec<RingBuf<MapData>>,
    epoll: AsyncFd<OwnedFd>,
    ready: Vec<usize>,
    malformed: u64,
}

impl EventRings {
    /// Puts a ring into `events` for each CPU; those pinned by an earlier agent keep what is in them.
    ///
    /// Needs a running runtime, and that no other agent reads the rings (the pin directory's lock).
    pub fn open(datapath: &mut Datapath) -> Result<Self, DatapathError> {
        let mut outer: ArrayOfMaps<MapData, MapData> = datapath.map(maps::EVENTS)?;
        let cpus = nr_cpus().map_err(|(_, error)| error)? as u32;
        if cpus > CPUS_MAX {
            warn!(cpus, "more CPUs than event rings; flows of the others are found by the sweep");
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let mut rings = Vec::new();
        for cpu in 0..cpus.min(CPUS_MAX) {
            let map = ring(&datapath.pins().join(format!("{RING_PREFIX}{cpu}")))?;
            outer.set(cpu, &map, 0).map_err(failed)?;
            let ring = Map::from_map_data(map).and_then(RingBuf::try_from).map_err(failed)?;
            let data = epoll::EventData::new_u64(u64::from(cpu));
            epoll::add(&epoll, ring.as_fd(), data, epoll::EventFlags::IN).map_err(io::Error::from)?;
            rings.push(ring);
        }
        // SAFETY: the OwnedFd always answers with the descriptor it owns, and keeps it open until the AsyncFd drops it.
        let epoll = unsafe { AsyncFd::register(epoll) }.map_err(io::Error::from)?;
        Ok(Self { rings, epoll, ready: Vec::new(), malformed: 0 })
    }

    /// Waits until a ring holds something. Cancel-safe.
    pub async fn ready(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.epoll.readable().await?;
            let mut found = Vec::with_capacity(RINGS_AT_ONCE);
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            epoll::wait(guard.get_inner(), spare_capacity(&mut found), Some(&now))?;
            if found.is_empty() {
                guard.clear_ready();
                continue;
            }
            self.ready = found.iter().map(|event| event.data.u64() as usize).collect();
            return Ok(());
        }
    }

    /// Takes events from the rings that are ready, a bounded number.
    pub fn take(&mut self, mut event: impl FnMut(Key, FlowEntry)) {
        let ready = std::mem::take(&mut self.ready);
        let share = BUDGET / ready.len().max(1);
        for index in ready {
            let Some(ring) = self.rings.get_mut(index) else { continue };
            for _ in 0..share {
                let Some(item) = ring.next() else { break };
                // The length tells the family.
                if let Ok(EventV4 { key, entry }) = EventV4::read_from_bytes(&item) {
                    event(key.into(), entry);
                } else if let Ok(EventV6 { key, entry }) = EventV6::read_from_bytes(&item) {
                    event(key.into(), entry);
                } else {
                    self.malformed += 1;
                }
            }
        }
        if self.malformed > 0 {
            warn!(count = std::mem::take(&mut self.malformed), "events of an unknown shape");
        }
    }
}

fn ring(pin: &Path) -> Result<MapData, DatapathError> {
    if pin.exists() {
        let map = MapData::from_pin(pin).map_err(failed)?;
        if map.info().map_err(failed)?.max_entries() == EVENT_RING_BYTES {
            return Ok(map);
        }
        // Only hints are in it.
        std::fs::remove_file(pin)?;
    }
    let map = inner_map(maps::EVENTS, EVENT_RING_BYTES)?;
    map.pin(pin).map_err(|error| DatapathError::Pin { path: pin.to_owned(), error })?;
    Ok(map)
}

fn failed(error: MapError) -> DatapathError {
    DatapathError::Map { name: maps::EVENTS, error }
}
