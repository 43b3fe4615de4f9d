//! Another XDP program, measured with the same packets in the same run.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use aya_obj::generated::bpf_prog_type;
use lb_common::bench::TURN;

use super::{
    harness::{FILLING, Harness, Shot, Target},
    packets::{ACK, Destination, Family, Packet, Segment},
};
use crate::interrupt;

/// The other program: pinned, and configured by whoever pinned it.
#[derive(Clone, Debug)]
pub struct Against {
    /// Its pin in bpffs.
    pub pin: PathBuf,
    /// New flows a second that it records; it may answer others without recording them.
    pub pace: u32,
}

/// Opens the program that is pinned at `pin`.
pub(crate) fn open(pin: &Path) -> Result<ProgramFd> {
    // Of a pinned map the kernel tells facts that read like a program's.
    let facts = || -> Result<_> {
        let info = ProgramInfo::from_pin(pin)?;
        Ok((info.program_type(), info.fd()?))
    };
    let (kind, program) = facts().with_context(|| format!("{} is no pinned XDP program", pin.display()))?;
    ensure!(kind == bpf_prog_type::BPF_PROG_TYPE_XDP, "{} is no XDP program but a {kind:?}", pin.display());
    Ok(program)
}

/// Turns of one go at filling the table.
const TURNS: u32 = 32;

/// Lets the program record the flows of so many clients by packets of theirs.
pub(crate) fn fill(
    harness: &mut Harness,
    pace: &mut Pace,
    family: Family,
    to: &Destination,
    clients: u32,
) -> Result<()> {
    let packet = Packet::new(family, to, Segment { flags: ACK, seq: 1 }, None, 64);
    let mut shot =
        Shot { target: Target::Against, packet: &packet, clients, base: 0, stride: FILLING, sent: 0, ifindex: 0 };
    while shot.sent < clients {
        // Of few clients each sends many packets.
        let turns = clients.div_ceil(TURN).min(TURNS);
        pace.take(turns * TURN)?;
        harness.fire([Shot { target: Target::Nothing, ..shot }, shot], turns)?;
        shot.sent += turns * TURN;
    }
    Ok(())
}

/// Keeps new flows below what the program records in a second.
pub(crate) struct Pace {
    limit: u32,
    since: Instant,
    taken: u32,
}

impl Pace {
    /// A window that is longer than the program's by more than the clocks can differ.
    const WINDOW: Duration = Duration::from_millis(1050);

    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, since: Instant::now(), taken: 0 }
    }

    /// Waits until so many more can be recorded.
    pub(crate) fn take(&mut self, flows: u32) -> Result<()> {
        if self.taken + flows > self.limit {
            let wait = Self::WINDOW.saturating_sub(self.since.elapsed());
            if wait > Duration::ZERO {
                interrupt::pause(wait)?;
            }
            (self.since, self.taken) = (Instant::now(), 0);
        }
        self.taken += flows;
        interrupt::check()
    }
}
