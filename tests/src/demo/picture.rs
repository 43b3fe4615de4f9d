//! The demo's picture of the lab: who is there, who carries how much, what has broken.

use std::collections::BTreeMap;

use super::screen::{Standing, Style};
use crate::{cluster::Cluster, traffic::load::Ledger};

const BAR_WIDTH: u64 = 24;

/// How a member or a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Works.
    Up,
    /// Forwards by what it knows, without an agent.
    Headless,
    /// Is being started.
    Starting,
    /// Is gone.
    Dead,
    /// Keeps its connections and gets no new ones.
    Draining,
    /// Exists, but is not configured.
    Spare,
}

impl State {
    fn mark(self, style: Style) -> String {
        match self {
            Self::Up => style.good("●"),
            Self::Headless | Self::Starting | Self::Draining => style.changing("◐"),
            Self::Dead => style.bad("✗"),
            Self::Spare => style.faint("○"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Up => "",
            Self::Headless => "agent killed",
            Self::Starting => "starting",
            Self::Dead => "killed",
            Self::Draining => "draining",
            Self::Spare => "spare",
        }
    }
}

/// What the picture is drawn from.
pub(super) struct Scene<'a> {
    /// The lab.
    pub(super) cluster: &'a Cluster,
    /// The connections.
    pub(super) ledger: &'a Ledger,
    /// Members by id.
    pub(super) members: &'a BTreeMap<u8, State>,
    /// Servers by number.
    pub(super) servers: &'a BTreeMap<u32, State>,
    /// Connections that each member delivers.
    pub(super) carried: &'a BTreeMap<u8, u64>,
}

impl Scene<'_> {
    /// Draws it.
    pub(super) fn draw(&self, style: Style) -> Standing {
        let mut panel = vec![String::new()];
        panel.extend(self.member_lines(style));
        panel.extend(self.server_lines(style));
        panel.push(String::new());
        panel.extend(self.connection_lines(style));
        Standing { panel, line: self.line() }
    }

    fn member_lines(&self, style: Style) -> Vec<String> {
        let count = self.cluster.members.len();
        let most = self.carried.values().copied().max().unwrap_or(0).max(1);
        let line = |(place, member): (usize, &crate::member::Member)| {
            let (before, fork) = match place {
                0 if count == 1 => ("client ── router ───", ""),
                0 => ("client ── router ─", "┬─ "),
                _ if place + 1 == count => ("                  ", "└─ "),
                _ => ("                  ", "├─ "),
            };
            let state = self.members.get(&member.id).copied().unwrap_or(State::Starting);
            let flows = self.carried.get(&member.id).copied().unwrap_or(0);
            let filled = (flows * BAR_WIDTH).div_ceil(most);
            let bar = "█".repeat(filled as usize) + &style.faint(&"░".repeat((BAR_WIDTH - filled) as usize));
            format!("  {before}{fork}{} {} {bar} {flows:>5} flows  {}", member.name(), state.mark(style), state.word())
        };
        self.cluster.members.iter().enumerate().map(line).collect()
    }

    fn server_lines(&self, style: Style) -> Vec<String> {
        let mut served = BTreeMap::new();
        for record in self.ledger.long() {
            let facts = record.facts();
            if facts.fault.is_none() && facts.server != 0 {
                *served.entry(facts.server).or_insert(0_u64) += 1;
            }
        }
        let cell = |server: &crate::server::Server| {
            let state = self.servers.get(&server.number).copied().unwrap_or(State::Up);
            let flows = served.get(&server.number).copied().unwrap_or(0);
            let word = if state == State::Up { String::new() } else { format!(" {}", state.word()) };
            format!("{} {} {flows}{word}", server.name(), state.mark(style))
        };
        let cells: Vec<String> = self.cluster.servers.iter().map(cell).collect();
        vec![format!("                     {}", style.faint("│ IP-in-IP")), format!("    {}", cells.join("   "))]
    }

    fn connection_lines(&self, style: Style) -> Vec<String> {
        let Tally { open, broken, done, short_broken, failed, longest_ms } = self.tally();
        let flag = |count: u64, word: &str| {
            let text = format!("{count} {word}");
            if count > 0 { style.bad(&text) } else { text }
        };
        vec![
            format!("  long-lived   {open:>6} open    {}    longest stall {longest_ms:.0} ms", flag(broken, "broken")),
            format!(
                "  short        {done:>6} done    {}    {}",
                flag(short_broken, "broken"),
                flag(failed, "without handshake")
            ),
        ]
    }

    fn line(&self) -> String {
        let Tally { open, broken, done, short_broken, failed, longest_ms } = self.tally();
        let flows = |member: &crate::member::Member| {
            let state = self.members.get(&member.id).copied().unwrap_or(State::Starting);
            let flows = self.carried.get(&member.id).copied().unwrap_or(0);
            let word = if state == State::Up { String::new() } else { format!(" ({})", state.word()) };
            format!("{} {flows}{word}", member.name())
        };
        let members = self.cluster.members.iter().map(flows).collect::<Vec<_>>().join(", ");
        format!(
            "flows: {members} | long-lived: {open} open, {broken} broken | short: {done} done, {short_broken} broken, \
             {failed} without handshake | longest stall {longest_ms:.0} ms"
        )
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for record in self.ledger.long() {
            let facts = record.facts();
            match facts.fault {
                Some(_) => tally.broken += 1,
                None => {
                    tally.open += u64::from(facts.opened.is_some());
                    tally.longest_ms = tally.longest_ms.max(facts.longest_wait.as_secs_f64() * 1e3);
                }
            }
        }
        let shorts = self.ledger.shorts();
        tally.done = shorts.done;
        tally.short_broken = shorts.broken.len() as u64;
        tally.failed = shorts.handshakes_failed;
        tally
    }
}

#[derive(Default)]
struct Tally {
    open: u64,
    broken: u64,
    done: u64,
    short_broken: u64,
    failed: u64,
    longest_ms: f64,
}
