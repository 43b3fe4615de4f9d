//! The packet that is explained.

use lb_common::{
    flow::{FlowKey as _, SCTP, TCP},
    packet::{ACK, ETHERNET, ETHERTYPE_AT, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, SYN},
};

use crate::core::Key;

/// A small frame of the flow: its beginning, or one byte of data. Checksums are left out: nobody reads them on the way in.
pub(super) fn build(key: &Key, is_first: bool) -> Vec<u8> {
    let transport = match key.protocol() {
        TCP => tcp(key.ports(), is_first),
        SCTP => sctp(key.ports(), is_first),
        _ => udp(key.ports()),
    };
    let mut frame = vec![0; ETHERNET];
    let ethertype = match key {
        Key::V4(key) => {
            let mut ip = [0; IPV4];
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((IPV4 + transport.len()) as u16).to_be_bytes());
            ip[8] = 64;
            ip[9] = key.protocol;
            ip[12..16].copy_from_slice(&key.source);
            ip[16..20].copy_from_slice(&key.destination);
            frame.extend(ip);
            ETHERTYPE_IPV4
        }
        Key::V6(key) => {
            let mut ip = [0; IPV6];
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(transport.len() as u16).to_be_bytes());
            ip[6] = key.protocol;
            ip[7] = 64;
            ip[8..24].copy_from_slice(&key.source);
            ip[24..40].copy_from_slice(&key.destination);
            frame.extend(ip);
            ETHERTYPE_IPV6
        }
    };
    frame[ETHERTYPE_AT..ETHERNET].copy_from_slice(&ethertype);
    frame.extend(transport);
    frame
}

fn tcp(ports: [u8; 4], is_syn: bool) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..4].copy_from_slice(&ports);
    tcp[12] = 5 << 4;
    tcp[13] = if is_syn { SYN } else { ACK };
    if !is_syn {
        tcp.push(0);
    }
    tcp
}

/// The common header and one chunk: INIT, or DATA with one byte.
fn sctp(ports: [u8; 4], is_init: bool) -> Vec<u8> {
    let (kind, length) = if is_init { (1, 20_u16) } else { (0, 17) };
    let mut sctp = vec![0; 12 + usize::from(length).next_multiple_of(4)];
    sctp[..4].copy_from_slice(&ports);
    sctp[12] = kind;
    sctp[14..16].copy_from_slice(&length.to_be_bytes());
    sctp
}

fn udp(ports: [u8; 4]) -> Vec<u8> {
    let mut udp = vec![0; 9];
    udp[..4].copy_from_slice(&ports);
    udp[4..6].copy_from_slice(&9_u16.to_be_bytes());
    udp
}
