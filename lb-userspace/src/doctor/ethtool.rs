//! Offloads of an interface, by the ioctl that `ethtool` uses: it works in every network namespace, without the program.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

/// Commands of linux/ethtool.h.
const GET_DRIVER: u32 = 0x03;
const GET_RX_CHECKSUMS: u32 = 0x14;
const SET_RX_CHECKSUMS: u32 = 0x15;
const GET_TX_CHECKSUMS: u32 = 0x16;
const SET_TX_CHECKSUMS: u32 = 0x17;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
/// `ETH_FLAG_LRO`.
const LRO: u32 = 1 << 15;
/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// `struct ethtool_drvinfo`, the largest that is asked for; the driver's name is the 32 bytes after the command.
const BYTES: usize = 196;

/// `struct ifreq` with a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u8,
    rest: [u8; 16],
}

/// The driver's name.
pub(super) fn driver(interface: &str) -> io::Result<String> {
    let answer = ask(interface, GET_DRIVER, 0)?;
    let name = answer[4..36].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Whether checksums of sent packets are left to the other end, or those of received ones believed.
pub(super) fn has_checksums(interface: &str) -> io::Result<bool> {
    Ok(number(interface, GET_TX_CHECKSUMS)? != 0 || number(interface, GET_RX_CHECKSUMS)? != 0)
}

pub(super) fn set_checksums(interface: &str, on: bool) -> io::Result<()> {
    ask(interface, SET_TX_CHECKSUMS, on.into())?;
    ask(interface, SET_RX_CHECKSUMS, on.into()).map(drop)
}

/// Whether received segments are merged before anybody sees them.
pub(super) fn has_lro(interface: &str) -> io::Result<bool> {
    Ok(number(interface, GET_FLAGS)? & LRO != 0)
}

pub(super) fn set_lro(interface: &str, on: bool) -> io::Result<()> {
    let flags = number(interface, GET_FLAGS)? & !LRO;
    ask(interface, SET_FLAGS, if on { flags | LRO } else { flags }).map(drop)
}

fn number(interface: &str, command: u32) -> io::Result<u32> {
    let answer = ask(interface, command, 0)?;
    Ok(u32::from_ne_bytes([answer[4], answer[5], answer[6], answer[7]]))
}

fn ask(interface: &str, command: u32, value: u32) -> io::Result<[u8; BYTES]> {
    let mut data = [0; BYTES];
    data[..4].copy_from_slice(&command.to_ne_bytes());
    data[4..8].copy_from_slice(&value.to_ne_bytes());
    let mut name = [0; libc::IFNAMSIZ];
    let length = interface.len().min(libc::IFNAMSIZ - 1);
    name[..length].copy_from_slice(&interface.as_bytes()[..length]);
    let mut request = Request { name, data: data.as_mut_ptr(), rest: [0; 16] };
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_no_loopback| UdpSocket::bind("[::1]:0"))?;
    // SAFETY: `request` is as large as the kernel's `struct ifreq`, its name ends with a zero byte, and `data` is larger than what
    // any of the commands reads or writes; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(data) } else { Err(io::Error::last_os_error()) }
}
