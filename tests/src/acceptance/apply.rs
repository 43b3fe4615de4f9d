//! How soon a large change is in effect everywhere, and what becomes of the traffic meanwhile.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    check::Check,
    cluster::{Cluster, Shape},
    config::{Backend, Config, Service},
    interrupt,
    member::{self, Member},
    topology::VIP,
    traffic::load::{Load, Plan},
};

const SERVICES: u16 = 1_000;
const BACKENDS_EACH: u16 = 10;
const IN_EFFECT_MAX_MS: f64 = 1_000.0;
/// A cold start fills all tables.
const START_LIMIT: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run() -> Result<Vec<Check>> {
    let mut cluster = Cluster::build(Shape { balancers: 3, servers: 3, naive: false }, |_| ())?;
    add_services(&mut cluster.config);
    cluster.write_config()?;
    cluster.members.iter_mut().try_for_each(Member::keep_own_config)?;
    cluster.members.iter_mut().try_for_each(Member::start)?;
    cluster.members.iter_mut().try_for_each(|member| member.wait_ready(START_LIMIT))?;
    cluster.wait_agreed()?;
    cluster.members.iter().try_for_each(|member| cluster.topology.announce(&member.host))?;
    let load = Load::start(&cluster.topology.client, Plan { shorts_per_second: 100, ..Plan::mixed(200) })?;
    load.wait_open(Duration::from_secs(30))?;
    interrupt::pause(Duration::from_secs(1))?;

    let epochs = |cluster: &Cluster| -> Result<Vec<u32>> {
        cluster.members.iter().map(|member| Ok(member.tables().liveness()?.epoch)).collect()
    };
    let before = epochs(&cluster)?;
    // One backend of every service, the one with the traffic among them.
    for service in &mut cluster.config.services {
        service.backends[0].drain = true;
    }
    let first = &cluster.members[0];
    let draft = first.state().join("draft.toml");
    fs::write(&draft, cluster.config.render()).context("cannot write the change")?;
    let mut apply = first.host.namespace.command(member::binary()?);
    apply.args(["config", "apply"]).arg(&draft).arg("--socket").arg(first.socket());
    let began = Instant::now();
    let stored = applied(&mut apply, began)?;
    let mut in_effect = None;
    let is_everywhere = || epochs(&cluster).is_ok_and(|now| now.iter().zip(&before).all(|(now, before)| now > before));
    if interrupt::wait_until(LIMIT, Duration::from_millis(1), is_everywhere)? {
        in_effect = Some(began.elapsed().as_secs_f64() * 1e3);
    }
    interrupt::pause(Duration::from_secs(1))?;
    load.wake_idle();
    interrupt::pause(Duration::from_secs(1))?;
    let ledger = load.finish();
    let shorts = ledger.shorts();
    Ok(vec![
        Check::ms_at_most("apply to stored at the member asked", Some(stored), IN_EFFECT_MAX_MS),
        Check::ms_at_most("apply to in effect at all three members", in_effect, IN_EFFECT_MAX_MS),
        Check::count_at_most("connections broken, of 200 and the short ones", ledger.broken().len() as u64, 0),
        Check::count_at_most("handshakes that failed", shorts.handshakes_failed, 0),
        Check::count_at_least("short connections that were right", shorts.done, 200),
    ])
}

/// Runs the command; how long after `began` it was done.
fn applied(apply: &mut Command, began: Instant) -> Result<f64> {
    let output = apply.output().context("cannot run tandem")?;
    if !output.status.success() {
        bail!("tandem config apply: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Services on ports of the VIP; their servers are behind the router, which has no way to them.
fn add_services(config: &mut Config) {
    for service in 0..SERVICES - 1 {
        let backend = |number: u16| {
            let [high, low] = (service * BACKENDS_EACH + number + 1).to_be_bytes();
            let address: IpAddr = Ipv4Addr::new(10, 9, high, low).into();
            Backend { name: format!("server-{number}"), address, drain: false }
        };
        config.services.push(Service {
            name: format!("service-{service}"),
            vip: vec![format!("{VIP}:{}/tcp", 1_000 + service)],
            affinity: None,
            health: None,
            backends: (0..BACKENDS_EACH).map(backend).collect(),
        });
    }
}
