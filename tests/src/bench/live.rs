//! Packets per second through a real driver: what a packet costs once it also has to be received and sent.
//!
//! ```text
//!   namespace gen-N                     namespace lb-N
//!   generate -- XDP_REDIRECT --> gen ======= lb     the program under test, native XDP
//!   sink     <------------------ gen ======= lb <-- XDP_TX
//! ```
//!
//! `BPF_PROG_TEST_RUN` with live frames makes the packets; each core has a pair of interfaces and does all the work of
//! its packets. With a program that only sends them back, the rest of the way is measured alone.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    against::{self, Pace},
    harness::{Harness, Shot, Target, USING},
    matrix::{Case, Extent, Path, Row},
    measure::{self, Options},
    packets::{Family, Packet},
    report::LiveMeasured,
    statistics::lower_quartile,
    tandem::{self, Tandem},
};
use crate::{interrupt, netns::Namespace, passthrough, run::Run};

/// Index of the generating end in its namespace, and of the other in its own: the same on every core, so that one set of
/// tables serves all.
const GENERATOR: u32 = 6;
const BALANCER: u32 = 7;

/// Packets of one system call.
const BURST: u32 = 1 << 14;
/// Packets that are sent before any is received; the rings of a veth pair hold 256.
const BATCH: u32 = 64;
/// How long packets flow before they are counted.
const WARM_UP: Duration = Duration::from_millis(40);
/// How long they are counted at a time, and how often in a round.
const WINDOW: Duration = Duration::from_millis(20);
const WINDOWS: usize = 8;
/// Packets that the counters, read one after the other while packets come, may differ by: a part.
const TOLERANCE: f64 = 0.02;

/// Cores that a row is measured with.
const CORES: [usize; 2] = [1, 2];

/// Measures every row in every round.
pub(crate) fn run(options: &Options, harness: &mut Harness) -> Result<Vec<LiveMeasured>> {
    let lab = Lab::new(&lanes(options.cpu), harness)?;
    let mut tandem = Tandem::load(options.vip, BALANCER)?;
    let mut rows = rows(options, lab.lanes.len());
    for family in [Family::V4, Family::V6] {
        let is_known = |path| matches!(path, Path::Established | Path::HandOff | Path::Direct);
        if rows.iter().any(|live| live.row.family == family && is_known(live.row.path)) {
            tandem.fill(family, 0, tandem::CAPACITY)?;
        }
    }
    if let Some(against) = &options.against {
        lab.fill_against(options, harness, &rows, against.pace)?;
    }
    for round in 1..=options.rounds {
        eprintln!("live frames, round {round} of {}: {} rows", options.rounds, rows.len());
        for live in &mut rows {
            interrupt::check()?;
            let rate = lab
                .measure(options, harness, &mut tandem, &live.row, live.cores)
                .with_context(|| format!("{}, {} cores", live.row, live.cores))?;
            live.rounds_pps.push(rate);
        }
    }
    Ok(rows)
}

fn rows(options: &Options, cores_max: usize) -> Vec<LiveMeasured> {
    let paths =
        [Path::Nothing, Path::Floor, Path::Established, Path::Against(Case::Established), Path::HandOff, Path::Direct];
    let mut rows = Vec::new();
    let extent = Extent { curves: false, ..options.extent.clone() };
    for row in extent.rows_of(&paths) {
        if tandem::setting(&row).is_ok() && row.bytes == 64 {
            let cores = CORES.into_iter().filter(|cores| *cores <= cores_max);
            rows.extend(cores.map(|cores| LiveMeasured { row, cores, rounds_pps: Vec::new() }));
        }
    }
    rows
}

/// The CPU and, if there is one, a second: one even and one odd, because that is how the generators' courses are told apart.
fn lanes(cpu: usize) -> Vec<usize> {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let other = if cpu ^ 1 < cpus { Some(cpu ^ 1) } else { cpu.checked_sub(1) };
    std::iter::once(cpu).chain(other).collect()
}

/// One core's interfaces.
struct Lane {
    cpu: usize,
    generator: Arc<Namespace>,
    balancer: Arc<Namespace>,
    _sink: OwnedFd,
}

struct Lab {
    lanes: Vec<Lane>,
    // Last: its directories are removed after the namespaces.
    _run: Arc<Run>,
}

impl Lab {
    fn new(cpus: &[usize], harness: &Harness) -> Result<Self> {
        let run = Arc::new(Run::new()?);
        let sink = harness.program("sink")?.fd()?.as_fd();
        let lanes = cpus.iter().map(|&cpu| {
            let generator = Namespace::new(&run, &format!("gen{cpu}"))?;
            let balancer = Namespace::new(&run, &format!("lb{cpu}"))?;
            generator.ip(&[
                &format!(
                    "link add gen index {GENERATOR} type veth peer name lb index {BALANCER} netns {}",
                    balancer.name()
                ),
                "link set gen up",
            ])?;
            balancer.ip(&["link set lb up"])?;
            let sink = passthrough::attach_program(&generator, "gen", sink)?;
            Ok(Lane { cpu, generator, balancer, _sink: sink })
        });
        Ok(Self { lanes: lanes.collect::<Result<_>>()?, _run: run })
    }

    /// Lets the other program record all flows on every core: it may have a table for each.
    fn fill_against(&self, options: &Options, harness: &mut Harness, rows: &[LiveMeasured], pace: u32) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let path = Path::Against(Case::Established);
            if !rows.iter().any(|live| live.row.family == family && live.row.path == path) {
                continue;
            }
            for lane in &self.lanes {
                eprintln!("letting the other program record {} {family} flows on CPU {}", tandem::CAPACITY, lane.cpu);
                measure::take_cpu(lane.cpu)?;
                against::fill(harness, &mut Pace::new(pace), family, &options.vip, tandem::CAPACITY)?;
            }
        }
        measure::take_cpu(options.cpu)
    }

    /// Packets a second that came back.
    fn measure(
        &self,
        options: &Options,
        harness: &mut Harness,
        tandem: &mut Tandem,
        row: &Row,
        cores: usize,
    ) -> Result<f64> {
        if let Ok(Some(setting)) = tandem::setting(row) {
            tandem.set(setting)?;
        }
        let packet = measure::packet(row, &options.vip);
        let lanes = &self.lanes[..cores];
        harness.set_courses(&courses(row, &packet, lanes))?;
        let other;
        let program = match row.path {
            Path::Nothing => harness.program("nothing")?.fd()?.as_fd(),
            Path::Floor if row.family == Family::V4 => harness.program("floor_v4")?.fd()?.as_fd(),
            Path::Floor => harness.program("floor_v6")?.fd()?.as_fd(),
            Path::Against(_) => {
                other = against::open(&options.against.as_ref().context("no other program")?.pin)?;
                other.as_fd()
            }
            _ => tandem.program("balancer")?.as_fd(),
        };
        let _links = attach(lanes, program)?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let generators: Vec<_> =
                lanes.iter().map(|lane| scope.spawn(|| generate(lane, harness, &packet, &stop))).collect();
            let rate = observe(harness, tandem, row);
            stop.store(true, Ordering::Relaxed);
            for generator in generators {
                generator.join().map_err(|_panic| anyhow!("a generator panicked"))??;
            }
            rate
        })
    }
}

fn attach(lanes: &[Lane], program: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    lanes.iter().map(|lane| passthrough::attach_program(&lane.balancer, "lb", program)).collect()
}

/// Every core has its share of the clients, as a NIC that spreads flows over its queues would give it.
fn courses<'p>(row: &Row, packet: &'p Packet, lanes: &[Lane]) -> [Shot<'p>; 2] {
    let clients = (row.flows / lanes.len() as u32).max(1);
    let shot = |index: u32| Shot {
        target: Target::Nothing,
        packet,
        clients,
        base: if lanes.len() == 2 { index * clients } else { 0 },
        stride: USING,
        sent: 0,
        ifindex: GENERATOR,
    };
    [shot(0), shot(1)]
}

/// Sends bursts until it is told to stop.
fn generate(lane: &Lane, harness: &Harness, packet: &Packet, stop: &AtomicBool) -> Result<()> {
    lane.generator.within(|| {
        measure::take_cpu(lane.cpu)?;
        while !stop.load(Ordering::Relaxed) {
            harness.send_live(packet, BURST, BATCH)?;
        }
        Ok(())
    })
}

/// Waits until packets flow, and counts them for a while: packets a second in the windows that were disturbed least.
fn observe(harness: &Harness, tandem: &Tandem, row: &Row) -> Result<f64> {
    interrupt::pause(WARM_UP)?;
    let (first, counted) = (harness.arrived()?, tandem.counted()?);
    let (mut arrived, mut seconds_each) = (first, Vec::new());
    for _ in 0..WINDOWS {
        let (began, before) = (Instant::now(), arrived);
        interrupt::pause(WINDOW)?;
        arrived = harness.arrived()?;
        // Infinite if none came: on a busy machine others may have had the core.
        seconds_each.push(began.elapsed().as_secs_f64() / (arrived - before) as f64);
    }
    ensure!(arrived > first, "no packet came back");
    if let Some(counter) = tandem::counter(row.path) {
        ensure_path(&counted, &tandem.counted()?, counter, arrived - first)?;
    }
    Ok(1.0 / lower_quartile(&seconds_each))
}

/// All packets must have taken the path of the row, and come back.
fn ensure_path(
    before: &BTreeMap<&'static str, u64>,
    after: &BTreeMap<&'static str, u64>,
    counter: &str,
    arrived: u64,
) -> Result<()> {
    for (name, count) in after {
        let count = count - before.get(name).unwrap_or(&0);
        if *name == counter {
            let difference = count.abs_diff(arrived) as f64;
            ensure!(difference <= arrived as f64 * TOLERANCE, "{count} packets were counted, {arrived} came back");
        } else {
            ensure!(count == 0, "{count} packets were counted as {name}, not as {counter}");
        }
    }
    Ok(())
}
