//! Attackers: floods of newcomers, and forged packets for connections that live. And routers, who mean well.

use lb_common::{
    address::Address,
    flow::{FlowKey as _, UDP},
    liveness::{PROBE_GOODBYE, Probe},
};
use lb_userspace::core::Key;

use crate::{
    agenda::Happening,
    configuration::{ATTACKERS, DNS, WEB, address, flow},
    rng::Rng,
    segment::{Role, Segment},
    time::{MS, Ns},
    world::World,
};

/// Who listens between the members, and speaks in their names; with chance of its own, so that seeds keep their stories.
pub(crate) struct Liar {
    rng: Rng,
    recorded: Vec<Recorded>,
}

impl Liar {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(!seed), recorded: Vec::new() }
    }
}

/// A probe or an echo that was on its way.
#[derive(Clone, Copy, Debug)]
struct Recorded {
    from: u8,
    to: u8,
    probe: Probe,
}

impl World {
    /// Somebody who is no client sends something, and the next is planned.
    pub(crate) fn attack(&mut self) {
        if self.calm {
            return;
        }
        let at = self.now + self.rng.below(2 * self.plan.attack_gap);
        self.agenda.plan(at, Happening::Attack);
        self.lie_about_a_member();
        self.betray();
        self.befall_connection();
        match self.rng.below(6) {
            0 => self.quote(),
            1 | 2 => self.flood(),
            _ => self.spoof(),
        }
    }

    /// A router has something to say about a packet of a server: that it was too big, that it came too far.
    fn quote(&mut self) {
        let live: Vec<(u32, Key, Option<Address>)> = self
            .clients
            .iter()
            .filter(|(_, client)| client.is_live())
            .map(|(&id, client)| (id, client.key, client.server))
            .collect();
        let Some((conn, key, server)) = self.rng.pick(&live) else { return };
        self.stats.count("ICMP error");
        self.send_to_vip(Segment { server, ..Segment::new(key, Role::Quote, 0, conn) });
    }

    /// A FIN, RST, SYN or bare ACK in the name of a live client, with a sequence number out of the blue.
    fn spoof(&mut self) {
        let live: Vec<Key> = self.clients.values().filter(|client| client.is_live()).map(|client| client.key).collect();
        let Some(key) = self.rng.pick(&live).filter(|key| key.protocol() != UDP) else { return };
        let role = self.rng.pick(&[Role::Fin, Role::Rst, Role::Syn, Role::Syn, Role::Ack]).unwrap_or(Role::Rst);
        let seq = self.rng.next() as u32;
        self.stats.count(match role {
            Role::Fin => "spoofed FIN",
            Role::Rst => "spoofed RST",
            Role::Syn => "spoofed SYN",
            Role::Ack | Role::Data | Role::Quote => "spoofed ACK",
        });
        self.send_to_vip(Segment::new(key, role, seq, 0));
    }

    /// A probe or echo in a member's name: a recording, bent or not, or sent back to whom it came from. The tag and the counter
    /// must make it nothing: a dead member stays dead, and one that says nothing does not say goodbye.
    fn lie_about_a_member(&mut self) {
        let liar = &mut self.liar;
        let Some(recorded) = liar.rng.pick(&liar.recorded) else { return };
        let Recorded { from, to, mut probe } = recorded;
        let (from, to) = match liar.rng.below(3) {
            0 => {
                self.stats.count("probe replayed");
                (from, to)
            }
            1 => {
                self.stats.count("probe reflected");
                (to, from)
            }
            _ => {
                self.stats.count("probe forged");
                match liar.rng.below(3) {
                    0 => probe.flags ^= PROBE_GOODBYE,
                    1 => probe.counter = u64::MAX.to_be_bytes(),
                    _ => probe.incarnation = u32::MAX.to_be_bytes(),
                }
                (from, to)
            }
        };
        self.trace(|| format!("a liar sends {to} a probe of {from}, {probe:?}"));
        self.agenda.plan(self.now, Happening::Probe { to, from, probe });
    }

    /// What somebody on the members' network has seen: some of it, for ever. Of a probe that is lost on its way a recording is
    /// no repetition, but a slow network.
    pub(crate) fn record_probe(&mut self, arrives: Option<Ns>, from: u8, to: u8, probe: &Probe) {
        const KEPT: usize = 64;
        if arrives.is_none() {
            return;
        }
        let recorded = Recorded { from, to, probe: *probe };
        let liar = &mut self.liar;
        if liar.recorded.len() < KEPT {
            liar.recorded.push(recorded);
        } else if liar.rng.chance(10) {
            let at = liar.rng.below(KEPT as u64) as usize;
            liar.recorded[at] = recorded;
        }
    }

    /// Newcomers that want an entry: whole handshakes, ACKs that keep coming, UDP.
    fn flood(&mut self) {
        let burst = self.rng.between(1, 12);
        let start = self.rng.next() as u32;
        let is_udp = self.rng.chance(300);
        let is_v6 = self.rng.chance(300);
        let with_handshake = self.rng.chance(700);
        for n in 0..burst {
            let [a, b, c, _] = (start.wrapping_add(n as u32)).to_be_bytes();
            let source = address(is_v6, ATTACKERS, n as u8);
            let (service, protocol) = if is_udp { (DNS, UDP) } else { (WEB, self.plan.protocol) };
            let key = flow(source, [a | 4, b ^ c], service, protocol);
            self.stats.count("newcomer of a flood");
            if with_handshake && !is_udp {
                self.send_to_vip(Segment::new(key, Role::Syn, start, 0));
            }
            for k in 1..=4 {
                let mut segment =
                    Segment::new(key, if is_udp { Role::Data } else { Role::Ack }, start.wrapping_add(1), 0);
                segment.number = k;
                self.later(k as u64 * 40 * MS, segment);
            }
        }
    }

    /// The attacker's own pace.
    fn later(&mut self, wait: u64, segment: Segment) {
        self.agenda.plan(self.now + wait, Happening::Send { segment });
    }
}
