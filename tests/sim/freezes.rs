//! Hosts whose CPUs stand still for a while, with or without their clocks, and hosts that die with words in their mouth.

use lb_userspace::core::Session;

use crate::{
    agenda::Happening,
    faults::Fault,
    member::Host,
    time::{MS, Ns, S, US},
    world::World,
};

/// Packets that a NIC holds while nobody takes them out.
const NIC: usize = 32;
/// Frames shorter than this hold no record.
const SHORT_FRAME_BYTES: usize = 54;

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frozen {
    /// Packets are not processed; the agent runs.
    Datapath,
    /// Nothing runs; the clock goes on.
    Host,
    /// Nothing runs, and the clock stands still with it, as a suspended machine's monotonic clock does.
    HostAndClock,
}

impl Host {
    /// Whether packets wait in its NIC.
    pub(crate) fn is_frozen(&self, now: Ns) -> bool {
        now < self.frozen.1
    }
}

impl World {
    /// A host stands still for a while.
    pub(crate) fn freeze(&mut self, member: u8, what: Frozen) {
        let now = self.now;
        let until = now + self.rng.between(10 * MS, 2 * S);
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.up && !host.is_frozen(now)) else { return };
        host.frozen = (now, until);
        host.host_changed = until;
        if what != Frozen::Datapath {
            host.agent_changed = host.agent_changed.max(until);
            if let Some(agent) = &mut host.agent {
                agent.paused_until = agent.paused_until.max(until);
            }
        }
        if what == Frozen::HostAndClock {
            host.stop_clock(now);
        }
        self.stats.count(match what {
            Frozen::Datapath => "datapath paused",
            Frozen::Host => "host paused",
            Frozen::HostAndClock => "host and clock paused",
        });
        self.trace(|| format!("member {member}: {what:?} stands still until {}", until as f64 / S as f64));
        self.agenda.plan(until, Happening::Fault(Fault::Thaw(member)));
    }

    /// Whether a member stands still.
    pub(crate) fn is_frozen(&self, member: u8) -> bool {
        self.hosts.get(&member).is_some_and(|host| host.is_frozen(self.now))
    }

    /// It goes on.
    pub(crate) fn thaw(&mut self, member: u8) {
        if let Some(host) = self.hosts.get_mut(&member) {
            host.frozen.1 = host.frozen.1.min(self.now);
            host.clock_goes_on(self.now);
            for (waited, happening) in (1..).zip(host.nic.drain(..)) {
                self.agenda.plan(self.now + waited * US, happening);
            }
        }
        self.wake_at(member, self.now);
    }

    /// Whether a packet has to wait until `member` goes on, or is dropped because its NIC is full.
    pub(crate) fn waits_in_nic(&mut self, member: u8, happening: impl FnOnce() -> Happening) -> bool {
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.up && host.is_frozen(self.now)) else {
            return false;
        };
        if host.nic.len() < NIC {
            host.nic.push(happening());
        }
        true
    }

    /// Whether a doomed member dies now that it sends records: some peers have been told, others have not.
    pub(crate) fn dies_in_flush(&mut self, member: u8, session: Session, bytes: &[u8]) -> bool {
        let is_doomed = self.hosts.get(&member).is_some_and(|host| host.is_doomed);
        if !is_doomed || bytes.len() < SHORT_FRAME_BYTES {
            return false;
        }
        if self.rng.chance(500) {
            self.send(session, bytes);
        }
        self.die(member)
    }

    fn die(&mut self, member: u8) -> bool {
        self.stats.count("host crashed within a flush");
        self.crash(member);
        let at = self.now + self.rng.between(S, 4 * S);
        self.agenda.plan(at, Happening::Fault(Fault::Boot(member)));
        true
    }
}
