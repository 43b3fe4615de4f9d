//! The kernel decides as `lb-common` does: random packets over random tables, in the kernel and in the model.
//!
//! The tables are changed seldom and read seldom: after a packet only the elements that the model has written, the counter of its
//! reason and the ring of events are compared; all the rest when the tables are replaced, so that nothing stays unseen.
//!
//! Kernel time cannot be set. The datapath reads the clock that ticks every few milliseconds, and the model is given the same
//! tick; where the clock ticked meanwhile, the model may have taken either.

mod kernel;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use lb_common::{
    liveness::Heard,
    reason::{Action, Counter, Reason, ServiceCounters},
};
use model::{Dice, Model, Outcome};
use zerocopy::FromZeros as _;

use self::kernel::{FLOWS, Kernel, PROGRAMS, SERVICES};

/// Packets for one world.
const PACKETS: u64 = 1000;
/// Of a hundred packets so many come after a change of the tables.
const CHANGES: usize = 2;
/// The longest frame that lies in one buffer: a page without headroom and the kernel's `struct skb_shared_info`.
const LONGEST: usize = 3400;
/// The longest frame in several buffers here.
const LONGEST_JUMBO: usize = 9000;

/// Verdicts of XDP programs (linux/bpf.h).
const XDP_ABORTED: u32 = 0;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

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

/// Sends `cases` packets through both; the first difference is an error that tells how to see it again.
pub fn run(seed: u64, cases: u64) -> Result<Report> {
    let mut twins = Twins::new()?;
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
                Err(difference) => {
                    bail!("TANDEM_SEED={seed}, world {world}, packet {packet}: {difference}\n{frame:02x?}")
                }
            }
        }
        if let Err(difference) = twins.same_tables() {
            bail!("TANDEM_SEED={seed}, after world {world}: {difference}");
        }
    }
    Ok(Report { cases, took: start.elapsed(), reasons })
}

/// Whether a model with this fault is told from the kernel within a few thousand packets.
pub fn finds(fault: fn(&mut Model)) -> Result<bool> {
    let mut twins = Twins::new()?;
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

/// The kernel and the model.
struct Twins {
    kernel: Kernel,
    model: Model,
    program: &'static str,
    cpu: usize,
    /// What each reason has counted.
    counted: BTreeMap<Reason, Counter>,
}

impl Twins {
    fn new() -> Result<Self> {
        let cpu = stay_on_one_cpu()?;
        Ok(Self { kernel: Kernel::load()?, model: Model::new(0), program: PROGRAMS[0], cpu, counted: BTreeMap::new() })
    }

    /// Puts new tables into both; returns how long frames may be.
    fn begin(&mut self, dice: &mut Dice<'_>, nth: u64) -> Result<usize> {
        let counts = self.model.counts.take();
        self.model = dice.world(coarse_ns());
        self.model.flows_max = FLOWS as usize;
        self.model.services_max = SERVICES;
        self.model.counts.replace(counts);
        // In the first one the agent has not come yet.
        if nth == 0 {
            self.model.node.id = 0;
        }
        dice.populate(&self.model, 3 * FLOWS as usize);
        self.kernel.install(&self.model)?;
        self.kernel.remember(&self.model)?;
        self.model.budget.set(self.kernel.budget(self.cpu)?);
        let jumbo = usize::from(dice.chance(25));
        self.program = PROGRAMS[jumbo];
        Ok([LONGEST, LONGEST_JUMBO][jumbo])
    }

    fn change(&mut self, dice: &mut Dice<'_>) -> Result<()> {
        self.model.now_ns = coarse_ns();
        dice.change(&mut self.model);
        self.kernel.install(&self.model)
    }

    /// One packet through both; the difference, if there is one.
    fn step(&mut self, frame: &[u8]) -> Result<Reason, String> {
        let fine = monotonic_ns();
        let (before, seen, after) = {
            let before = coarse_ns();
            let (verdict, out) = self.kernel.run(self.program, frame).map_err(|error| format!("{error:#}"))?;
            let seen = (verdict, out.to_vec());
            (before, seen, coarse_ns())
        };
        let events = self.kernel.take_events();
        let outcome = self.decide(frame, &seen, &events, (before, after))?;
        if matches!(outcome.reason, Reason::ProbeReflected | Reason::ProbeIntroduced | Reason::EchoTaken) {
            self.same_heard(fine)?;
        }
        let counted = self.counted.entry(outcome.reason).or_insert(Counter { packets: 0, bytes: 0 });
        counted.packets += 1;
        counted.bytes += (frame.len() - 14) as u64;
        Ok(outcome.reason)
    }

    /// What the model does at the kernel's time: somewhere between the clock before and the clock after.
    fn decide(
        &mut self,
        frame: &[u8],
        seen: &(u32, Vec<u8>),
        events: &[model::Event],
        (before, after): (u64, u64),
    ) -> Result<Outcome, String> {
        let undo = (before != after).then(|| self.model.clone());
        let at = |model: &mut Self, now_ns: u64| {
            model.model.now_ns = now_ns;
            let outcome = model.model.run(frame);
            model.compare(frame, seen, events, &outcome).map(|()| outcome)
        };
        let mut result = at(self, before);
        let Some(undo) = undo else { return result };
        // Ticks apart, as far as a busy host keeps this process waiting.
        let later = (before..after).step_by(1 << 20).skip(1).take(1000).chain([after]);
        for now_ns in later {
            if result.is_ok() {
                break;
            }
            self.model = undo.clone();
            result = at(self, now_ns);
        }
        result
    }

    fn compare(
        &self,
        frame: &[u8],
        (verdict, out): &(u32, Vec<u8>),
        events: &[model::Event],
        outcome: &Outcome,
    ) -> Result<(), String> {
        let reason = outcome.reason;
        let mut expected = self.counted.get(&reason).copied().unwrap_or(Counter { packets: 0, bytes: 0 });
        expected.packets += 1;
        expected.bytes += (frame.len() - 14) as u64;
        let counter = self.kernel.counter(reason).map_err(|error| error.to_string())?;
        if counter != expected {
            return Err(format!("the model's reason is {}, the kernel's {}", reason.name(), self.other_reason()));
        }
        same("verdict", verdict, &self.verdict(outcome)).map_err(|error| format!("{}: {error}", reason.name()))?;
        if reason.action() != Action::Drop {
            same_frames(out, &outcome.frame).map_err(|error| format!("{}: {error}", reason.name()))?;
        }
        self.kernel.same_writes(&self.model).map_err(|error| format!("{}: {error}", reason.name()))?;
        let told = self.model.events.take();
        same("events", &events, &&told[..]).map_err(|error| format!("{}: {error}", reason.name()))
    }

    fn verdict(&self, outcome: &Outcome) -> u32 {
        match outcome.reason.action() {
            Action::Pass => XDP_PASS,
            Action::Drop | Action::Consume => XDP_DROP,
            _ if outcome.way == self.model.ingress => XDP_TX,
            _ if self.model.devices.contains(&outcome.way) => XDP_REDIRECT,
            _ => XDP_ABORTED,
        }
    }

    /// The reason whose counter is not what has been counted.
    fn other_reason(&self) -> String {
        let is_other = |reason: &&Reason| {
            let counted = self.counted.get(reason).copied().unwrap_or(Counter { packets: 0, bytes: 0 });
            self.kernel.counter(**reason).is_ok_and(|counter| counter != counted)
        };
        Reason::ALL.iter().filter(is_other).map(|reason| reason.name()).collect::<Vec<_>>().join(", ")
    }

    /// Stamps lie between the clock at `before` and now; then the model takes them over.
    fn same_heard(&self, before: u64) -> Result<(), String> {
        let after = monotonic_ns();
        let mut model = self.model.heard.borrow_mut();
        for (id, ours) in model.iter_mut() {
            let theirs = self.kernel.heard(*id).map_err(|error| error.to_string())?;
            // The model's stamps of this packet are the coarse clock's.
            let stamp = |theirs: u64, ours: u64| {
                let is_now = (before..=after).contains(&theirs) && ours == self.model.now_ns;
                if is_now { theirs } else { ours }
            };
            *ours = Heard {
                probe_ns: stamp(theirs.probe_ns, ours.probe_ns),
                echo_ns: stamp(theirs.echo_ns, ours.echo_ns),
                ..*ours
            };
            same("heard", &theirs, ours)?;
        }
        self.kernel.note_heard(&model);
        Ok(())
    }

    /// All that was not looked at after each packet.
    fn same_tables(&self) -> Result<(), String> {
        self.kernel.same_memory(&self.model)?;
        let text = |error: anyhow::Error| error.to_string();
        for reason in Reason::ALL {
            let counted = self.counted.get(reason).copied().unwrap_or(Counter { packets: 0, bytes: 0 });
            same(reason.name(), &self.kernel.counter(*reason).map_err(text)?, &counted)?;
        }
        let counts = self.model.counts.borrow();
        for ring in 0..SERVICES {
            let counted = counts.services.get(&ring).copied().unwrap_or_else(ServiceCounters::new_zeroed);
            same("counters of a service", &self.kernel.service(ring).map_err(text)?, &counted)?;
        }
        for (slot, counted) in &counts.backends {
            same("counter of a backend", &self.kernel.delivered(*slot).map_err(text)?, counted)?;
        }
        for (id, counted) in &counts.members {
            same("counter of a member", &self.kernel.handed_off(*id).map_err(text)?, counted)?;
        }
        let heard = self.model.heard.borrow();
        for id in 0..=64 {
            let ours = heard.get(&id).copied().unwrap_or_else(Heard::new_zeroed);
            same("heard", &self.kernel.heard(id).map_err(text)?, &ours)?;
        }
        same("budget", &self.kernel.budget(self.cpu).map_err(text)?, &self.model.budget.get())
    }
}

fn same<T: PartialEq + Debug>(what: &str, kernel: &T, model: &T) -> Result<(), String> {
    if kernel == model { Ok(()) } else { Err(format!("{what}: the kernel has {kernel:02x?}, the model {model:02x?}")) }
}

/// The place of the first difference, and what is there: frames are long.
fn same_frames(kernel: &[u8], model: &[u8]) -> Result<(), String> {
    let Some(at) = (0..kernel.len().max(model.len())).find(|at| kernel.get(*at) != model.get(*at)) else {
        return Ok(());
    };
    let rest = |frame: &'_ [u8]| format!("{:02x?}", frame.get(at..(at + 16).min(frame.len())).unwrap_or_default());
    let (theirs, ours) = (rest(kernel), rest(model));
    Err(format!(
        "frame of {} or {} bytes: at {at} the kernel has {theirs}, the model {ours}",
        kernel.len(),
        model.len()
    ))
}

/// The clock that the datapath reads; by a system call, because the one without may show a tick that the kernel does not yet.
fn coarse_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC_COARSE)
}

fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Budgets and counters are per CPU.
fn stay_on_one_cpu() -> Result<usize> {
    // SAFETY: the set is plain bits; the kernel reads it, for this thread only.
    unsafe {
        let cpu = libc::sched_getcpu();
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        ensure!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set) == 0, "cannot stay on one CPU");
        Ok(cpu as usize)
    }
}
