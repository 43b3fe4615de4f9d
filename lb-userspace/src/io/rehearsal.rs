//! Golden packets: what a program does with packets, before it gets any that matter.
//!
//! It is loaded on maps of its own and compared with the model packet by packet: verdict, bytes, counters, events, and what it
//! writes into the tables. Which packets: random ones over random tables, and those of this member's services over copies of
//! its tables. Nothing live is shown to it.

mod copy;
mod kernel;
mod packets;
mod twins;

use std::{
    collections::BTreeMap,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use lb_common::reason::Reason;
use model::{Dice, Model};

use self::{
    kernel::{PROGRAMS, Room},
    twins::Twins,
};

/// For random tables: fewer flows than there are, so that the table is full now and then; more services than there are.
const ROOM: Room = Room { flows: 12, services: 64 };
/// Random packets for one world.
const PACKETS: u64 = 1000;
/// Of a hundred packets so many come after a change of the tables.
const CHANGES: usize = 2;
/// Random packets of a rehearsal: each reason that half of the tables can lead to is met; a second at most.
const RANDOM: u64 = 8_000;
/// What they are made from: the same ones everywhere, so that a verdict can be repeated.
const SEED: u64 = 12;

/// Why a program must not be attached.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The kernel does not take it, or the rehearsal itself could not be held.
    #[error("the golden packets could not be sent: {0:#}")]
    Failed(anyhow::Error),
    /// It does something else than `lb-common` says.
    #[error("the program failed a golden packet: {0}")]
    Differs(String),
}

/// What was compared.
#[derive(Debug)]
pub struct Report {
    /// Packets.
    pub cases: u64,
    /// How long it took.
    pub took: Duration,
    /// Packets by reason.
    pub reasons: BTreeMap<Reason, u64>,
}

impl Report {
    /// Cases a second.
    pub fn rate(&self) -> f64 {
        self.cases as f64 / self.took.as_secs_f64()
    }

    /// Reasons that no packet met, although one could have.
    pub fn unseen(&self) -> Vec<&'static str> {
        // A driver that leaves no room, which a test run's always does.
        let is_possible = |reason: &&Reason| **reason != Reason::DropHeadroom;
        let unseen = Reason::ALL.iter().filter(is_possible).filter(|reason| !self.reasons.contains_key(reason));
        unseen.map(|reason| reason.name()).collect()
    }
}

/// Sends golden packets through the balancer programs of `object`: random ones, and if there are maps pinned in `pins`, those of
/// the services in them over copies of these maps.
///
/// # Errors
///
/// The first packet with which the program does something else than it should.
pub fn rehearse(object: &[u8], pins: Option<&Path>) -> Result<Report, RehearsalError> {
    // A thread of its own, which stays on one CPU: budgets are per CPU.
    let (mut report, golden) = thread::scope(|scope| {
        let held = scope.spawn(|| Ok((random(object, SEED, RANDOM)?, pins.map(|pins| own(object, pins)).transpose()?)));
        held.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
    })
    .map_err(|error: anyhow::Error| match error.downcast::<Difference>() {
        Ok(difference) => RehearsalError::Differs(difference.0),
        Err(error) => RehearsalError::Failed(error),
    })?;
    if let Some(golden) = golden {
        report.cases += golden.cases;
        report.took += golden.took;
        golden.reasons.into_iter().for_each(|(reason, count)| *report.reasons.entry(reason).or_default() += count);
    }
    Ok(report)
}

/// Sends `cases` random packets through both; the first difference is an error that tells how to see it again.
pub fn random(object: &[u8], seed: u64, cases: u64) -> Result<Report> {
    let mut twins = Twins::new(object, ROOM)?;
    let start = Instant::now();
    let mut reasons = BTreeMap::new();
    for world in 0..cases.div_ceil(PACKETS) {
        let mut dice = Dice::seeded(seed ^ world << 32);
        let longest = twins.begin(&mut dice, world)?;
        for packet in 0..PACKETS.min(cases - world * PACKETS) {
            if dice.chance(CHANGES) {
                twins.change(&mut dice)?;
            }
            let frame = dice.frame(&twins.model, longest);
            match twins.step(&frame) {
                Ok(reason) => *reasons.entry(reason).or_default() += 1,
                Err(difference) => bail!(Difference(format!(
                    "TANDEM_SEED={seed}, world {world}, packet {packet}: {difference}\n{frame:02x?}"
                ))),
            }
        }
        if let Err(difference) = twins.same_tables() {
            bail!(Difference(format!("TANDEM_SEED={seed}, after world {world}: {difference}")));
        }
    }
    Ok(Report { cases, took: start.elapsed(), reasons })
}

/// Whether a model with this fault is told from the kernel within a few thousand packets.
pub fn finds(object: &[u8], fault: fn(&mut Model)) -> Result<bool> {
    let mut twins = Twins::new(object, ROOM)?;
    for world in 0..20 {
        let mut dice = Dice::seeded(world);
        let longest = twins.begin(&mut dice, 1)?;
        fault(&mut twins.model);
        for _ in 0..200 {
            let frame = dice.frame(&twins.model, longest);
            if twins.step(&frame).is_err() {
                return Ok(true);
            }
        }
        if twins.same_tables().is_err() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sends packets of this member's services and flows, over copies of its tables.
fn own(object: &[u8], pins: &Path) -> Result<Report> {
    let world = copy::of(pins)?;
    let room = copy::room(&world);
    let frames = packets::of(&world);
    let mut twins = Twins::new(object, room)?;
    let start = Instant::now();
    let mut reasons = BTreeMap::new();
    for program in PROGRAMS {
        twins.install(world.clone(), program)?;
        for (what, frame) in &frames {
            match twins.step(frame) {
                Ok(reason) => *reasons.entry(reason).or_default() += 1,
                Err(difference) => bail!(Difference(format!("{program}, {what}: {difference}\n{frame:02x?}"))),
            }
        }
        if let Err(difference) = twins.same_tables() {
            bail!(Difference(format!("{program}, after the packets of this member's services: {difference}")));
        }
    }
    Ok(Report { cases: (PROGRAMS.len() * frames.len()) as u64, took: start.elapsed(), reasons })
}

/// What a packet showed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Difference(String);
