//! How soon a crash is noticed, and how often one is noticed that did not happen.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_common::rank::bit;

use crate::{
    check::Check,
    cluster::{Cluster, READY_LIMIT, Shape},
    detection::Watch,
    hogs::Hogs,
    interrupt,
};

/// Crashes, each noticed by two survivors.
const CRASHES: u8 = 30;
/// How long a survivor may take before it counts as one that never noticed.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nobody dies, on a busy machine and a network that loses packets.
const QUIET: Duration = Duration::from_secs(600);
const SHAPE: Shape = Shape { balancers: 3, servers: 1, naive: false };

pub(super) fn detection() -> Result<Vec<Check>> {
    crashes((20, 5), 120.0)
}

pub(super) fn fast_detection() -> Result<Vec<Check>> {
    crashes((10, 3), 45.0)
}

fn crashes(probe: (u32, u32), bound: f64) -> Result<Vec<Check>> {
    let mut cluster = Cluster::start(SHAPE, |config| config.probe = probe)?;
    let mut noticed = Vec::new();
    for crash in 0..CRASHES {
        let victim = crash % 3 + 1;
        // At another moment between two probes each time.
        interrupt::pause(Duration::from_millis(100 + 7 * u64::from(crash)))?;
        let watch = Watch::start(cluster.others(victim), victim)?;
        let cut = cluster.cut(victim)?;
        interrupt::pause(Duration::from_millis(300))?;
        for after in watch.finish(cut).into_values() {
            noticed.push(after.unwrap_or(PATIENCE).as_secs_f64() * 1e3);
        }
        cluster.revive(victim)?;
        cluster.member(victim)?.wait_ready(READY_LIMIT).context("after a crash")?;
        cluster.wait_agreed()?;
    }
    noticed.sort_by(f64::total_cmp);
    let at = |part: f64| noticed.get(((noticed.len() - 1) as f64 * part).round() as usize).copied();
    let (all, median) = (noticed.len(), at(0.5).unwrap_or_default());
    Ok(vec![
        Check::new("crashes noticed", format!("{all}, half within {median:.0} ms"), "printed".to_owned(), all > 0),
        Check::ms_at_most("crash to liveness bit cleared, p99", at(0.99), bound),
    ])
}

pub(super) fn false_alarms() -> Result<Vec<Check>> {
    let cluster = Cluster::start(SHAPE, |_| ())?;
    cluster
        .topology
        .disturb(&["ip saddr 10.0.1.0/24 ip daddr 10.0.1.0/24 numgen random mod 100 < 1 drop".to_owned()])?;
    let hogs = Hogs::start()?;
    let all = cluster.members.iter().fold(0, |mask, member| mask | bit(member.id));
    let maps = cluster.members.iter().map(|member| member.tables().liveness_map()).collect::<Result<Vec<_>>>()?;
    let (began, mut alarms) = (Instant::now(), 0);
    let mut seen = vec![all; maps.len()];
    while began.elapsed() < QUIET {
        for (map, before) in maps.iter().zip(&mut seen) {
            let now = map.get(&0, 0)?.forwarding;
            // A bit that went stays away for a second: nothing is missed between two looks.
            alarms += u64::from((*before & !now).count_ones());
            *before = now;
        }
        interrupt::pause(Duration::from_millis(20))?;
    }
    drop(hogs);
    Ok(vec![
        Check::new("seconds under load", QUIET.as_secs().to_string(), "printed".to_owned(), true),
        Check::count_at_most("members taken for dead", alarms, 0),
    ])
}
