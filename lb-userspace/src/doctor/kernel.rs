//! The kernel, its file systems and its memory.

use std::{fs, path::Path};

use super::{Balancer, Examined, Finding, Mend, Unknown};
use crate::io::{attach, pins};

/// Kernel memory of a flow, IPv4 and IPv6, and of everything else that a member's maps take.
const FLOW_BYTES: [u64; 2] = [112, 136];
const OTHER_BYTES: u64 = 64 << 20;

pub(super) fn version() -> Examined {
    match attach::check_host() {
        Ok(()) => Ok(Vec::new()),
        Err(error) => {
            let mend = "a kernel of Linux 6.1 or later is what is tested; and run this as root";
            Ok(vec![Finding::new(error.to_string(), Mend::Say(mend.into()))])
        }
    }
}

/// Pins in anything else do not hold. The agent mounts one, too, but only for itself where it has a mount namespace of its own.
pub(super) fn bpffs(balancer: &Balancer) -> Examined {
    if pins::is_in_bpffs(&balancer.pins)? {
        return Ok(Vec::new());
    }
    let found =
        format!("{} is not in a BPF file system: no pin there would outlive the agent", balancer.pins.display());
    let is_usual = balancer.pins.starts_with(pins::BPFFS);
    let other = || Mend::Say(format!("choose a directory under {}, with --pin-dir", pins::BPFFS));
    Ok(vec![Finding::new(found, if is_usual { Mend::Bpffs } else { other() })])
}

/// Tables are taken whole at the start; a kernel without room for them refuses, or kills something else.
pub(super) fn memory(balancer: &Balancer) -> Examined {
    if has_pins(&balancer.pins) {
        return Ok(Vec::new());
    }
    let needed = OTHER_BYTES
        + balancer
            .outline
            .flows_max
            .iter()
            .zip(FLOW_BYTES)
            .map(|(flows, bytes)| u64::from(*flows) * bytes)
            .sum::<u64>();
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map(|kib| kib << 10);
    let available = available.ok_or_else(|| Unknown::because("/proc/meminfo does not tell"))?;
    if needed <= available {
        return Ok(Vec::new());
    }
    let found = format!("the tables take {} MiB and {} MiB are available", needed >> 20, available >> 20);
    Ok(vec![Finding::new(found, Mend::Say("lower node.flows_max and node.flows_v6_max".into()))])
}

fn has_pins(directory: &Path) -> bool {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    names.into_iter().any(|entry| pins::is_ours(&entry.file_name().to_string_lossy()))
}
