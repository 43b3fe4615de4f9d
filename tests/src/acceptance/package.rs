//! The Debian package on three hosts that run systemd: what installing, starting, upgrading and removing it does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    check::Check,
    cluster::{Cluster, Shape},
    command, interrupt,
    run::Run,
    system::System,
    topology::INTERFACE,
    traffic::{
        datagrams::{Pace, Stream},
        load::{Load, Plan},
    },
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const CONNECTIONS: usize = 1000;
const PACE: Pace = Pace { flows: 64, per_second: 2_000, bytes: 64 };
const LIMIT: Duration = Duration::from_secs(60);
const VERSIONS: [&str; 2] = ["0.0.9", "0.1.0"];
const CONFIG: &str = "/etc/tandem/tandem.toml";
const HASH_KEY: &str = "/etc/tandem/hash.key";

pub(super) fn run() -> Result<Vec<Check>> {
    let run = Run::new()?;
    let [old, new] = VERSIONS.map(|version| package(&run, version));
    let (old, new) = (old?, new?);
    let mut cluster = Cluster::build(Shape { balancers: 3, servers: 4, naive: false }, |_| ())?;
    let hash_key = fs::read(&cluster.config.key_file)?;
    cluster.config.key_file = HASH_KEY.into();
    let config = cluster.config.render();
    let mut hosts = Vec::new();
    for member in &cluster.members {
        let host = System::boot(&run, member.name(), &member.host.namespace)?;
        install(&host, &old)?;
        hosts.push((host, member.state().to_owned()));
    }
    let mut checks = vec![
        Check::count_at_most("attached after the installation", attached(&hosts[0].0)?, 0),
        Check::count_at_most("pins after the installation", pins(&hosts[0].0), 0),
    ];
    for (host, state) in &hosts {
        host.write(HASH_KEY, &hash_key)?;
        host.write("/var/lib/tandem/member.key", &fs::read(state.join("member.key"))?)?;
        host.write(CONFIG, config.as_bytes())?;
        service(host, "enable")?;
        service(host, "start")?;
    }
    hosts.iter().try_for_each(|(host, _)| wait_well(host))?;
    for position in 0..cluster.members.len() {
        let host = cluster.members[position].host.clone();
        cluster.topology.announce(&host)?;
    }

    let load = Load::start(&cluster.topology.client, Plan { shorts_per_second: 50, ..Plan::mixed(CONNECTIONS) })?;
    load.wait_open(LIMIT)?;
    let stream = Stream::start(&cluster.topology.client, PACE)?;
    for (host, _) in &hosts {
        let before = host.run("systemctl", &["show", "--property=MainPID", "tandem"])?;
        install(host, &new)?;
        let after = host.run("systemctl", &["show", "--property=MainPID", "tandem"])?;
        ensure!(before != after, "the upgrade did not restart the agent: {before}");
        wait_well(host)?;
    }
    // A reload of a good file and of a bad one; then a restart as an operator does it, one host after the other.
    let (first, _) = &hosts[0];
    service(first, "reload")?;
    first.write(CONFIG, b"version = 1\n[cluster]\nname = 7\n")?;
    let refused = !first.succeeds("systemctl", &["reload", "tandem"]);
    let goes_on = first.succeeds("systemctl", &["is-active", "--quiet", "tandem"]);
    first.write(CONFIG, config.as_bytes())?;
    for (host, _) in &hosts {
        service(host, "restart")?;
        wait_well(host)?;
    }
    let tally = stream.finish()?;
    load.wake_idle();
    interrupt::pause(Duration::from_secs(2))?;
    let ledger = load.finish();
    let shorts = ledger.shorts();
    checks.extend([
        Check::count_at_least("connections", ledger.long().len() as u64, CONNECTIONS as u64),
        Check::count_at_most("connections broken", ledger.broken().len() as u64, 0),
        Check::count_at_most("short connections broken", shorts.broken.len() as u64, 0),
        Check::count_at_most("handshakes failed", shorts.handshakes_failed, 0),
        Check::new("datagrams lost", format!("{} of {}", tally.lost(), tally.sent), "0".to_owned(), tally.lost() == 0),
        Check::count_at_most("reloads of an invalid file not refused", u64::from(!(refused && goes_on)), 0),
    ]);

    first.run("dpkg", &["--remove", "tandem"])?;
    let routes = first.run("ip", &["route", "show", "table", "all"])?.matches("blackhole").count() as u64;
    let left = String::from_utf8_lossy(&first.ends("pgrep", &["--exact", "tandem"])?.stdout).lines().count() as u64;
    checks.extend([
        Check::count_at_most("attached after the removal", attached(first)?, 0),
        Check::count_at_most("pins after the removal", pins(first), 0),
        Check::count_at_most("processes after the removal", left, 0),
        Check::count_at_most("blackhole routes after the removal", routes, 0),
    ]);
    Ok(checks)
}

/// The package under a version number.
fn package(run: &Run, version: &str) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["xtask", "deb", "--package-version", version]).current_dir(ROOT).stdin(Stdio::null());
    let built = command::run(&mut command)?;
    let kept = run.files().join(format!("tandem-{version}.deb"));
    fs::copy(built.trim(), &kept).with_context(|| format!("cannot copy {built}"))?;
    Ok(kept)
}

fn install(host: &System, package: &Path) -> Result<()> {
    host.write("/root/tandem.deb", &fs::read(package)?)?;
    host.run("dpkg", &["--force-confold", "--install", "/root/tandem.deb"]).map(drop)
}

/// `systemctl VERB tandem`.
fn service(host: &System, verb: &str) -> Result<()> {
    host.run("systemctl", &[verb, "tandem"]).map(drop).with_context(|| journal(host))
}

/// What systemd and the agent say of the unit.
fn journal(host: &System) -> String {
    let said = [
        ("systemctl", &["--no-pager", "--full", "status", "tandem"][..]),
        ("journalctl", &["--no-pager", "--lines=30"]),
    ];
    let said =
        said.map(|(program, arguments)| host.ends(program, arguments).map(|output| output.stdout).unwrap_or_default());
    String::from_utf8_lossy(&said.concat()).into_owned()
}

/// Until `tandem status` finds nothing wrong.
fn wait_well(host: &System) -> Result<()> {
    let came = interrupt::wait_until(LIMIT, Duration::from_millis(50), || host.succeeds("tandem", &["status"]))?;
    if !came {
        let status = String::from_utf8(host.ends("tandem", &["status"])?.stdout)?;
        bail!("not well after {LIMIT:?}:\n{status}\n{}", journal(host));
    }
    Ok(())
}

fn attached(host: &System) -> Result<u64> {
    Ok(host.run("ip", &["link", "show", "dev", INTERFACE])?.matches("prog/xdp").count() as u64)
}

fn pins(host: &System) -> u64 {
    fs::read_dir(host.path("/sys/fs/bpf/tandem")).map_or(0, |pins| pins.count() as u64)
}
