//! The sweep: every flow's entry passes by the core every few seconds.
//!
//! It heals what a full event ring lost, and shows the core what went idle. A thread reads the table in
//! batches; the channel is bounded, so that a busy driver slows the sweep and not the other way round.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use lb_common::flow::{FlowEntry, FlowKeyV4, FlowKeyV6};
use tokio::sync::mpsc;
use tracing::{error, warn};
use zerocopy::FromBytes;

use super::bpf::Batches;
use crate::core::Key;

/// From the beginning of a sweep to that of the next.
const PERIOD: Duration = Duration::from_secs(5);
/// Elements of a chunk: when they are all new to the core, a few milliseconds of work in which no probe is sent.
const CHUNK: usize = 256;
/// Chunks under way.
pub const CHUNKS: usize = 4;
/// Pause between chunks from the second sweep on: a full table of 2^20 flows takes 4 s of the period.
const PACE: Duration = Duration::from_millis(1);

/// A part of a sweep.
#[derive(Debug)]
pub enum Swept {
    /// Some entries.
    Chunk(Vec<(Key, FlowEntry)>),
    /// Every entry that was there all the time has been in a chunk.
    End,
}

/// Starts sweeping both tables, first at once and without pauses: after a restart the core knows nothing yet.
///
/// The thread ends when the receiver of `chunks` is gone.
pub fn start(flows: &MapData, flows_v6: &MapData, chunks: mpsc::Sender<Swept>) -> io::Result<()> {
    let mut v4 = Batches::<FlowKeyV4, FlowEntry>::of(flows, CHUNK)?;
    let mut v6 = Batches::<FlowKeyV6, FlowEntry>::of(flows_v6, CHUNK)?;
    thread::Builder::new().name("sweep".into()).spawn(move || {
        let mut pace = Duration::ZERO;
        loop {
            let began = Instant::now();
            let swept = sweep(&mut v4, &chunks, pace).and_then(|goes_on| Ok(goes_on && sweep(&mut v6, &chunks, pace)?));
            match swept {
                Ok(true) if chunks.blocking_send(Swept::End).is_ok() => {}
                Ok(_) => return,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    error!("a hash bucket of the flow table holds more than {CHUNK} flows; the sweep cannot pass it");
                }
                Err(error) => warn!(%error, "the sweep of the flow table failed"),
            }
            pace = PACE;
            thread::sleep(PERIOD.saturating_sub(began.elapsed()));
        }
    })?;
    Ok(())
}

/// False when nobody listens any more.
fn sweep<K>(batches: &mut Batches<K, FlowEntry>, chunks: &mpsc::Sender<Swept>, pace: Duration) -> io::Result<bool>
where
    K: FromBytes + Copy + Into<Key>,
{
    batches.rewind();
    while let Some((keys, entries)) = batches.read()? {
        if keys.is_empty() {
            continue;
        }
        let chunk = keys.iter().zip(entries).map(|(key, entry)| ((*key).into(), *entry)).collect();
        if chunks.blocking_send(Swept::Chunk(chunk)).is_err() {
            return Ok(false);
        }
        thread::sleep(pace);
    }
    Ok(true)
}
