//! Packets of a member's services: what clients send, and what peers hand on.

use lb_common::{
    address::{Address, is_mapped, low_v4, mapped},
    flow::{FlowKey as _, TCP, UDP},
    rank::bit,
    service::ServiceKey,
};
use model::{Model, write::checksum};

/// Services that get packets.
const SERVICES: usize = 64;
/// Clients of each.
const CLIENTS: u8 = 4;
/// The port for a service of every port.
const SOME_PORT: u16 = 4242;
/// Of the blocks for documentation (RFC 5737, RFC 3849): nobody's flow.
const CLIENT: [u8; 4] = [198, 51, 100, 0];
const CLIENT_V6: Address = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Locally administered addresses for a member and its router.
const LINK: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;

/// Frames, each with what it is.
pub(super) fn of(world: &Model) -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    for key in world.services.keys().filter(|key| key.protocol != 0).take(SERVICES) {
        for client in 0..CLIENTS {
            of_service(world, key, client, &mut frames);
        }
    }
    let ack = |ports, length| transport(TCP, ports, 7, ACK, length);
    for key in world.v4.borrow().flows.keys() {
        let inner = match key.protocol {
            TCP => ack(key.ports(), 20),
            protocol => transport(protocol, key.ports(), 0, 0, 20),
        };
        let packet = ip(mapped(key.source), mapped(key.destination), key.protocol, &inner);
        frames.push(("a packet of a known flow".to_owned(), framed(&packet)));
    }
    for key in world.v6.borrow().flows.keys() {
        let inner = transport(key.protocol, key.ports(), 7, ACK, 20);
        frames.push((
            "a packet of a known flow".to_owned(),
            framed(&ip(key.source, key.destination, key.protocol, &inner)),
        ));
    }
    let stranger = ip(mapped(CLIENT), mapped([192, 0, 2, 77]), TCP, &ack([0x80, 0, 0, 80], 0));
    frames.push(("a packet of others".to_owned(), framed(&stranger)));
    // Every length of one packet: a program that reads beyond the end would be refused, one that misjudges it shows here.
    if let Some((_, frame)) = frames.first().cloned() {
        frames.extend((14..frame.len()).map(|end| (format!("{end} bytes of a packet"), frame[..end].to_vec())));
    }
    frames
}

fn of_service(world: &Model, key: &ServiceKey, client: u8, frames: &mut Vec<(String, Vec<u8>)>) {
    let port = if key.port == [0; 2] { SOME_PORT } else { u16::from_be_bytes(key.port) };
    let [p0, p1] = port.to_be_bytes();
    let ports = [0x9c, client, p0, p1];
    let source = if is_mapped(&key.address) {
        let [a, b, c, _] = CLIENT;
        mapped([a, b, c, 10 + client])
    } else {
        let mut source = CLIENT_V6;
        source[15] = 10 + client;
        source
    };
    let steps: Vec<(&str, Vec<u8>)> = match key.protocol {
        TCP => [
            ("a SYN", 100, SYN, 0),
            ("the handshake's ACK", 101, ACK, 0),
            ("data", 101, ACK, 300),
            ("data", 401, ACK, 1400),
            ("a FIN", 1801, ACK | FIN, 0),
            ("a late ACK", 1802, ACK, 0),
            ("a RST", 1802, RST, 0),
        ]
        .map(|(what, seq, flags, length)| (what, transport(TCP, ports, seq, flags, length)))
        .into(),
        UDP => [("a datagram", 40), ("a second datagram", 40), ("a long datagram", 1400)]
            .map(|(what, length)| (what, transport(UDP, ports, 0, 0, length)))
            .into(),
        // The first twelve bytes are what is looked at: ports, tag, checksum; then an INIT, and data.
        protocol => [1, 0].map(|chunk| ("a chunk", transport(protocol, ports, 0, chunk, 16))).into(),
    };
    for (what, payload) in &steps {
        let packet = ip(source, key.address, key.protocol, payload);
        let to = format!("{what} to port {port} (protocol {})", key.protocol);
        // Odd clients' packets come through a peer.
        let peer = world.peers.iter().find(|(address, id)| {
            is_mapped(address) && **id != world.node.id && world.node.configured & bit(**id) != 0
        });
        let own = world.node.addresses[lb_common::node::V4];
        match peer {
            Some((peer, _)) if client % 2 == 1 && own != [0; 16] => {
                let outer = if is_mapped(&key.address) { 4 } else { 41 };
                frames.push((format!("{to}, handed on by a peer"), framed(&ip(*peer, own, outer, &packet))));
            }
            _ => frames.push((to, framed(&packet))),
        }
    }
}

fn transport(protocol: u8, ports: [u8; 4], seq: u32, kind: u8, length: usize) -> Vec<u8> {
    let mut bytes = ports.to_vec();
    match protocol {
        TCP => {
            bytes.extend(seq.to_be_bytes());
            bytes.extend([0, 0, 0, 9, 5 << 4, kind, 0xfa, 0xf0, 0, 0, 0, 0]);
        }
        UDP => {
            bytes.extend((8 + length as u16).to_be_bytes());
            // No checksum is looked at; zero means none in IPv4.
            bytes.extend([0, 0]);
        }
        _ => bytes.extend([7, 7, 7, 7, 0, 0, 0, 0, kind, 0, 0, 4 + length as u8]),
    }
    bytes.extend((0..length).map(|nth| nth as u8));
    bytes
}

fn ip(source: Address, destination: Address, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if is_mapped(&destination) {
        let [l0, l1] = (20 + payload.len() as u16).to_be_bytes();
        let mut header = vec![0x45, 0, l0, l1, 0, 1, 0x40, 0, 61, protocol, 0, 0];
        header.extend(low_v4(&source));
        header.extend(low_v4(&destination));
        let sum = checksum(&header, 0).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header
    } else {
        let [l0, l1] = (payload.len() as u16).to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, l0, l1, protocol, 61];
        header.extend(source);
        header.extend(destination);
        header
    };
    packet.extend(payload);
    packet
}

fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&LINK[..], &ethertype, packet].concat()
}
