//! Random frames: everything the datapath takes, and much that it must not.

use lb_common::{
    address::{Address, low_v4, mapped},
    flow::{FlowKey as _, SCTP, TCP, UDP},
    liveness::{PROBE_ECHO, PROBE_MAGIC, PROBE_REQUEST, PROBE_VERSION, Probe},
    rank::MEMBERS_MAX,
};
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::{
    Dice, Model,
    world::{AnyKey, OWN_MAC, PROBE_PORT, SELF, VIPS, client, member_address, vip_v6},
    write::{checksum, pseudo_sum},
};

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The two ends of a packet and what it carries.
struct Layer {
    source: Address,
    destination: Address,
    is_v6: bool,
    protocol: u8,
    payload: Vec<u8>,
}

impl Dice<'_> {
    /// A frame of at most `longest` bytes.
    pub fn frame(&mut self, world: &Model, longest: usize) -> Vec<u8> {
        let is_v6 = self.chance(50);
        let packet = match self.below(32) {
            0 | 1 => self.probe(world, is_v6),
            2 => self.odd(world, is_v6),
            nth => {
                let (layer, hints) = match nth {
                    3..=5 => self.ping(is_v6),
                    6..=8 => self.quote(is_v6),
                    _ => self.of_a_flow(is_v6, longest),
                };
                let inner = self.packet(layer, hints);
                if self.chance(40) { self.tunnelled(world, inner, is_v6) } else { (inner, is_v6) }
            }
        };
        let mut frame = self.framed(packet);
        self.damage(&mut frame);
        // Many long extension headers, or padding.
        frame.truncate(longest);
        frame
    }

    fn of_a_flow(&mut self, is_v6: bool, longest: usize) -> (Layer, Hints) {
        let key = self.key(is_v6);
        let (ports, protocol) = match key {
            AnyKey::V4(key) => (key.ports(), key.protocol),
            AnyKey::V6(key) => (key.ports(), key.protocol),
        };
        let hints = self.hints();
        let length = match self.below(12) {
            0 => self.below(1500),
            1 => self.below(longest),
            2 => self.pick(&[1300, 1352, 1400, 1432, 1440, 1452, 1460]),
            _ => self.pick(&[0, 0, 0, 1, 20, 60]),
        };
        let length = length.min(longest.saturating_sub(220));
        let payload = if hints.is_tail { self.bytes(length) } else { self.transport(protocol, ports, length) };
        let (source, destination) = self.ends(key);
        (Layer { source, destination, is_v6, protocol, payload }, hints)
    }

    /// The addresses of a key, seldom others.
    fn ends(&mut self, key: AnyKey) -> (Address, Address) {
        let (source, destination) = match key {
            AnyKey::V4(key) => (mapped(key.source), mapped(key.destination)),
            AnyKey::V6(key) => (key.source, key.destination),
        };
        let martians = match key {
            AnyKey::V4(_) => [mapped([0, 1, 2, 3]), mapped([127, 0, 0, 1]), mapped([224, 0, 0, 5]), mapped([255; 4])],
            AnyKey::V6(_) => [[0; 16], [0xff; 16], mapped([10, 0, 0, 1]), client(0, true)],
        };
        match self.below(40) {
            1 => (self.pick(&martians), destination),
            2 => (
                source,
                self.pick(&[client(9, matches!(key, AnyKey::V6(_))), member_address(2, matches!(key, AnyKey::V6(_)))]),
            ),
            _ => (source, destination),
        }
    }

    fn transport(&mut self, protocol: u8, ports: [u8; 4], length: usize) -> Vec<u8> {
        let data = self.bytes(length);
        match protocol {
            TCP => {
                const FLAGS: [u8; 13] = [0x10, 0x02, 0x10, 0x02, 0x10, 0x18, 0x18, 0x11, 0x04, 0x14, 0x12, 0x0f, 0];
                let options = self.pick(&[0, 0, 3, 5, 10]);
                let seq = self.seq().to_be_bytes();
                let (offset, flags) = ((5 + options as u8) << 4, self.pick(&FLAGS));
                let mut tcp = [&ports[..], &seq, &[0, 0, 0, 9, offset, flags, 0xfa, 0xf0, 0, 0, 0, 0]].concat();
                tcp.extend(std::iter::repeat_n(1, 4 * options));
                tcp.extend(data);
                tcp
            }
            UDP => {
                let claimed = match self.below(16) {
                    1 => self.below(40),
                    _ => 8 + length,
                };
                let [l0, l1] = (claimed as u16).to_be_bytes();
                [&ports[..], &[l0, l1, 0xab, 0xcd], &data].concat()
            }
            _ => {
                let chunk = self.pick(&[0, 1, 10, 6, 7, 8, 14, 64, 3, 4, 255]);
                let [l0, l1] = (4 + length as u16).to_be_bytes();
                [&ports[..], &[9, 9, 9, 9, 7, 7, 7, 7, chunk, 0, l0, l1], &data].concat()
            }
        }
    }

    /// An echo request to a VIP, or something else of ICMP.
    fn ping(&mut self, is_v6: bool) -> (Layer, Hints) {
        let kind = match (is_v6, self.below(8)) {
            (false, 1) => self.pick(&[0, 13, 3, 5]),
            (true, 1) => self.pick(&[129, 135, 133, 137, 1, 100]),
            (false, _) => 8,
            (true, _) => 128,
        };
        let length = self.pick(&[0, 56, 56, 1, 1400, 700]);
        let mut icmp = [&[kind, 0, 0, 0, 0x12, 0x34, 0, 1][..], &self.bytes(length)].concat();
        if self.chance(20) {
            // Every checksum must come out right, those next to zero and to all ones as well.
            let edge = self.pick(&[0_u16, 1, 0xffff, 0xfffe, 0x0800, 0xf7ff, 0x8000]).to_be_bytes();
            icmp[4..6].copy_from_slice(&edge);
            icmp[6..8].fill(0);
            icmp.truncate(8);
        }
        self.for_vip(is_v6, icmp)
    }

    /// An ICMP error from somewhere that quotes a packet of a flow.
    fn quote(&mut self, is_v6: bool) -> (Layer, Hints) {
        let key = self.key(is_v6);
        let (client, vip, [c0, c1, s0, s1], protocol) = match key {
            AnyKey::V4(key) => (mapped(key.source), mapped(key.destination), key.ports(), key.protocol),
            AnyKey::V6(key) => (key.source, key.destination, key.ports(), key.protocol),
        };
        let length = self.pick(&[8, 40, 500]);
        let mut quoted = self.transport(protocol, [s0, s1, c0, c1], length);
        let protocol = if self.chance(5) { self.pick(&[1, 47, 58]) } else { protocol };
        let mut hints = self.hints();
        hints.is_tail &= self.chance(30);
        if self.chance(30) {
            quoted.truncate(self.pick(&[8, 4, 8, 7]));
        }
        let inner = self.packet(Layer { source: vip, destination: client, is_v6, protocol, payload: quoted }, hints);
        let kind = if is_v6 { self.pick(&[2, 1, 3, 4, 2, 0]) } else { self.pick(&[3, 3, 4, 11, 12, 5]) };
        let icmp = [&[kind, self.pick(&[4, 0, 1]), 0, 0, 0, 0, 5, 0x14], &inner[..]].concat();
        let (mut layer, outer) = self.for_vip(is_v6, icmp);
        if self.chance(90) {
            layer.destination = vip;
        }
        (layer, outer)
    }

    /// An ICMP message with its checksum, to a VIP.
    fn for_vip(&mut self, is_v6: bool, mut icmp: Vec<u8>) -> (Layer, Hints) {
        let vip = self.pick(&[0, 0, 1, 2]);
        let destination = if is_v6 { vip_v6(vip) } else { mapped(VIPS[vip]) };
        let source = client(self.below(4), is_v6);
        let protocol = if is_v6 { ICMPV6 } else { ICMP };
        let pseudo = if is_v6 { pseudo_sum(&[source, destination].concat(), icmp.len(), protocol) } else { 0 };
        let sum = checksum(&icmp, pseudo).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        (Layer { source, destination, is_v6, protocol, payload: icmp }, self.hints())
    }

    fn probe(&mut self, world: &Model, is_v6: bool) -> (Vec<u8>, bool) {
        let address = self.member(world);
        let from = if self.chance(10) { self.member(world) } else { address };
        let to = self.pick(&[SELF, SELF, SELF, SELF, 2]);
        let kind = self.pick(&[PROBE_REQUEST, PROBE_ECHO, PROBE_REQUEST, PROBE_ECHO, 3]);
        // An echo keeps the ids of its request.
        let (from, to) = if kind == PROBE_ECHO { (to, from) } else { (from, to) };
        let number = self.roll();
        let probe = Probe {
            magic: if self.chance(5) { *b"TDMQ" } else { PROBE_MAGIC },
            version: PROBE_VERSION,
            kind,
            from,
            to,
            incarnation: self.pick(&[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5]]),
            flags: self.pick(&[1, 0, 4]),
            counter: number.to_be_bytes(),
            sent_ns: number.rotate_left(7).to_be_bytes(),
            forwarding: u64::MAX.to_be_bytes(),
            eligible: number.to_be_bytes(),
            nonce: self.pick(&[world.node.probe_nonce, world.node.probe_nonce, number]).to_be_bytes(),
            answers: self.pick(&[world.node.probe_nonce, world.node.probe_nonce, 0]).to_be_bytes(),
            ..Probe::new_zeroed()
        };
        let keys = world.node.probe_keys[usize::from(address.wrapping_sub(1)) % MEMBERS_MAX];
        let probe = match self.below(8) {
            0 => probe,
            n => probe.tagged(&keys[n % keys.len()]),
        };
        let port = if self.chance(10) { 53 } else { PROBE_PORT };
        let [p0, p1] = u16::to_be_bytes(port);
        let mut udp = [&[0x1b, 0x59, p0, p1, 0, 80, 0, 0][..], probe.as_bytes()].concat();
        let (source, destination) = (member_address(address, is_v6), member_address(SELF, is_v6));
        let sum = match self.below(8) {
            1 => self.roll() as u16,
            _ if is_v6 => checksum(&udp, pseudo_sum(&[source, destination].concat(), udp.len(), UDP)),
            _ => 0,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        let hints = if self.chance(10) { self.hints() } else { Hints::default() };
        (self.packet(Layer { source, destination, is_v6, protocol: UDP, payload: udp }, hints), is_v6)
    }

    /// What is none of the others.
    fn odd(&mut self, world: &Model, is_v6: bool) -> (Vec<u8>, bool) {
        let (layer, hints) = self.of_a_flow(is_v6, 300);
        let (source, destination) = (layer.source, layer.destination);
        let inner = self.packet(layer, hints);
        match self.below(4) {
            0 => {
                let protocol = self.pick(&[4, 41, 4, 41, 47, 50, 51, 59, 103]);
                let layer = Layer { source, destination, is_v6, protocol, payload: inner };
                let packet = self.packet(layer, Hints::default());
                // A tunnel in the tunnel, among others.
                if self.chance(60) { self.tunnelled(world, packet, is_v6) } else { (packet, is_v6) }
            }
            1 => {
                let destination = member_address(SELF, is_v6);
                let protocol = self.pick(&[TCP, UDP, SCTP, ICMP]);
                (self.packet(Layer { source, destination, is_v6, protocol, payload: inner }, Hints::default()), is_v6)
            }
            2 => {
                let (nested, is_v6) = self.tunnelled(world, inner, is_v6);
                self.tunnelled(world, nested, is_v6)
            }
            // The other family's ethertype.
            _ => (inner, !is_v6),
        }
    }

    /// As it comes from another member; the outer family is any.
    fn tunnelled(&mut self, world: &Model, inner: Vec<u8>, is_v6: bool) -> (Vec<u8>, bool) {
        let outer_v6 = self.chance(50);
        let source = match self.below(16) {
            1 => member_address(200, outer_v6),
            // Of the prefixes.
            2 | 3 if !outer_v6 => mapped([10, self.pick(&[0, 0, 9]), 3, 77]),
            2 | 3 => {
                let mut source = member_address(9, true);
                source[3] = 3;
                source
            }
            _ => member_address(self.member(world), outer_v6),
        };
        let destination = member_address(SELF, outer_v6);
        let protocol = match self.below(24) {
            1 => self.pick(&[4, 41]),
            _ if is_v6 => 41,
            _ => 4,
        };
        let mut hints = if self.chance(5) { self.hints() } else { Hints::default() };
        // The congestion bits and, of a second chance, the mark.
        hints.tos = self.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 0, 4, 0xb8, 0xbb]);
        (self.packet(Layer { source, destination, is_v6: outer_v6, protocol, payload: inner }, hints), outer_v6)
    }

    fn framed(&mut self, (packet, is_v6): (Vec<u8>, bool)) -> Vec<u8> {
        let tags: &[u8] = match self.below(8) {
            1 => &[0x81, 0, 0, 5],
            2 => &[0x88, 0xa8, 0x20, 6, 0x81, 0, 0x40, 7],
            3 => &[0x91, 0, 0, 5],
            _ => &[],
        };
        let ethertype = match self.below(64) {
            1 => [0x08, 0x06],
            // A third tag.
            2 => [0x81, 0x00],
            _ if is_v6 => [0x86, 0xdd],
            _ => [0x08, 0x00],
        };
        [&OWN_MAC[..], &ROUTER_MAC, tags, &ethertype, &packet].concat()
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        match self.below(12) {
            1 => {
                let length = 14 + self.below(frame.len().clamp(15, 200) - 13);
                frame.truncate(length);
            }
            2 => {
                for _ in 0..=self.below(3) {
                    let at = self.below(frame.len().min(160));
                    frame[at] = self.roll() as u8;
                }
            }
            3 => {
                for _ in 0..=self.below(2) {
                    let at = 12 + self.below(frame.len().min(160) - 12);
                    frame[at] ^= 1 << self.below(8);
                }
            }
            // Padding, as after short packets on Ethernet.
            4 => {
                let padding = self.below(60);
                frame.extend(std::iter::repeat_n(0xaa, padding));
            }
            _ => {}
        }
    }

    fn hints(&mut self) -> Hints {
        let mut hints = Hints::default();
        if self.chance(30) {
            hints.tos = self.pick(&[0, 1, 2, 3, 3, 0xb8, 0xbb, 0x04]);
        }
        if self.chance(20) {
            hints.ttl = self.pick(&[0, 1, 2, 63, 128, 255]);
        }
        if self.chance(20) {
            hints.extras = 1 + self.below(10);
        }
        if self.chance(15) {
            hints.is_whole = false;
            hints.id = self.below(4) as u8;
            hints.has_more = self.chance(60);
            hints.is_tail = self.chance(50);
        }
        hints.is_checksum_right = !self.chance(10);
        hints.order = self.roll();
        hints
    }

    /// An IP packet.
    fn packet(&mut self, layer: Layer, hints: Hints) -> Vec<u8> {
        if layer.is_v6 { packet_v6(&layer, &hints) } else { packet_v4(&layer, &hints) }
    }
}

/// What varies in an IP header.
struct Hints {
    tos: u8,
    ttl: u8,
    /// Words of IPv4 options, or extension headers.
    extras: usize,
    /// Whether it says "don't fragment", or has no fragment header.
    is_whole: bool,
    id: u8,
    has_more: bool,
    is_tail: bool,
    is_checksum_right: bool,
    /// What the extension headers are chosen by.
    order: u64,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            tos: 0,
            ttl: 64,
            extras: 0,
            is_whole: true,
            id: 0,
            has_more: false,
            is_tail: false,
            is_checksum_right: true,
            order: 0,
        }
    }
}

fn packet_v4(layer: &Layer, hints: &Hints) -> Vec<u8> {
    let words = 5 + hints.extras;
    let [l0, l1] = ((4 * words + layer.payload.len()) as u16).to_be_bytes();
    let fragment: u16 = match hints.is_whole {
        true => 0x4000,
        false => (u16::from(hints.has_more) << 13) | (u16::from(hints.is_tail) * 185),
    };
    let [f0, f1] = fragment.to_be_bytes();
    let mut header = vec![0x40 | words as u8, hints.tos, l0, l1, 0, hints.id, f0, f1, hints.ttl, layer.protocol, 0, 0];
    header.extend(low_v4(&layer.source));
    header.extend(low_v4(&layer.destination));
    header.resize(4 * words, 1);
    let sum = if hints.is_checksum_right { checksum(&header, 0) } else { hints.order as u16 };
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(&layer.payload);
    header
}

fn packet_v6(layer: &Layer, hints: &Hints) -> Vec<u8> {
    // Most packets with extension headers have one or two.
    let count = if hints.extras > 7 { hints.extras } else { hints.extras.min(2) };
    let mut kinds: Vec<u8> =
        (0..count).map(|nth| [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING][(hints.order >> nth) as usize % 3]).collect();
    if !hints.is_whole {
        kinds.push(FRAGMENT);
    }
    let mut extensions = Vec::new();
    for (nth, kind) in kinds.iter().enumerate() {
        let next = kinds.get(nth + 1).copied().unwrap_or(layer.protocol);
        if *kind == FRAGMENT {
            let [o0, o1] = ((u16::from(hints.is_tail) * 1480) | u16::from(hints.has_more)).to_be_bytes();
            extensions.extend([next, 0, o0, o1, 0, 0, 0, hints.id]);
        } else {
            // Seldom long, so that the bound in bytes is met, too.
            let length = if hints.order >> (8 + nth) & 15 == 0 { 40 } else { (hints.order >> (16 + nth) & 3) as u8 };
            extensions.extend([next, length]);
            extensions.extend(std::iter::repeat_n(0, 6 + 8 * usize::from(length)));
        }
    }
    let [l0, l1] = ((extensions.len() + layer.payload.len()) as u16).to_be_bytes();
    let next = kinds.first().copied().unwrap_or(layer.protocol);
    let label = if hints.is_checksum_right { 0 } else { 0x0a };
    let mut packet = vec![0x60 | hints.tos >> 4, hints.tos << 4 | label, 0x11, 0x22, l0, l1, next, hints.ttl];
    packet.extend(layer.source);
    packet.extend(layer.destination);
    packet.extend(extensions);
    packet.extend(&layer.payload);
    packet
}
