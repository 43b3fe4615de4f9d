//! What the kernel says of the program and the tables.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use lb_common::{
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6},
    maps::FLOWS_MAX,
};

use crate::{
    check::Check,
    cluster::{Cluster, Shape},
};

const INSTRUCTIONS_MAX: u64 = 100_000;
const BYTES_MAX: [(&str, usize, f64); 2] = [
    ("bytes of an IPv4 flow", size_of::<FlowKeyV4>(), 125.0),
    ("bytes of an IPv6 flow", size_of::<FlowKeyV6>(), 160.0),
];

pub(super) fn verifier() -> Result<Vec<Check>> {
    let cluster = Cluster::start(Shape { balancers: 1, servers: 1, naive: false }, |_| ())?;
    let pin = cluster.members[0].pins().join("prog");
    let program = ProgramInfo::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let count = program.verified_instruction_count().context("this kernel does not count them (5.16 and later do)")?;
    Ok(vec![Check::count_at_most("instructions walked", u64::from(count), INSTRUCTIONS_MAX)])
}

pub(super) fn memory() -> Result<Vec<Check>> {
    let check = |(name, key_bytes, bound)| {
        let bytes = memlock_of_flows(key_bytes)? as f64 / f64::from(FLOWS_MAX);
        Ok(Check::new(name, format!("{bytes:.1}"), format!("≤ {bound}"), bytes <= bound))
    };
    BYTES_MAX.into_iter().map(check).collect()
}

/// The memory that the kernel accounts for a flow table of the default size.
fn memlock_of_flows(key_bytes: usize) -> Result<u64> {
    /// `BPF_MAP_CREATE` and `BPF_MAP_TYPE_HASH` of linux/bpf.h.
    const MAP_CREATE: libc::c_long = 0;
    const HASH: u32 = 1;
    let attributes = [HASH, key_bytes as u32, size_of::<FlowEntry>() as u32, FLOWS_MAX];
    // SAFETY: the kernel reads the four fields that the given length covers, and takes the rest as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, attributes.as_ptr(), size_of_val(&attributes)) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot make a flow table (run as root)");
    }
    // SAFETY: the call answered with a descriptor that nobody else has.
    let map = unsafe { OwnedFd::from_raw_fd(result as i32) };
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = facts.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.context("the kernel does not say how much memory a map has")?.trim().parse().context("memlock")
}
