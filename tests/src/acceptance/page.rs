//! The getting-started page, followed to the letter on five empty hosts: what it says to type is what is typed.

use std::{
    fs,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    check::Check,
    command, interrupt,
    member::binary,
    netns::Namespace,
    run::Run,
    system::System,
    topology::{CLIENT, Topology},
};

const PAGE: &str = include_str!("../../../docs/getting-started.md");
const BALANCERS: u8 = 3;
const SERVERS: u8 = 2;
const LIMIT: Duration = Duration::from_secs(30);
const REQUESTS: u16 = 40;

/// What a server serves, which is no matter of the page.
const WEB: &str =
    "mkdir -p /srv/web && cd /srv/web && touch healthz && hostname > index.html && exec python3 -m http.server 80";

pub(super) fn run() -> Result<Vec<Check>> {
    let run = Arc::new(Run::new()?);
    let mut topology = Topology::new(Arc::clone(&run))?;
    let tandem = binary()?;
    let boot = |name: &str, network: &Namespace| -> Result<System> {
        let system = System::boot(&run, name, network)?;
        // As the page says: the file is all there is to install.
        fs::copy(&tandem, system.path("/usr/local/bin/tandem")).context("cannot copy tandem")?;
        Ok(system)
    };
    let mut places = Vec::new();
    let (mut balancers, mut servers, mut running) = (Vec::new(), Vec::new(), Vec::new());
    for id in 1..=BALANCERS {
        let host = topology.add_balancer(id)?;
        balancers.push(boot(&host.name, &host.namespace)?);
        places.push(host);
    }
    for number in 1..=SERVERS {
        let host = topology.add_empty_server(number)?;
        servers.push(boot(&host.name, &host.namespace)?);
        places.push(host);
    }
    let mut typed = 0;

    for line in commands("**On lb1**")? {
        for word in line.split([';', '#']).map(str::trim).filter(|word| !word.is_empty() && !word.starts_with("mode")) {
            typed += 1;
            match word.strip_prefix("scp ") {
                Some(copy) => copy_between(copy, &balancers)?,
                None => shell(&balancers[0], word).map(drop)?,
            }
        }
    }
    let mut keys = Vec::new();
    for balancer in &balancers {
        for line in commands("**On each balancer**")? {
            typed += 1;
            keys.push(shell(balancer, &line)?);
        }
    }
    let config = config(&keys)?;
    for balancer in &balancers {
        balancer.write("/etc/tandem/tandem.toml", config.as_bytes())?;
    }
    for line in commands("**On each server**")? {
        for server in &servers {
            typed += 1;
            if line.starts_with("tandem decap") {
                running.push(start(server, &line)?);
                running.push(start(server, WEB)?);
                let serves = || server.succeeds("curl", &["--silent", "--fail", "http://203.0.113.10/healthz"]);
                ensure!(
                    interrupt::wait_until(LIMIT, Duration::from_millis(100), serves)?,
                    "{} does not serve",
                    server.name()
                );
            } else {
                shell(server, &line)?;
            }
        }
    }
    let (mut doctored, mut ran) = (0, 0);
    for line in commands("**The configuration**")?.iter().filter(|line| line.starts_with("tandem ")) {
        for balancer in &balancers {
            typed += 1;
            if line.starts_with("tandem run") {
                ran += 1;
                running.push(start(balancer, line)?);
            } else {
                shell(balancer, line)?;
                doctored += u64::from(line.starts_with("tandem doctor"));
            }
        }
    }
    ensure!(ran == u64::from(BALANCERS), "the page does not say how an agent is started");
    places[..usize::from(BALANCERS)].iter().try_for_each(|host| topology.announce(host))?;

    let is_ok = || balancers.iter().all(|balancer| balancer.succeeds("tandem", &["status"]));
    if !interrupt::wait_until(LIMIT, Duration::from_millis(100), is_ok)? {
        let status = balancers[0].ends("tandem", &["status"])?;
        bail!("`tandem status` is not ok:\n{}", String::from_utf8_lossy(&status.stdout));
    }
    let mut answered = [0_u64; SERVERS as usize];
    let mut explained = 0;
    for line in commands("**On the router**")? {
        if line.starts_with("curl") {
            for port in 0..REQUESTS {
                typed += 1;
                let mut curl = topology.client.command("sh");
                let said = command::run(
                    curl.args(["-c", &format!("{line} --silent --max-time 5 --local-port {}", 41_000 + port)]),
                )?;
                let server = servers_named(&said).with_context(|| format!("`{line}` answered {said:?}"))?;
                answered[server] += 1;
            }
        } else if line.starts_with("tandem explain") {
            typed += 1;
            shell(&balancers[0], &line.replace("CLIENT:PORT", &format!("{CLIENT}:41000")))?;
            explained += 1;
        } else {
            typed += 1;
            shell(&balancers[0], &line)?;
        }
    }
    for mut process in running {
        process.kill()?;
        process.wait()?;
    }
    Ok(vec![
        Check::count_at_least("commands of the page that worked", typed, 1),
        Check::count_at_least(
            "balancers that `tandem doctor` finds nothing wrong with",
            doctored,
            u64::from(BALANCERS),
        ),
        Check::count_at_least("requests answered by web-1", answered[0], 1),
        Check::count_at_least("requests answered by web-2", answered[1], 1),
        Check::count_at_least("requests answered", answered.iter().sum(), u64::from(REQUESTS)),
        Check::count_at_least("flows explained", explained, 1),
        Check::count_at_most("lines of the page", PAGE.lines().count() as u64, 60),
    ])
}

/// What the page says to type below the paragraph that begins so, up to the next bold one; without the remarks.
fn commands(heading: &str) -> Result<Vec<String>> {
    let below = PAGE.split_once(heading).with_context(|| format!("the page has no {heading}"))?.1;
    let section = below.split("\n**").next().unwrap_or_default();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    Ok(lines
        .map(|line| line.split("   #").next().unwrap_or(line).trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .collect())
}

/// The configuration of the page, with what it says that is to be filled in.
fn config(keys: &[String]) -> Result<String> {
    let lines = commands("**The configuration**")?;
    let text: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.starts_with("tandem ")).collect();
    let text = text.join("\n");
    let begin = text.find("[[cluster.member]]").context("no member in the configuration")?;
    let end = text.find("[node]").context("no node in the configuration")?;
    let first = &text[begin..end];
    let mut members = String::new();
    for (number, key) in keys.iter().enumerate() {
        let id = number + 1;
        let member = first.replace("id = 1", &format!("id = {id}")).replace("lb1", &format!("lb{id}"));
        let member = member.replace("10.0.1.11", &format!("10.0.1.{}", 10 + id));
        ensure!(member.contains("public_key = \"...\""), "no key to be filled in: {member}");
        members += &member.replace("public_key = \"...\"", key.trim());
    }
    Ok(format!("{}{members}{}\n", &text[..begin], &text[end..]))
}

/// `scp FILE HOST:DIRECTORY` without a network: no ssh is set up on the hosts.
fn copy_between(copy: &str, hosts: &[System]) -> Result<()> {
    let (file, to) = copy.trim().split_once(' ').context("scp FILE HOST:DIRECTORY")?;
    let (name, directory) = to.trim().split_once(':').context("HOST:DIRECTORY")?;
    let host = hosts.iter().find(|host| host.name() == name).with_context(|| format!("there is no host {name}"))?;
    let base = file.rsplit('/').next().unwrap_or(file);
    host.write(&format!("{directory}{base}"), &fs::read(hosts[0].path(file))?)
}

fn servers_named(said: &str) -> Option<usize> {
    said.trim().strip_prefix("web-")?.parse::<usize>().ok()?.checked_sub(1).filter(|at| *at < usize::from(SERVERS))
}

/// Types a line on a host.
fn shell(host: &System, line: &str) -> Result<String> {
    host.run("sh", &["-c", line])
}

/// Types a line whose command stays in the foreground.
fn start(host: &System, line: &str) -> Result<Child> {
    let mut command = host.command("sh");
    let log = fs::File::create(host.path("/var/log/").join(format!("{}.log", line.len())))?;
    command.args(["-c", line]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {line}"))
}
