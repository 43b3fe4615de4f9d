//! The kernel decides as `lb-common` does: random packets over random tables, in the kernel and in the model.
//!
//! Kernel time cannot be set. So the model runs twice, at the clock before and at the clock after the kernel's run: what the kernel did
//! must equal one of the two, and stamps must lie between them. Then the model takes over the kernel's stamps.

use std::{collections::BTreeMap, fmt::Debug};

use lb_common::{
    flow::{EventV4, FlowEntry, FlowKeyV4, Pending, tick},
    liveness::Heard,
    node::Budget,
    reason::{Action, Reason},
};

use crate::{
    checks::now_ns,
    dice::Dice,
    model::{Model, Outcome},
    rig::{Rig, Seen, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    world::world,
};

const WORLDS: u64 = 100;
const PACKETS: u64 = 100;
/// Fewer than there are tuples, so that the table is full now and then.
const CAPACITY: u32 = 12;

/// The seed of this run: `TANDEM_SEED`, or a new one.
fn seed() -> u64 {
    let seed =
        std::env::var("TANDEM_SEED").map_or_else(|_| now_ns() % 1_000_000_007, |text| text.parse().expect("a number"));
    println!("replay with TANDEM_SEED={seed}");
    seed
}

#[test]
fn the_kernel_decides_as_the_model_does() {
    let cpu = stay_on_one_cpu();
    let seed = seed();
    let mut rig = Rig::with_capacity(world(&[1]), CAPACITY);
    let mut seen: BTreeMap<Reason, u32> = BTreeMap::new();
    for nth in 0..WORLDS {
        let mut dice = Dice::new(seed ^ nth << 32);
        populate(&mut rig, &mut dice, cpu);
        if nth == 0 {
            rig.change(|world| world.node.id = 0);
        }
        for packet in 0..PACKETS {
            if dice.chance(10) {
                rig.change(|world| dice.change(world));
            }
            let frame = dice.frame(&rig.world);
            match step(&rig, &frame, cpu) {
                Ok(reason) => *seen.entry(reason).or_default() += 1,
                Err(difference) => panic!("seed {seed}, world {nth}, packet {packet}: {difference}\n{frame:02x?}"),
            }
        }
        let unwritten: Vec<u8> = (0..=64).filter(|id| !rig.world.heard.borrow().contains_key(id)).collect();
        assert!(unwritten.iter().all(|id| rig.heard(*id).probe_ns == 0), "seed {seed}, world {nth}: a stray stamp");
    }
    for (reason, count) in &seen {
        println!("{:>6} {}", count, reason.name());
    }
    // A test that never sees an outcome proves nothing of it.
    let impossible = [Reason::DropHeadroom];
    let missing = Reason::ALL.iter().filter(|reason| !seen.contains_key(reason) && !impossible.contains(reason));
    assert_eq!(missing.map(|reason| reason.name()).collect::<Vec<_>>(), [""; 0], "seed {seed}");
}

#[test]
fn a_model_that_decides_otherwise_is_found_out() {
    let cpu = stay_on_one_cpu();
    let faults: [fn(&mut Model); 5] = [
        |model| model.node.hash_key[0] ^= 1,
        |model| model.node.flags ^= 1,
        |model| model.liveness.eligible ^= 1,
        |model| model.backends.values_mut().for_each(|backend| backend.next_hop.mtu = 41),
        |model| model.node.incarnation += 1,
    ];
    let mut rig = Rig::with_capacity(world(&[1]), CAPACITY);
    for (nth, fault) in faults.into_iter().enumerate() {
        let found = (0..40).any(|round| {
            let mut dice = Dice::new(round);
            populate(&mut rig, &mut dice, cpu);
            // Only in the model, not in the kernel.
            fault(&mut rig.world);
            (0..20).any(|_| step(&rig, &dice.frame(&rig.world), cpu).is_err())
        });
        assert!(found, "fault {nth}");
    }
}

/// Puts a new world and new flows into the kernel and into the model.
fn populate(rig: &mut Rig, dice: &mut Dice, cpu: usize) {
    let state = rig.state();
    state.flows.keys().for_each(|key| rig.set_flow(key, None));
    state.pending.keys().for_each(|key| rig.set_pending(key, None));
    rig.change(|world| {
        *world = dice.world();
        world.flows_max = CAPACITY as usize;
    });
    for _ in 0..dice.below(60) {
        let key = dice.of_a_flow().key();
        if dice.chance(50) {
            let pending = dice.pending();
            rig.set_pending(&key, Some(&pending));
        } else if rig.state().flows.len() < CAPACITY as usize {
            let entry = dice.entry(&key, &rig.world);
            rig.set_flow(&key, Some(&entry));
        }
    }
    adopt(&rig.world, &observe(rig, cpu));
}

/// What the datapath has written.
struct Written {
    flows: BTreeMap<FlowKeyV4, FlowEntry>,
    pending: BTreeMap<FlowKeyV4, Pending>,
    heard: BTreeMap<u8, Heard>,
    budget: Budget,
    events: Vec<EventV4>,
}

fn observe(rig: &Rig, cpu: usize) -> Written {
    let state = rig.state();
    let ids = rig.world.peers.values();
    Written {
        flows: state.flows,
        pending: state.pending,
        heard: ids.map(|id| (*id, rig.heard(*id))).collect(),
        budget: rig.budget(cpu),
        events: rig.take_events(),
    }
}

/// The model takes over what the kernel has.
fn adopt(model: &Model, kernel: &Written) {
    model.flows.borrow_mut().clone_from(&kernel.flows);
    model.pending.borrow_mut().clone_from(&kernel.pending);
    model.heard.borrow_mut().clone_from(&kernel.heard);
    model.budget.set(kernel.budget);
    model.events.take();
}

/// One packet through both; the difference, if there is one.
fn step(rig: &Rig, frame: &[u8], cpu: usize) -> Result<Reason, String> {
    let before = now_ns();
    let seen = rig.send(frame);
    let after = now_ns();
    let kernel = observe(rig, cpu);
    let verdict = |now_ns: u64| {
        let model = Model { now_ns, ..rig.world.clone() };
        let outcome = model.run(frame);
        let bounds = Bounds { before, after };
        bounds.compare(&seen, &kernel, &outcome, &model)
    };
    if let Err(difference) = verdict(before)
        && verdict(after).is_err()
    {
        return Err(difference);
    }
    adopt(&rig.world, &kernel);
    Ok(seen.reason)
}

/// The clock before and after the kernel's run.
struct Bounds {
    before: u64,
    after: u64,
}

impl Bounds {
    fn compare(&self, seen: &Seen, kernel: &Written, outcome: &Outcome, model: &Model) -> Result<(), String> {
        same("reason", &seen.reason, &outcome.reason)?;
        same("verdict", &seen.verdict, &verdict(outcome, model.ingress))?;
        same("frame", &seen.frame, &outcome.frame)?;
        let aligned = |theirs: &FlowEntry, ours: &FlowEntry| FlowEntry {
            last_seen: self.tick(theirs.last_seen, ours.last_seen),
            created: self.tick(theirs.created, ours.created),
            ..*ours
        };
        same("flows", &kernel.flows, &align(&kernel.flows, &model.flows.borrow(), aligned))?;
        let events: Vec<EventV4> = (model.events.borrow().iter().zip(&kernel.events))
            .map(|(ours, theirs)| EventV4 { entry: aligned(&theirs.entry, &ours.entry), ..*ours })
            .collect();
        same("number of events", &kernel.events.len(), &model.events.borrow().len())?;
        same("events", &kernel.events, &events)?;
        let pending = align(&kernel.pending, &model.pending.borrow(), |theirs, ours| Pending {
            first_seen: self.tick(theirs.first_seen, ours.first_seen),
            last_seen: self.tick(theirs.last_seen, ours.last_seen),
            ..*ours
        });
        same("pending", &kernel.pending, &pending)?;
        let heard = align(&kernel.heard, &model.heard.borrow(), |theirs, ours| Heard {
            probe_ns: self.stamp(theirs.probe_ns, ours.probe_ns),
            echo_ns: self.stamp(theirs.echo_ns, ours.echo_ns),
            ..*ours
        });
        same("heard", &kernel.heard, &heard)?;
        same("budget", &kernel.budget.used, &model.budget.get().used)
    }

    /// The kernel's stamp, where it and the model's are both of this run; else the model's.
    fn stamp(&self, theirs: u64, ours: u64) -> u64 {
        let is_now = |stamp| (self.before..=self.after).contains(&stamp);
        if is_now(theirs) && is_now(ours) { theirs } else { ours }
    }

    fn tick(&self, theirs: u32, ours: u32) -> u32 {
        let span = tick(self.after).wrapping_sub(tick(self.before));
        let is_now = |stamp: u32| stamp.wrapping_sub(tick(self.before)) <= span;
        if is_now(theirs) && is_now(ours) { theirs } else { ours }
    }
}

/// The model's map, with stamps of the kernel's elements where `align` says that they agree.
fn align<K: Ord + Copy, V: Copy>(
    kernel: &BTreeMap<K, V>,
    model: &BTreeMap<K, V>,
    align: impl Fn(&V, &V) -> V,
) -> BTreeMap<K, V> {
    model.iter().map(|(key, ours)| (*key, kernel.get(key).map_or(*ours, |theirs| align(theirs, ours)))).collect()
}

fn same<T: PartialEq + Debug>(what: &str, kernel: &T, model: &T) -> Result<(), String> {
    if kernel == model { Ok(()) } else { Err(format!("{what}: the kernel has {kernel:02x?}, the model {model:02x?}")) }
}

fn verdict(outcome: &Outcome, ingress: u32) -> u32 {
    match outcome.reason.action() {
        Action::Pass => XDP_PASS,
        Action::Drop | Action::Consume => XDP_DROP,
        Action::Answer | Action::Deliver | Action::HandOff if outcome.way == ingress => XDP_TX,
        Action::Answer | Action::Deliver | Action::HandOff => XDP_REDIRECT,
    }
}

/// Budgets are per CPU.
fn stay_on_one_cpu() -> usize {
    // SAFETY: the set is plain bits; the kernel reads it, for this thread only.
    unsafe {
        let cpu = libc::sched_getcpu() as usize;
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
        cpu
    }
}
