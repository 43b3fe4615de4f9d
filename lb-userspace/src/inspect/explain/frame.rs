//! The packet that is explained.

use lb_common::{
    flow::{FlowKeyV4, TCP},
    packet::{ACK, ETHERNET, ETHERTYPE_AT, ETHERTYPE_IPV4, IPV4, SYN},
};

/// A small frame of the flow: a SYN, or one byte of data. Checksums are left out: nobody reads them on the way in.
pub(super) fn build(key: &FlowKeyV4, is_syn: bool) -> Vec<u8> {
    let transport = if key.protocol == TCP { tcp(key, is_syn) } else { udp(key) };
    let length = (IPV4 + transport.len()) as u16;
    let mut frame = vec![0; ETHERNET + IPV4];
    frame[ETHERTYPE_AT..ETHERNET].copy_from_slice(&ETHERTYPE_IPV4);
    let ip = &mut frame[ETHERNET..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[8] = 64;
    ip[9] = key.protocol;
    ip[12..16].copy_from_slice(&key.source);
    ip[16..20].copy_from_slice(&key.destination);
    frame.extend(transport);
    frame
}

fn tcp(key: &FlowKeyV4, is_syn: bool) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&key.source_port);
    tcp[2..4].copy_from_slice(&key.destination_port);
    tcp[12] = 5 << 4;
    tcp[13] = if is_syn { SYN } else { ACK };
    if !is_syn {
        tcp.push(0);
    }
    tcp
}

fn udp(key: &FlowKeyV4) -> Vec<u8> {
    let mut udp = vec![0; 9];
    udp[0..2].copy_from_slice(&key.source_port);
    udp[2..4].copy_from_slice(&key.destination_port);
    udp[4..6].copy_from_slice(&9_u16.to_be_bytes());
    udp
}
