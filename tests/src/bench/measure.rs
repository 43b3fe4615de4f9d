//! How the rows are measured.
//!
//! * The program under test and one that does nothing take turns of 1,024 packets within one system call: what the
//!   harness costs is subtracted as it was in the same millisecond.
//! * Of the turns the lower quartile counts, of the rounds the median: `statistics` says why.
//! * A round measures every row of a number of flows once, those that are compared next to each other; no table holds more
//!   flows than that yet, but for those of SYNs.
//! * Before and after, a packet is sent alone and looked at; and every packet of Tandem's must be found in the one counter
//!   that its path ends with.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::bench::TURN;

use super::{
    against::{self, Against, Pace},
    harness::{FILLING, Harness, Shot, Target, USING, XDP_PASS, XDP_TX},
    live,
    matrix::{Case, Extent, Path, Row},
    packets::{ACK, Destination, Family, Packet, SYN, Segment},
    report::{LeftOut, Measured, Report},
    statistics::lower_quartile,
    tandem::{self, LOOPBACK, Setting, Tandem},
};
use crate::interrupt;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The harness's object.
    pub harness: PathBuf,
    /// Another program.
    pub against: Option<Against>,
    /// Where packets go.
    pub vip: Destination,
    /// The rows.
    pub extent: Extent,
    /// How often every row is measured.
    pub rounds: usize,
    /// The CPU to measure on.
    pub cpu: usize,
    /// With the first part: what a packet costs alone.
    pub cost: bool,
    /// With the second part: packets a second through real drivers.
    pub live: bool,
}

/// Clients that no table knows: those of SYNs, and those of new flows.
const STRANGERS: u32 = 1 << 21;
const NEWCOMERS: u32 = 1 << 22;

/// Turns of a row in a round.
const TURNS: u32 = 48;
/// Turns of a row that makes the other program record flows: what that records in a second is limited.
const TURNS_PACED: u32 = 16;
/// New flows at a time: few enough for the ring buffer that tells the agent of them.
const TURNS_NEW: u32 = 4;
/// How often in a round.
const BATCHES_NEW: usize = 8;

/// The sequence number of a SYN.
const SEQ: u32 = 1000;

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    take_cpu(options.cpu)?;
    let mut harness = Harness::load(&options.harness)?;
    if let Some(against) = &options.against {
        harness.set_target(Target::Against, &against::open(&against.pin)?)?;
    }
    let mut report = Report::default();
    if options.cost {
        costs(options, &mut harness, &mut report)?;
    }
    if options.live {
        report.live = live::run(options, &mut harness)?;
    }
    Ok(report)
}

/// The first part.
fn costs(options: &Options, harness: &mut Harness, report: &mut Report) -> Result<()> {
    let mut bench = Bench::new(options, harness)?;
    let (mut jobs, left_out) = bench.jobs(&options.extent.rows())?;
    let numbers: BTreeSet<u32> = jobs.iter().map(|job| job.row.flows).collect();
    let mut harness_ns = Vec::new();
    // Fewest first: a table is only ever filled.
    for flows in numbers {
        let mut jobs: Vec<&mut Job> = jobs.iter_mut().filter(|job| job.row.flows == flows).collect();
        bench.prepare(&jobs, flows)?;
        for round in 1..=options.rounds {
            eprintln!("{flows} flows, round {round} of {}: {} rows", options.rounds, jobs.len());
            bench.nothing.clear();
            for job in &mut jobs {
                interrupt::check()?;
                let ns = bench.measure(job).with_context(|| job.row.to_string())?;
                job.rounds_ns.push(ns);
            }
            harness_ns.extend(bench.nothing.values().flatten());
        }
    }
    report.harness_ns = lower_quartile(&harness_ns);
    report.left_out = left_out;
    report.rows = jobs
        .into_iter()
        .map(|job| Measured { row: job.row, frame_bytes: job.packet.frame.len(), rounds_ns: job.rounds_ns })
        .collect();
    Ok(())
}

/// A row that can be measured.
struct Job {
    row: Row,
    packet: Packet,
    setting: Option<Setting>,
    /// Packets sent so far: at a million flows no two rounds meet the same ones.
    sent: u32,
    rounds_ns: Vec<f64>,
}

struct Bench<'b> {
    options: &'b Options,
    harness: &'b mut Harness,
    /// Its flow table holds the flows that are measured.
    full: Tandem,
    /// Its flow table is empty.
    empty: Tandem,
    pace: Pace,
    /// What the harness alone took in this round, by layout and length of its packets.
    nothing: BTreeMap<(u32, usize), Vec<f64>>,
}

impl<'b> Bench<'b> {
    fn new(options: &'b Options, harness: &'b mut Harness) -> Result<Self> {
        let (full, empty) = (Tandem::load(options.vip, LOOPBACK)?, Tandem::load(options.vip, LOOPBACK)?);
        harness.set_target(Target::Balancer, full.program("balancer")?)?;
        harness.set_target(Target::EmptyBalancer, empty.program("balancer")?)?;
        harness.set_target(Target::Decap, full.program("decap")?)?;
        let pace = Pace::new(options.against.as_ref().map_or(u32::MAX, |against| against.pace));
        Ok(Self { options, harness, full, empty, pace, nothing: BTreeMap::new() })
    }

    /// Tells the rows that can be measured from those that cannot.
    fn jobs(&mut self, rows: &[Row]) -> Result<(Vec<Job>, Vec<LeftOut>)> {
        let (mut jobs, mut left_out) = (Vec::new(), Vec::new());
        for &row in rows {
            let setting = match tandem::setting(&row) {
                Ok(setting) => setting,
                Err(why) => {
                    left_out.push(LeftOut::new(row, why));
                    continue;
                }
            };
            let job = Job { row, packet: packet(&row, &self.options.vip), setting, sent: 0, rounds_ns: Vec::new() };
            if matches!(row.path, Path::Against(Case::Established | Case::Syn)) && !self.forwards(&job)? {
                left_out.push(LeftOut::new(row, "the other program does not forward them"));
                continue;
            }
            jobs.push(job);
        }
        Ok((jobs, left_out))
    }

    /// Whether the program encapsulates and sends a packet of the job.
    fn forwards(&mut self, job: &Job) -> Result<bool> {
        let (verdict, frame) = self.harness.sample(&shot(job))?;
        Ok(verdict == XDP_TX && frame.len() > job.packet.frame.len())
    }

    /// Fills the tables that the rows use with that many flows.
    fn prepare(&mut self, jobs: &[&mut Job], flows: u32) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let uses = |used: fn(Path) -> bool| jobs.iter().any(|job| job.row.family == family && used(job.row.path));
            if uses(|path| !matches!(path, Path::Floor | Path::Decap | Path::Against(_))) {
                eprintln!("recording {flows} {family} flows");
                self.full.fill(family, 0, flows)?;
            }
            if uses(|path| path == Path::Against(Case::Established)) {
                eprintln!("letting the other program record {flows} {family} flows");
                against::fill(self.harness, &mut self.pace, family, &self.options.vip, flows)?;
            }
        }
        Ok(())
    }

    /// One round of one row: nanoseconds a packet, without the harness.
    fn measure(&mut self, job: &mut Job) -> Result<f64> {
        match job.row.path {
            Path::New(_) => self.measure_new(job),
            _ => self.measure_stream(job),
        }
    }

    /// Packets that all meet the same end, any number of times.
    fn measure_stream(&mut self, job: &mut Job) -> Result<f64> {
        if let Some(setting) = job.setting {
            self.full.set(setting)?;
        }
        let turns = if job.row.path == Path::Against(Case::Syn) { TURNS_PACED } else { TURNS };
        if job.row.path == Path::Against(Case::Syn) {
            self.pace.take(turns * TURN)?;
        }
        self.look(job)?;
        let before = self.full.counted()?;
        let shot = shot(job);
        let took = self.harness.fire([Shot { target: Target::Nothing, ..shot }, shot], turns)?;
        if let Some(counter) = tandem::counter(job.row.path) {
            let expected = BTreeMap::from([(counter, u64::from(turns * TURN))]);
            ensure_counted(&before, &self.full.counted()?, &expected)?;
        }
        self.look(job)?;
        job.sent = job.sent.wrapping_add(turns * TURN);
        let nothing = lower_quartile(&took.first);
        self.nothing.entry((job.packet.layout, job.packet.frame.len())).or_default().push(nothing);
        Ok(lower_quartile(&took.second) - nothing)
    }

    /// Handshakes: turns of SYNs, and turns of the ACKs that make their flows known. These are what is measured; the
    /// flows are forgotten afterwards.
    fn measure_new(&mut self, job: &mut Job) -> Result<f64> {
        let (family, is_full) = (job.row.family, job.row.flows == tandem::CAPACITY);
        let (target, tandem) =
            if is_full { (Target::Balancer, &mut self.full) } else { (Target::EmptyBalancer, &mut self.empty) };
        tandem.set(job.setting.context("new flows are Tandem's")?)?;
        let flows = TURNS_NEW * TURN;
        if is_full {
            // Room for those to come.
            tandem.forget(family, 0, flows);
        }
        let syn = packet(&Row { path: Path::Syn(0), ..job.row }, &self.options.vip);
        let mut figures = Vec::new();
        for _ in 0..BATCHES_NEW {
            let syn =
                Shot { target, packet: &syn, clients: flows, base: NEWCOMERS, stride: FILLING, sent: 0, ifindex: 0 };
            let before = tandem.counted()?;
            figures.extend(self.harness.fire([syn, Shot { packet: &job.packet, ..syn }], TURNS_NEW)?.second);
            let expected = BTreeMap::from([
                (tandem::counter(Path::Syn(0)).unwrap_or_default(), u64::from(flows)),
                (tandem::counter(Path::New(0)).unwrap_or_default(), u64::from(flows)),
                // The SYN that stops the clock belongs to a flow that is known by then.
                (tandem::counter(Path::Established).unwrap_or_default(), 1),
            ]);
            ensure_counted(&before, &tandem.counted()?, &expected)?;
            let events = tandem.take_events();
            ensure!(events == flows as usize, "{events} events of {flows} new flows");
            tandem.forget(family, NEWCOMERS, flows);
        }
        if is_full {
            tandem.fill(family, 0, flows)?;
        }
        let key = (job.packet.layout, job.packet.frame.len());
        let nothing = self.nothing.get(&key).context("no row before this one has the same packets")?;
        Ok(lower_quartile(&figures) - lower_quartile(nothing))
    }

    /// Sends a packet alone, and looks at what the program made of it.
    fn look(&mut self, job: &Job) -> Result<()> {
        let (verdict, frame) = self.harness.sample(&shot(job))?;
        let (expected, is_moved) = match job.row.path {
            Path::Pass | Path::Against(Case::Pass) => (XDP_PASS, frame.len() == job.packet.frame.len()),
            Path::Decap => (XDP_PASS, frame.len() < job.packet.frame.len()),
            Path::FromPeer => (XDP_TX, frame.len() == job.packet.frame.len()),
            _ => (XDP_TX, frame.len() > job.packet.frame.len()),
        };
        if verdict != expected || !is_moved {
            bail!(
                "a frame of {} bytes ended as one of {} with XDP action {verdict}, not {expected}",
                job.packet.frame.len(),
                frame.len()
            );
        }
        Ok(())
    }
}

/// The packet of a row.
pub(super) fn packet(row: &Row, vip: &Destination) -> Packet {
    let (to, tcp) = match row.path {
        Path::Pass | Path::Against(Case::Pass) => (&Destination::ELSEWHERE, Segment { flags: ACK, seq: SEQ }),
        Path::Syn(_) | Path::Against(Case::Syn) => (vip, Segment { flags: SYN, seq: SEQ }),
        _ => (vip, Segment { flags: ACK, seq: SEQ + 1 }),
    };
    Packet::new(row.family, to, tcp, tandem::tunnel(row), row.bytes)
}

/// The next packets of a job.
fn shot(job: &Job) -> Shot<'_> {
    let target = match (job.row.path, job.row.family) {
        (Path::Nothing, _) => Target::Nothing,
        (Path::Floor, Family::V4) => Target::FloorV4,
        (Path::Floor, Family::V6) => Target::FloorV6,
        (Path::Decap, _) => Target::Decap,
        (Path::Against(_), _) => Target::Against,
        _ => Target::Balancer,
    };
    let base = if matches!(job.row.path, Path::Syn(_) | Path::Against(Case::Syn)) { STRANGERS } else { 0 };
    Shot { target, packet: &job.packet, clients: job.row.flows, base, stride: USING, sent: job.sent, ifindex: 0 }
}

fn ensure_counted(
    before: &BTreeMap<&'static str, u64>,
    after: &BTreeMap<&'static str, u64>,
    expected: &BTreeMap<&'static str, u64>,
) -> Result<()> {
    let counted: BTreeMap<&str, u64> = after
        .iter()
        .map(|(name, count)| (*name, count - before.get(name).unwrap_or(&0)))
        .filter(|(_, count)| *count != 0)
        .collect();
    ensure!(counted == *expected, "packets took another path: counted {counted:?}, not {expected:?}");
    Ok(())
}

/// Keeps this thread on one CPU and, as far as niceness goes, keeps others off it.
pub(super) fn take_cpu(cpu: usize) -> Result<()> {
    // SAFETY: a set of CPUs is an array of integers.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    ensure!(cpu < libc::CPU_SETSIZE as usize, "there is no CPU {cpu}");
    // SAFETY: the set has room for it.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads the set.
    let done = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    ensure!(done == 0, "there is no CPU {cpu}");
    // SAFETY: no memory is involved. Without the permission the figures are only noisier.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    Ok(())
}
