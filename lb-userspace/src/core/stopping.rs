//! Leaving the cluster in milliseconds.

use std::time::Duration;

use super::{
    Core, Output, Session,
    link::{Link, Stage, nanos},
    wire::Frame,
};

/// Goodbye probes: one may be lost, and another.
const GOODBYES: u32 = 3;
/// Between two goodbyes: a loss is often of several packets at once.
const GOODBYE_PAUSE: Duration = Duration::from_millis(10);
/// The longest a stop waits for what was said to leave this host.
const STOP_MAX: Duration = Duration::from_millis(50);

/// How far a stop has come.
pub(crate) struct Stopping {
    since: u64,
    goodbyes: u32,
    /// When to go on; `None` when all is said.
    pub(crate) next: Option<u64>,
}

impl Core {
    /// Says goodbye: in every session, behind what waits there, and by probes.
    pub(crate) fn stop(&mut self, now: u64) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping { since: now, goodbyes: 0, next: Some(now) });
        self.announce(now, false);
        self.flush(now);
        let open: Vec<Session> = self.links.iter().filter(|(_, l)| l.stage == Stage::Open).map(|(&s, _)| s).collect();
        for session in open {
            self.say(now, session, &Frame::Goodbye);
        }
        self.go_on_stopping(now);
    }

    /// Repeats the goodbye, until all that was said has left this host and was acknowledged.
    pub(crate) fn go_on_stopping(&mut self, now: u64) {
        let Some(Stopping { since, goodbyes, next: Some(next) }) = self.stopping else { return };
        if now < next {
            return;
        }
        let is_heard = |link: &Link| !link.acknowledges() || link.acknowledgements.outstanding() == 0;
        let is_said = |link: &Link| link.urgent.is_empty() && link.lazy.is_empty() && !link.comparison.is_owing();
        let is_silent = |link: &Link| link.in_flight == 0 && is_said(link) && is_heard(link);
        let has_said_all = goodbyes >= GOODBYES && self.links.values().all(is_silent);
        let is_over = has_said_all || now >= since + nanos(STOP_MAX);
        if goodbyes < GOODBYES {
            let (counter, peers) = self.watch.extra_probes();
            self.probe(now, counter, &peers);
        }
        if is_over {
            self.outputs.push_back(Output::Stopped);
        }
        let next = (!is_over).then(|| (now + nanos(GOODBYE_PAUSE)).min(since + nanos(STOP_MAX)));
        self.stopping = Some(Stopping { since, goodbyes: goodbyes + 1, next });
    }
}
