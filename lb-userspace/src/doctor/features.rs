//! What a driver can do with XDP, as the kernel says (generic netlink family `netdev`, Linux 6.3): asked, instead of tried, because
//! attaching a program resets many a network card.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// `NETDEV_XDP_ACT_BASIC` of linux/netdev.h: pass, drop, send back.
pub(super) const BASIC: u64 = 1;

/// The id of the family of families, and its question for the id of one.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
const FAMILY_ID: u16 = 1;
/// The question for a device, of the family `netdev`.
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_FEATURES: u16 = 3;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// Headers of netlink and of generic netlink.
const HEADERS: usize = 16 + 4;

/// The features of the interface with index `ifindex`; `None` on a kernel that does not tell.
pub(super) fn xdp(ifindex: u32) -> io::Result<Option<u64>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let Some(family) = ask(&socket, CONTROL, GET_FAMILY, FAMILY_NAME, b"netdev\0")? else { return Ok(None) };
    let Some(id) = attribute(&family, FAMILY_ID) else { return Ok(None) };
    let id = u16::from_ne_bytes(first(id)?);
    let Some(device) = ask(&socket, id, GET_DEVICE, DEVICE_INDEX, &ifindex.to_ne_bytes())? else { return Ok(None) };
    attribute(&device, DEVICE_FEATURES).map(|features| Ok(u64::from_ne_bytes(first(features)?))).transpose()
}

/// The attributes of the answer to a question with one; `None` where the kernel knows of no such thing.
fn ask(socket: &Socket, family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let padded = value.len().next_multiple_of(4);
    let length = HEADERS + 4 + padded;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(length, 0);
    socket.send(&message, 0)?;
    let mut answer = Vec::with_capacity(8192);
    socket.recv(&mut answer, 0)?;
    let is_error = answer.get(4..6).is_none_or(|kind| kind == ERROR.to_ne_bytes());
    Ok((!is_error && answer.len() >= HEADERS).then(|| answer.split_off(HEADERS)))
}

/// The value of the attribute of this kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Flags in the kind: nested, in network order.
    const KIND: u16 = 0x3fff;
    while let [low, high, kind_low, kind_high, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([low, high])).max(4);
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([kind_low, kind_high]) & KIND == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn first<const N: usize>(value: &[u8]) -> io::Result<[u8; N]> {
    value.first_chunk().copied().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
