//! `tandem doctor`: what is wrong with this host.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{Args, builder::PossibleValuesParser};
use serde::Serialize;

use super::{Exit, Failure, paint::Paint, place::Output, run::XdpMode};
use crate::{
    config::{self, Config, ConfigError, Host, Outline},
    doctor::{self, Balancer, Checked, Role, Server, Status},
    inspect::words::FORMAT_VERSION,
    io::netlink::Netlink,
    pinned,
};

/// Say what is wrong with this host, and what mends it
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem doctor                                     on a balancer, before the agent runs or while it does
  tandem doctor --fix                               and mend what can be mended without asking
  tandem doctor --server --vip 203.0.113.10         on a server
  tandem doctor --skip tunnel-mtu -o json | jq '.checks[] | select(.status == \"found\")'

Exit code 0: nothing was found, 5: something was. Without --fix nothing is changed; hosts that have not been heard of are sent one
empty datagram, so that the kernel looks for the next hop. What each check looks for, and why, is in docs/doctor.md.
")]
pub(super) struct Arguments {
    /// Mend what can be mended without asking, and say what was done; kernel settings last until the next boot
    #[arg(long)]
    fix: bool,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Leave a check out, whose finding is known; may be given several times
    #[arg(long, value_name = "ID", value_parser = PossibleValuesParser::new(doctor::ids()))]
    skip: Vec<String>,
    /// This host is a server behind the balancers
    #[arg(long, requires = "vip", conflicts_with_all = ["config", "node", "pin_dir", "state_dir", "xdp_mode"])]
    server: bool,
    /// The VIPs of this server
    #[arg(long, value_name = "ADDR", num_args = 1.., requires = "server")]
    vip: Vec<IpAddr>,
    /// Instead of node.interfaces, may be given several times; on a server, where the balancers' packets come in [default: the
    /// interface of the default route]
    #[arg(long, value_name = "IF")]
    interface: Vec<String>,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Which member this is; default: node.name of the file, else the host name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
    /// Where the number of starts and the member's key are kept
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_STATE_DIRECTORY)]
    state_dir: PathBuf,
    /// Who is to run the XDP program
    #[arg(long, value_enum, default_value_t = XdpMode::Native)]
    xdp_mode: XdpMode,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Report {
    format_version: u32,
    /// `ok` or `found`.
    verdict: &'static str,
    checks: Vec<Checked>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("the kernel cannot be asked: {error}"));
    let mut netlink = Netlink::open().map_err(failed)?;
    let role = if arguments.server { server(arguments, &mut netlink)? } else { balancer(arguments)? };
    let checks = doctor::examine(&role, &mut netlink, &arguments.skip, arguments.fix);
    let is_found = checks.iter().any(|check| check.status == Status::Found);
    let verdict = if is_found { "found" } else { "ok" };
    let report = Report { format_version: FORMAT_VERSION, verdict, checks };
    arguments.output.print(&report, |report| render(&report.checks, Paint::stdout()))?;
    Ok(if is_found { Exit::Degraded } else { Exit::Ok })
}

fn balancer(arguments: &Arguments) -> Result<Role, Failure> {
    let path: &Path = &arguments.config;
    let text = std::fs::read_to_string(path).map_err(|error| {
        let text = format!(
            "cannot read the configuration {}: {error}; on a server behind balancers: --server --vip ADDR...",
            path.display()
        );
        Failure::new(Exit::Configuration, text)
    })?;
    let host = Host {
        node: arguments.node.as_deref(),
        interfaces: &arguments.interface,
        state: &arguments.state_dir,
        ..Host::default()
    };
    let outline = Outline::of(&text, path, &host);
    let (config, node) = (path.to_owned(), arguments.node.clone());
    let (interfaces, state) = (arguments.interface.clone(), arguments.state_dir.clone());
    let problems = move || match Config::load(&config, node.as_deref(), &interfaces, &state) {
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.first().map(|first| (first.message().to_owned(), problems.len()))
        }
        Err(ConfigError::Unreadable { error, .. }) => Some((error, 1)),
        Ok(_) => None,
    };
    Ok(Role::Balancer(Box::new(Balancer {
        config: path.to_owned(),
        problems: Box::new(problems),
        outline,
        pins: arguments.pin_dir.clone(),
        state: arguments.state_dir.clone(),
        mode: arguments.xdp_mode.into(),
    })))
}

fn server(arguments: &Arguments, netlink: &mut Netlink) -> Result<Role, Failure> {
    let mut by_default = || {
        let route = netlink.default_route(true).ok()?.or_else(|| netlink.default_route(false).ok()?)?;
        Some(netlink.link_by_index(route.ifindex).ok()??.name)
    };
    let interface = match arguments.interface.as_slice() {
        [] => by_default().ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "this host has no default route; say where the balancers' packets come in: --interface IF",
            )
        })?,
        [one] => one.clone(),
        _ => return Err(Failure::new(Exit::Usage, "on a server --interface is given once")),
    };
    Ok(Role::Server(Server { vips: arguments.vip.clone(), interface }))
}

fn render(checks: &[Checked], paint: Paint) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, reason) = match check.status {
            Status::Ok => (paint.good("ok     "), None),
            Status::Found => {
                (paint.bad("found  "), check.reason.as_ref().map(|reason| format!("could not be mended: {reason}")))
            }
            Status::Mended => (paint.good("mended "), None),
            Status::Unknown => (paint.warning("unknown"), check.reason.clone()),
            Status::Skipped => (paint.warning("skipped"), None),
        };
        text += format!("{word}  {:<17}  {}", check.id, reason.unwrap_or_default()).trim_end();
        text.push('\n');
        for finding in &check.findings {
            text += &format!("           {}\n", finding.found);
            let verb = match (check.status, finding.mend.is_safe()) {
                (Status::Mended, _) => "did: ",
                (_, true) => "mend (--fix does it): ",
                (_, false) => "mend: ",
            };
            text += &format!("           {verb}{}\n", paint.bold(&finding.mend.to_string()));
        }
    }
    let found = checks.iter().filter(|check| check.status == Status::Found).count();
    let verdict = if found == 0 {
        paint.good("nothing is wrong")
    } else {
        paint.bad(&format!("{found} of {} checks found something", checks.len()))
    };
    text + "\n" + &verdict + "\n"
}
