//! Waiting until nothing is left, with how far it is.

use std::{
    io::{IsTerminal, Write as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{Exit, Failure};
use crate::control;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(500);

/// Where the agent is asked.
#[derive(Clone, Debug, Args)]
pub(super) struct Socket {
    /// Control socket of the agent
    #[arg(long, value_name = "FILE", default_value = control::DEFAULT_SOCKET)]
    pub(super) socket: PathBuf,
}

/// Whether and for how long the end is waited for.
#[derive(Clone, Debug, Args)]
pub(super) struct Wait {
    /// Wait until no flow is left, and say how far it is
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this time (exit code 6); the drain goes on
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Duration,
}

impl Wait {
    /// Waits until `left` is 0, if that is wanted, and then says `done`. `left` is `None` while it is not known.
    pub(super) fn until_none(
        &self,
        done: &str,
        mut left: impl FnMut() -> Result<Option<usize>, Failure>,
    ) -> Result<Exit, Failure> {
        if !self.wait {
            return Ok(Exit::Ok);
        }
        let began = Instant::now();
        let mut first = None;
        let mut line = Line::default();
        loop {
            let now_left = left()?;
            if now_left == Some(0) {
                line.end();
                eprintln!("{done}");
                return Ok(Exit::Ok);
            }
            if let Some(left) = now_left {
                let (at, of) = *first.get_or_insert((Instant::now(), left));
                line.write(&format!("{left} flows left{}", estimate(at.elapsed(), of, left)));
            }
            if began.elapsed() >= self.timeout {
                line.end();
                let left = now_left.map_or_else(|| "an unknown number of".to_owned(), |left| left.to_string());
                let text = format!(
                    "{left} flows are left after {}; the drain goes on",
                    humantime::format_duration(self.timeout)
                );
                return Err(Failure::new(Exit::Late, text));
            }
            thread::sleep(INTERVAL);
        }
    }
}

/// How long it will take if it goes on like that.
fn estimate(elapsed: Duration, first: usize, left: usize) -> String {
    let gone = first.saturating_sub(left);
    if gone == 0 || elapsed < Duration::from_secs(1) {
        return String::new();
    }
    let seconds = (elapsed.as_secs_f64() * left as f64 / gone as f64).ceil();
    format!(", about {} at this pace", humantime::format_duration(Duration::from_secs(seconds as u64)))
}

/// On a terminal one line that changes; elsewhere a line when what it says changes, at most every ten seconds.
#[derive(Default)]
struct Line {
    last: Option<(String, Instant)>,
}

impl Line {
    fn write(&mut self, text: &str) {
        let is_terminal = std::io::stderr().is_terminal();
        if is_terminal {
            eprint!("\r\x1b[K{text}");
            _ = std::io::stderr().flush();
        }
        let is_due = |(last, at): &(String, Instant)| last != text && at.elapsed() >= Duration::from_secs(10);
        if self.last.as_ref().is_none_or(is_due) {
            if !is_terminal {
                eprintln!("{text}");
            }
            self.last = Some((text.to_owned(), Instant::now()));
        }
    }

    fn end(&self) {
        if self.last.is_some() && std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_it_took_so_far() {
        assert_eq!(estimate(Duration::from_secs(10), 100, 50), ", about 10s at this pace");
        assert_eq!(estimate(Duration::from_secs(10), 100, 100), "");
        assert_eq!(estimate(Duration::from_millis(10), 100, 50), "");
    }
}
