//! `tandem config diff|apply|confirm|rollback`: what runs, and how it becomes something else.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use hyper::Method;
use serde::Serialize;
use serde_json::Value as Json;

use super::read;
use crate::{
    cli::{Exit, Failure, drain::Socket, place::Output},
    config::{self, Config, Difference, differences, with_drains},
    control::{
        api::{Applied, Apply, Backend, Backends, ConfigState, ConfigText},
        client::ask,
    },
    inspect::words::FORMAT_VERSION,
    io::trial,
};

/// How often it is looked whether a change is in effect.
const INTERVAL: Duration = Duration::from_millis(20);

/// Say in what a file differs from what runs
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem config diff                     what `tandem config apply` would change
  tandem config diff new.toml -o json
  tandem config diff --save              write what is drained by hand into the file, as `drain = true`

A line of what runs begins with -, a line of the file with +. Drains by hand are differences, too: they are kept beside the
file. Exit code 0: no difference, 5: there are some. Changes nothing but the file, and that only with --save.
")]
pub(super) struct Diff {
    /// The file
    #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
    file: PathBuf,
    /// Write what is drained by hand into the file; comments stay
    #[arg(long)]
    save: bool,
    #[command(flatten)]
    socket: Socket,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Have the agents take over a file, at all members
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem config apply                            /etc/tandem/tandem.toml, as it was just edited
  tandem config apply new.toml --wait            until it is in effect everywhere
  tandem config apply --confirm 60s              goes back by itself unless `tandem config confirm` comes first

The agent checks the file and says everything that is wrong with it (exit code 4); then it puts it in the place of its own, with the
next generation, and the other members get it over their sessions, without [node] and hash_key_file, which stay each
member's own. A member that is down gets it when it is back.
")]
pub(super) struct ApplyArguments {
    /// The file
    #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
    file: PathBuf,
    /// Go back after this time unless it is confirmed; also when an agent dies meanwhile
    #[arg(long, value_name = "TIME", value_parser = trial_time)]
    confirm: Option<Duration>,
    /// Wait until it is in effect at all members that are there
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this time (exit code 6); the change goes on
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Duration,
    /// Also when the file is of an earlier generation than what runs
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    socket: Socket,
}

/// Keep what is on trial
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem config confirm                  on any member
")]
pub(super) struct Confirm {
    #[command(flatten)]
    socket: Socket,
}

/// Go back to what ran before what is on trial
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem config rollback                 on any member

What was tried is kept beside the file, as FILE.undone.
")]
pub(super) struct Rollback {
    #[command(flatten)]
    socket: Socket,
}

/// What `diff -o json` prints.
#[derive(Serialize)]
struct Report {
    /// Raised when a field changes its meaning or goes.
    format_version: u32,
    /// What runs here, and at the others.
    running: ConfigState,
    /// In what the file differs.
    differences: Vec<Difference>,
    /// What operators have drained beside what the file says.
    drained_by_hand: Vec<Drained>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Drained {
    service: String,
    backend: String,
}

pub(super) fn diff(arguments: &Diff) -> Result<Exit, Failure> {
    let socket = &arguments.socket.socket;
    let file = read(&arguments.file)?;
    Config::check_text(&file, &arguments.file)?;
    let ConfigText { text } = ask(socket, Method::GET, "/v1/config/text", None::<&()>)?;
    let running: ConfigState = ask(socket, Method::GET, "/v1/config", None::<&()>)?;
    let Backends { backends } = ask(socket, Method::GET, "/v1/backends", None::<&()>)?;
    let by_hand = |backend: &&Backend| backend.drained && !is_drained(&file, backend);
    let drained =
        backends.iter().filter(by_hand).map(|b| Drained { service: b.service.clone(), backend: b.name.clone() });
    let mut drained: Vec<Drained> = drained.collect();
    drained.sort();
    drained.dedup();
    if arguments.save {
        return save(arguments, &file, &drained);
    }
    let report = Report {
        format_version: FORMAT_VERSION,
        running,
        differences: differences(&text, &file),
        drained_by_hand: drained,
    };
    arguments.output.print(&report, render)?;
    let others = report.running.members.iter().any(|member| member.generation.is_some() && !member.same);
    let is_same = report.differences.is_empty() && report.drained_by_hand.is_empty() && !others;
    Ok(if is_same { Exit::Ok } else { Exit::Degraded })
}

/// Whether `file` drains it itself.
fn is_drained(file: &str, backend: &Backend) -> bool {
    let wanted = [(backend.service.clone(), backend.name.clone())];
    // Nothing to write: it says so, or has no such backend.
    with_drains(file, &wanted).is_ok_and(|(_, written)| written == 0)
}

fn save(arguments: &Diff, file: &str, drained: &[Drained]) -> Result<Exit, Failure> {
    let path = arguments.file.display();
    let drained: Vec<_> = drained.iter().map(|drained| (drained.service.clone(), drained.backend.clone())).collect();
    let failed = |error: String| Failure::new(Exit::Failed, format!("{path}: {error}; nothing was changed"));
    let (text, written) = with_drains(file, &drained).map_err(|error| failed(error.to_string()))?;
    if written == 0 {
        eprintln!("nothing is drained by hand that {path} does not drain");
        return Ok(Exit::Ok);
    }
    trial::replace(&arguments.file, &text).map_err(|error| failed(error.to_string()))?;
    eprintln!("{path}: {written} backends with `drain = true`; `tandem config apply` lets the members have it");
    Ok(Exit::Ok)
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for Difference { setting, running, file } in &report.differences {
        for (sign, value) in [('-', running), ('+', file)] {
            if let Some(value) = value {
                text += &format!("{sign} {setting} = {}\n", short(value));
            }
        }
    }
    for Drained { service, backend } in &report.drained_by_hand {
        text += &format!("- service[{service}].backends[{backend}].drain = true (by hand)\n");
    }
    let (generation, hash) = (report.running.generation, &report.running.hash);
    for member in report.running.members.iter().filter(|member| !member.same) {
        let name = &member.name;
        text += &match (&member.generation, &member.hash, &member.refuses) {
            (_, _, Some(why)) => {
                format!("! {name} does not take over generation {generation}, which runs here: {why}\n")
            }
            (Some(other), Some(other_hash), None) => {
                format!(
                    "! {name} runs generation {other} (hash {other_hash}), and here runs {generation} (hash {hash})\n"
                )
            }
            _ => format!("? {name} has no session with this member\n"),
        };
    }
    text
}

/// A table as its name and address, which is enough to know it by; anything else as it is.
fn short(value: &Json) -> String {
    match (value, value.get("address"), value.get("vip")) {
        (Json::Object(_), Some(at), _) | (Json::Object(_), None, Some(at)) => format!("{{ {at}, ... }}"),
        _ => value.to_string(),
    }
}

pub(super) fn apply(arguments: &ApplyArguments) -> Result<Exit, Failure> {
    let text = read(&arguments.file)?;
    // With the file's own name beside what is wrong; what only the agent's host knows comes from there.
    Config::check_text(&text, &arguments.file)?;
    let order = Apply { text, confirm_s: arguments.confirm.map(|time| time.as_secs()), force: arguments.force };
    let socket = &arguments.socket;
    let applied: Applied = ask(&socket.socket, Method::PUT, "/v1/config", Some(&order))?;
    let Applied { generation, has_changed, trial_s } = applied;
    if has_changed {
        eprintln!("generation {generation} of the configuration is stored here, and takes effect");
    } else {
        eprintln!("nothing to change: that is what runs, as generation {generation}");
    }
    if let Some(time) = trial_s {
        let time = humantime::format_duration(Duration::from_secs(time));
        eprintln!("on trial for {time}: `tandem config confirm` keeps it, else what ran before comes back by itself");
    }
    if !arguments.wait {
        return Ok(Exit::Ok);
    }
    wait(socket, generation, arguments.timeout)
}

/// Waits until `generation` is in effect at every member that has a session with the one that is asked.
fn wait(socket: &Socket, generation: u64, limit: Duration) -> Result<Exit, Failure> {
    let began = Instant::now();
    loop {
        let state: ConfigState = ask(&socket.socket, Method::GET, "/v1/config", None::<&()>)?;
        if state.generation > generation {
            let text = format!("generation {} has taken the place of {generation}", state.generation);
            return Err(Failure::new(Exit::Failed, text));
        }
        let is_here = state.generation == generation;
        let refusing = state.members.iter().filter(|_| is_here).filter_map(|m| Some((&m.name, m.refuses.as_ref()?)));
        let refusing: Vec<String> =
            refusing.map(|(name, why)| format!("{name} does not take it over: {why}")).collect();
        let missing = state.members.iter().filter(|member| member.generation.is_some() && !member.same);
        let missing: Vec<&str> = missing.map(|member| member.name.as_str()).collect();
        let is_everywhere = is_here && missing.is_empty();
        if is_everywhere && !state.pending {
            let absent = state.members.iter().filter(|member| member.generation.is_none());
            for member in absent {
                eprintln!("{} has no session: it gets it when it is back", member.name);
            }
            eprintln!("in effect at all members that are there after {} ms", began.elapsed().as_millis());
            return Ok(Exit::Ok);
        }
        if refusing.len() == missing.len() && !refusing.is_empty() {
            return Err(Failure::new(Exit::Failed, refusing.join("; ")));
        }
        if began.elapsed() >= limit {
            let what = if is_everywhere {
                "servers wait to come into force".into()
            } else {
                format!("missing at {}", missing.join(", "))
            };
            let limit = humantime::format_duration(limit);
            return Err(Failure::new(
                Exit::Late,
                format!("not in effect everywhere after {limit}: {what}; the change goes on"),
            ));
        }
        thread::sleep(INTERVAL);
    }
}

pub(super) fn confirm(arguments: &Confirm) -> Result<Exit, Failure> {
    let applied: Applied = ask(&arguments.socket.socket, Method::POST, "/v1/config/confirm", None::<&()>)?;
    eprintln!("confirmed, as generation {}", applied.generation);
    Ok(Exit::Ok)
}

pub(super) fn rollback(arguments: &Rollback) -> Result<Exit, Failure> {
    let applied: Applied = ask(&arguments.socket.socket, Method::POST, "/v1/config/rollback", None::<&()>)?;
    eprintln!("what ran before is back, as generation {}", applied.generation);
    Ok(Exit::Ok)
}

/// A trial of less than a second is over before anybody could confirm it.
fn trial_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_sane = (Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&time);
    is_sane.then_some(time).ok_or_else(|| "from 1s to 1d".to_owned())
}
