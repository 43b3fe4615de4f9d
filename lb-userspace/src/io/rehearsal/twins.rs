//! The kernel and the model, packet by packet.
//!
//! The tables are changed seldom and read seldom: after a packet only the elements that the model has written, the counter of its
//! reason and the ring of events are compared; all the rest when the tables are replaced, so that nothing stays unseen.
//!
//! Kernel time cannot be set. The datapath reads the clock that ticks every few milliseconds, and the model is given the same
//! tick; where the clock ticked meanwhile, the model may have taken either.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Result, ensure};
use lb_common::{
    liveness::Heard,
    reason::{Action, Counter, Reason, ServiceCounters},
};
use model::{Dice, Model, Outcome};
use zerocopy::FromZeros as _;

use super::kernel::{Kernel, PROGRAMS, Room};

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

/// The kernel and the model.
pub(super) struct Twins {
    kernel: Kernel,
    pub(super) model: Model,
    room: Room,
    program: &'static str,
    cpu: usize,
    /// What each reason has counted.
    counted: BTreeMap<Reason, Counter>,
}

impl Twins {
    /// Both without anything in their tables. From now on this thread stays on one CPU.
    pub(super) fn new(object: &[u8], room: Room) -> Result<Self> {
        let cpu = stay_on_one_cpu()?;
        let (kernel, model, program) = (Kernel::load(object, room)?, Model::new(0), PROGRAMS[0]);
        Ok(Self { kernel, model, room, program, cpu, counted: BTreeMap::new() })
    }

    /// Puts random tables into both; returns how long frames may be.
    pub(super) fn begin(&mut self, dice: &mut Dice<'_>, nth: u64) -> Result<usize> {
        let mut world = dice.world(coarse_ns());
        // In the first one the agent has not come yet.
        if nth == 0 {
            world.node.id = 0;
        }
        world.flows_max = self.room.flows as usize;
        dice.populate(&world, 3 * self.room.flows as usize);
        let jumbo = usize::from(dice.chance(25));
        self.install(world, PROGRAMS[jumbo])?;
        Ok([LONGEST, LONGEST_JUMBO][jumbo])
    }

    /// Puts these tables into both; from now on `program` runs.
    pub(super) fn install(&mut self, world: Model, program: &'static str) -> Result<()> {
        let counts = self.model.counts.take();
        self.model = world;
        self.model.now_ns = coarse_ns();
        self.model.flows_max = self.room.flows as usize;
        self.model.services_max = self.room.services;
        self.model.counts.replace(counts);
        self.kernel.install(&self.model)?;
        self.kernel.remember(&self.model)?;
        self.model.budget.set(self.kernel.budget(self.cpu)?);
        self.program = program;
        Ok(())
    }

    pub(super) fn change(&mut self, dice: &mut Dice<'_>) -> Result<()> {
        self.model.now_ns = coarse_ns();
        dice.change(&mut self.model);
        self.kernel.install(&self.model)
    }

    /// One packet through both; the difference, if there is one.
    pub(super) fn step(&mut self, frame: &[u8]) -> Result<Reason, String> {
        let fine = monotonic_ns();
        let (before, seen, after) = {
            let before = coarse_ns();
            let (verdict, out) = self.kernel.run(self.program, frame).map_err(|error| format!("{error:#}"))?;
            let seen = (verdict, out.to_vec());
            (before, seen, coarse_ns())
        };
        let events = self.kernel.take_events()?;
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
            model.compare(frame, seen, events, &outcome)?;
            // A stamp that is this tick's already is not written: the kernel's later tick may have been. And a budget begins
            // anew with a tick.
            if before != after {
                model.kernel.same_memory(&model.model)?;
                model.same_budget()?;
            }
            Ok(outcome)
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
    pub(super) fn same_tables(&self) -> Result<(), String> {
        self.kernel.same_memory(&self.model)?;
        let text = |error: anyhow::Error| error.to_string();
        for reason in Reason::ALL {
            let counted = self.counted.get(reason).copied().unwrap_or(Counter { packets: 0, bytes: 0 });
            same(reason.name(), &self.kernel.counter(*reason).map_err(text)?, &counted)?;
        }
        let counts = self.model.counts.borrow();
        for ring in 0..self.room.services {
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
        self.same_budget()
    }

    fn same_budget(&self) -> Result<(), String> {
        let used = self.kernel.budget(self.cpu).map_err(|error| error.to_string())?;
        same("budget", &used, &self.model.budget.get())
    }
}

/// An error with both if they differ.
pub(super) fn same<T: PartialEq + Debug>(what: &str, kernel: &T, model: &T) -> Result<(), String> {
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
