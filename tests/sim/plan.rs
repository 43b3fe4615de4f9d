//! The circumstances of one seed: sizes, limits, timings, and how hard chance hits.

use std::time::Duration;

use lb_common::{
    flow::{FlowKey as _, SCTP, STATE_CLOSING, STATE_RESET, TCP, UDP},
    hash::HashKey,
    node::BUDGET_CLASSES,
};
use lb_userspace::core::{
    Key,
    view::{Limits, Probing, Timeouts},
};

use crate::{
    rng::Rng,
    time::{MS, Ns, S, US},
};

/// Sizes of a member's maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Entries of `flows`.
    pub(crate) flows: usize,
    /// Entries of `pending`.
    pub(crate) pending: usize,
    /// Events that the ring holds.
    pub(crate) events: usize,
}

/// How large the clusters of a campaign are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// 2 to 5 members.
    Small,
    /// 6 to 64.
    Large,
}

impl Scale {
    /// What asks for it on the command line.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Small => "",
            Self::Large => "--large ",
        }
    }

    fn members(self, rng: &mut Rng) -> u8 {
        match self {
            Self::Small => rng.between(2, 5) as u8,
            Self::Large => rng.pick(&[6, 8, 12, 16, 24, 64]).unwrap_or(6),
        }
    }
}

/// The circumstances of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Members at the beginning: ids from 1.
    pub(crate) members: u8,
    /// The highest id of a member.
    pub(crate) members_max: u8,
    /// Whether agents speak different versions of the protocol.
    pub(crate) is_mixed: bool,
    /// Servers at the beginning.
    pub(crate) backends: u8,
    /// Sizes of the maps.
    pub(crate) sizes: Sizes,
    /// Bounds of the core.
    pub(crate) limits: Limits,
    /// New entries in a budget window.
    pub(crate) budgets: [u32; BUDGET_CLASSES],
    /// How peers are watched.
    pub(crate) probing: Probing,
    /// When idle flows end.
    pub(crate) timeouts: Timeouts,
    /// How long unknown flows that go on follow the servers of before.
    pub(crate) grace: Duration,
    /// For how long a member must have been dead before its flows are given to others for good.
    pub(crate) takeover_after: Duration,
    /// Record flows at their first packet.
    pub(crate) first_packet: bool,
    /// Whoever knows a flow delivers its packets (`handoff = "direct"`).
    pub(crate) direct: bool,
    /// What the connections to the web service are: TCP, or SCTP.
    pub(crate) protocol: u8,
    /// New flows of one client go to one server.
    pub(crate) affinity: bool,
    /// Clients of 1000 whose data comes in fragments.
    pub(crate) splitters: u64,
    /// The cluster's secret.
    pub(crate) hash_key: HashKey,
    /// Between two sweeps.
    pub(crate) sweep_interval: Ns,
    /// Within which members take over a new configuration.
    pub(crate) skew: Ns,
    /// Delay and jitter of links.
    pub(crate) delay: (Ns, Ns),
    /// A member whose sessions are slow.
    pub(crate) slow_member: Option<u8>,
    /// Live clients at a time.
    pub(crate) clients: usize,
    /// Half of the longest time between two new clients.
    pub(crate) client_gap: Ns,
    /// Source ports of clients: few ports are used again soon.
    pub(crate) ports: u64,
    /// The longest time that a client says nothing.
    pub(crate) gap_max: Ns,
    /// Half of the longest time between two attacks.
    pub(crate) attack_gap: Ns,
    /// Mean time between two faults.
    pub(crate) fault_gap: Ns,
    /// When faults begin.
    pub(crate) faults_from: Ns,
    /// When everything is mended.
    pub(crate) healed_at: Ns,
    /// When clients fall silent.
    pub(crate) silent_at: Ns,
    /// When tables are compared.
    pub(crate) ends_at: Ns,
}

impl Plan {
    /// How long a connection may be idle.
    pub(crate) fn established(&self) -> Ns {
        self.timeouts.established.min(self.timeouts.udp).as_nanos() as Ns
    }

    /// How long a recorded flow may be idle.
    pub(crate) fn timeout(&self, key: &Key, state: u8) -> Ns {
        let timeouts = &self.timeouts;
        let timeout = match state {
            _ if key.protocol() == UDP => timeouts.udp,
            STATE_CLOSING => timeouts.closing,
            STATE_RESET => timeouts.reset,
            _ => timeouts.established,
        };
        timeout.as_nanos() as Ns
    }

    /// What `rng` makes up.
    pub(crate) fn new(rng: &mut Rng, scale: Scale) -> Self {
        let sizes = Sizes {
            flows: rng.pick(&[12, 24, 60, 400, 400, 400]).unwrap_or(400),
            pending: rng.pick(&[8, 100, 400]).unwrap_or(400),
            events: rng.pick(&[1, 4, 64, 64]).unwrap_or(64),
        };
        // Law 4 does not rest on an agent that stops newcomers in time: some take the map for larger than it is.
        let flows = sizes.flows * rng.pick(&[1, 1, 1, 4]).unwrap_or(1);
        let limits = Limits {
            flows,
            flows_v6: flows / 2,
            tombstones: rng.pick(&[16, 400]).unwrap_or(400),
            parked: rng.pick(&[8, 200]).unwrap_or(200),
            queue: rng.pick(&[8, 32, 400]).unwrap_or(400),
            window: rng.pick(&[2048, 16384]).unwrap_or(16384),
        };
        let faults_from = 3 * S + 500 * MS;
        let healed_at = faults_from + rng.between(2, 7) * S;
        let seconds = rng.pick(&[LASTING, LASTING, LASTING, SHORT, BRISK, HASTY]).unwrap_or(LASTING);
        // Where flows may end for want of traffic, clients go on long enough to show that none does where nothing breaks.
        let silent_at = healed_at + if seconds[0] < LASTING[0] { 10 * S } else { 3 * S };
        let members = scale.members(rng);
        let budget = rng.pick(&[2, 50, 1000]).unwrap_or(1000);
        Self {
            members,
            members_max: members.saturating_add(2).clamp(5, 64),
            is_mixed: rng.chance(500),
            backends: rng.between(2, 6) as u8,
            sizes,
            limits,
            budgets: [budget, budget, (budget / 2).max(1), budget, budget],
            probing: Probing {
                interval: Duration::from_millis(rng.pick(&[10, 20, 20]).unwrap_or(20)),
                misses: rng.pick(&[3, 5, 5]).unwrap_or(5) as u32,
            },
            timeouts: timeouts(seconds),
            grace: Duration::from_millis(rng.pick(&[60_000, 60_000, 1000]).unwrap_or(1000)),
            takeover_after: Duration::from_millis(rng.pick(&[30_000, 300, 1000]).unwrap_or(1000)),
            first_packet: rng.chance(200),
            direct: rng.chance(500),
            protocol: if rng.chance(150) { SCTP } else { TCP },
            affinity: rng.chance(200),
            splitters: rng.pick(&[0, 100, 400]).unwrap_or(0),
            hash_key: [rng.next(), rng.next()],
            sweep_interval: 800 * MS,
            skew: rng.pick(&[MS, 50 * MS, 600 * MS, 3 * S, 6 * S]).unwrap_or(MS),
            delay: rng.pick(&[(20 * US, 40 * US), (100 * US, 400 * US), (500 * US, 4 * MS)]).unwrap_or((US, US)),
            slow_member: rng.chance(100).then(|| 1 + rng.below(2) as u8),
            clients: rng.pick(&[6, 20, 30]).unwrap_or(20),
            client_gap: rng.pick(&[15 * MS, 60 * MS, 200 * MS]).unwrap_or(60 * MS),
            ports: rng.pick(&[12, 5000]).unwrap_or(5000),
            gap_max: rng.pick(&[60 * MS, 500 * MS, 1800 * MS]).unwrap_or(500 * MS),
            attack_gap: rng.pick(&[30 * MS, 150 * MS, 900 * MS]).unwrap_or(150 * MS),
            fault_gap: rng.pick(&[120 * MS, 300 * MS, 900 * MS]).unwrap_or(300 * MS),
            faults_from,
            healed_at,
            silent_at,
            // After a session has ended, the others carry a snapshot again, at most every 10 s.
            ends_at: silent_at + 11 * S,
        }
    }
}

/// Seconds after which idle flows end: established ones, closing, reset, UDP. Longer than a run.
const LASTING: [u64; 4] = [60; 4];
/// Longer than a client's silence and a cut taken together; they end within a run.
const SHORT: [u64; 4] = [60, 9, 8, 10];
/// Shorter than most connections: they live by their packets, whoever sees those.
const BRISK: [u64; 4] = [5; 4];
/// Shorter than some silences: what ends where it was not seen goes on where it is seen again.
const HASTY: [u64; 4] = [3; 4];

fn timeouts(seconds: [u64; 4]) -> Timeouts {
    let [established, closing, reset, udp] = seconds.map(Duration::from_secs);
    let young = Duration::from_secs(3);
    Timeouts { young, established, closing, reset, udp, sctp: established, sctp_closing: closing }
}
