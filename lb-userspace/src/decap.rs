//! `tandem decap`: takes the outer header off packets from the balancers, on a server without a tunnel device; and there
//! lowers the segment size that clients are told, where the links have no room for the outer header.

mod mss;
mod prefix;

use std::{io::Write as _, net::IpAddr};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray},
    programs::tc::SchedClassifierLink,
};
use lb_common::{
    address::Address,
    clamp::{self, CLAMP_COUNTERS, CLAMP_MSS},
    decap::{self, DECAP_COUNTERS, DECAP_ENTRIES, DECAP_FROM, DECAP_VIPS},
    node::V6,
    packet::{IPV4, IPV6},
    reason::Counter,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

pub use self::{
    mss::{Mss, NoMss, TooNarrow},
    prefix::{Prefix, PrefixError, Vip, VipError},
};
use crate::{
    config::MultiBuffer,
    io::{
        attach::{self, Mode},
        datapath::{self, DatapathError, Entry},
        egress,
        netlink::Netlink,
        supervisor::{Supervisor, Word},
    },
};

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The interface that packets from balancers come in by.
    pub interface: String,
    /// Where the balancers are.
    pub from: Vec<Prefix>,
    /// For which addresses.
    pub vips: Vec<Vip>,
    /// The largest segment size that SYNs from the VIPs may name, if there is a bound.
    pub mss: Option<Mss>,
    /// The interface that answers leave by, if it is another one.
    pub egress: Option<String>,
    /// How the program is attached.
    pub mode: Mode,
}

/// Packets of one outcome since the program was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The program: `decap` or `clamp`.
    pub program: &'static str,
    /// What it did with them.
    pub outcome: &'static str,
    /// How many, summed over the CPUs.
    pub counter: Counter,
}

/// Attaches the programs, prints "ready", and detaches them at SIGTERM or SIGINT; at SIGUSR1 and in the end `report`s what
/// became of the packets.
///
/// # Errors
///
/// A program cannot be loaded or attached; packets are then treated as before.
pub fn run(options: &Options, report: impl Fn(&[Count])) -> anyhow::Result<()> {
    anyhow::ensure!(!options.from.is_empty(), "--from needs at least one prefix");
    anyhow::ensure!(!options.vips.is_empty(), "--vip needs at least one address");
    for (option, given) in [("--from", options.from.len()), ("--vip", options.vips.len())] {
        anyhow::ensure!(given <= DECAP_ENTRIES as usize, "{option} takes at most {DECAP_ENTRIES}");
    }
    anyhow::ensure!(options.mss.is_some() || options.egress.is_none(), "--egress is where --mss works: it needs --mss");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(attached(options, report))
}

async fn attached(options: &Options, report: impl Fn(&[Count])) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut ask = signal(SignalKind::user_defined1())?;
    let mut netlink = Netlink::open()?;
    // Asked before anything is loaded, and again by attaching.
    let way_in = attach::unoccupied(&mut netlink, &options.interface)?;
    let name = Entry::of(MultiBuffer::Auto, options.mode, way_in.mtu).decap();
    let mut ebpf = datapath::load_decap(name, options.mss.is_some())?;
    fill(&mut ebpf, options)?;
    options.vips.iter().try_for_each(|vip| check_held(&mut netlink, vip.address()))?;
    let egress = clamp(&mut ebpf, options, &mut netlink, way_in.mtu)?;
    let counters = Counters::of(&mut ebpf, egress.is_some())?;
    let program = datapath::program(&mut ebpf, name)?;
    let link = attach::attach_unpinned(&mut netlink, &options.interface, program, options.mode)?;
    println!("ready");
    std::io::stdout().flush()?;
    let supervisor = Supervisor::new()?;
    supervisor.tell(Word::Ready);
    loop {
        tokio::select! {
            _ = ask.recv() => report(&counters.read()?),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop((link, egress));
    info!(interface = options.interface, "detached");
    report(&counters.read()?);
    Ok(())
}

fn fill(ebpf: &mut Ebpf, options: &Options) -> Result<(), DatapathError> {
    let mut from: LpmTrie<MapData, Address, u32> = datapath::take(ebpf, DECAP_FROM)?;
    for prefix in &options.from {
        let inserted = from.insert(&prefix.key(), prefix.family() as u32, 0);
        inserted.map_err(|error| DatapathError::Map { name: DECAP_FROM, error })?;
    }
    let mut vips: HashMap<MapData, Address, u32> = datapath::take(ebpf, DECAP_VIPS)?;
    for vip in &options.vips {
        let inserted = vips.insert(vip.key(), vip.family() as u32, 0);
        inserted.map_err(|error| DatapathError::Map { name: DECAP_VIPS, error })?;
    }
    Ok(())
}

/// What loses its outer header goes on to this host's own stack, which must hold the VIP to take it.
fn check_held(netlink: &mut Netlink, vip: IpAddr) -> anyhow::Result<()> {
    if !netlink.route(vip)?.is_some_and(|route| route.local) {
        let bits = if vip.is_ipv4() { 32 } else { 128 };
        warn!("this host does not hold {vip}: `ip addr add {vip}/{bits} dev lo`");
    }
    Ok(())
}

/// Attaches the clamp, if it is wanted.
fn clamp(
    ebpf: &mut Ebpf,
    options: &Options,
    netlink: &mut Netlink,
    mtu: u32,
) -> anyhow::Result<Option<SchedClassifierLink>> {
    let Some(mss) = options.mss else { return Ok(None) };
    let outer = if options.from.iter().any(|prefix| prefix.family() == V6) { IPV6 } else { IPV4 };
    let bounds = mss.bounds(mtu, outer).with_context(|| format!("--mss {mss} on {}", options.interface))?;
    let mut map: Array<MapData, u32> = datapath::take(ebpf, CLAMP_MSS)?;
    for (family, bound) in (0..).zip(bounds) {
        map.set(family, u32::from(bound), 0).map_err(|error| DatapathError::Map { name: CLAMP_MSS, error })?;
    }
    let interface = options.egress.as_ref().unwrap_or(&options.interface);
    netlink.link_by_name(interface)?.with_context(|| format!("there is no interface {interface}"))?;
    let link = egress::attach(datapath::clamp(ebpf)?, interface)
        .with_context(|| format!("cannot attach the clamp to what leaves {interface}"))?;
    let [v4, v6] = bounds;
    info!(interface, v4, v6, "SYNs from the VIPs name no larger segments");
    Ok(Some(link))
}

/// The programs' counters.
struct Counters {
    decap: PerCpuArray<MapData, Counter>,
    clamp: Option<PerCpuArray<MapData, Counter>>,
}

impl Counters {
    fn of(ebpf: &mut Ebpf, has_clamp: bool) -> Result<Self, DatapathError> {
        let clamp = has_clamp.then(|| datapath::take(ebpf, CLAMP_COUNTERS)).transpose()?;
        Ok(Self { decap: datapath::take(ebpf, DECAP_COUNTERS)?, clamp })
    }

    fn read(&self) -> Result<Vec<Count>, DatapathError> {
        let mut counts = Vec::new();
        for outcome in decap::Outcome::ALL {
            let counter = sum(&self.decap, DECAP_COUNTERS, outcome as u32)?;
            counts.push(Count { program: "decap", outcome: outcome.name(), counter });
        }
        if let Some(map) = &self.clamp {
            for outcome in clamp::Outcome::ALL {
                let counter = sum(map, CLAMP_COUNTERS, outcome as u32)?;
                counts.push(Count { program: "clamp", outcome: outcome.name(), counter });
            }
        }
        Ok(counts)
    }
}

fn sum(map: &PerCpuArray<MapData, Counter>, name: &'static str, index: u32) -> Result<Counter, DatapathError> {
    let values = map.get(&index, 0).map_err(|error| DatapathError::Map { name, error })?;
    Ok(values.iter().fold(Counter { packets: 0, bytes: 0 }, |sum, value| Counter {
        packets: sum.packets + value.packets,
        bytes: sum.bytes + value.bytes,
    }))
}
