//! Attackers: floods of newcomers, and forged packets for connections that live.

use lb_common::flow::{FlowKeyV4, TCP, UDP};

use crate::{
    agenda::Happening,
    configuration::{DNS, PORT, WEB},
    segment::{Role, Segment},
    time::MS,
    world::World,
};

impl World {
    /// An attacker sends something, and the next is planned.
    pub(crate) fn attack(&mut self) {
        if self.calm {
            return;
        }
        let at = self.now + self.rng.below(2 * self.plan.attack_gap);
        self.agenda.plan(at, Happening::Attack);
        if self.rng.chance(500) {
            self.spoof();
        } else {
            self.flood();
        }
    }

    /// A FIN, RST, SYN or bare ACK in the name of a live client, with a sequence number out of the blue.
    fn spoof(&mut self) {
        let live: Vec<FlowKeyV4> =
            self.clients.values().filter(|client| client.is_live()).map(|client| client.key).collect();
        let Some(key) = self.rng.pick(&live).filter(|key| key.protocol == TCP) else { return };
        let role = self.rng.pick(&[Role::Fin, Role::Rst, Role::Syn, Role::Syn, Role::Ack]).unwrap_or(Role::Rst);
        let seq = self.rng.next() as u32;
        self.stats.count(match role {
            Role::Fin => "spoofed FIN",
            Role::Rst => "spoofed RST",
            Role::Syn => "spoofed SYN",
            Role::Ack | Role::Data => "spoofed ACK",
        });
        self.send_to_vip(Segment::new(key, role, seq, 0));
    }

    /// Newcomers that want an entry: whole handshakes, ACKs that keep coming, UDP.
    fn flood(&mut self) {
        let burst = self.rng.between(1, 12);
        let start = self.rng.next() as u32;
        let is_udp = self.rng.chance(300);
        let with_handshake = self.rng.chance(700);
        for n in 0..burst {
            let [a, b, c, _] = (start.wrapping_add(n as u32)).to_be_bytes();
            let key = FlowKeyV4 {
                source: [192, 0, 2, n as u8],
                destination: if is_udp { DNS } else { WEB },
                source_port: [a | 4, b ^ c],
                destination_port: PORT,
                protocol: if is_udp { UDP } else { TCP },
                padding: [0; 3],
            };
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
        self.agenda.plan(self.now + wait, Happening::FromAttacker { segment });
    }
}
