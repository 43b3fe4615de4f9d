//! `tandem decap`: takes the outer header off packets from the balancers, on a server without a tunnel device.

use std::{
    fmt,
    io::Write as _,
    net::{AddrParseError, Ipv4Addr},
    str::FromStr,
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use lb_common::{
    address::{Address, mapped},
    decap::{DECAP_ENTRIES, DECAP_FROM, DECAP_VIPS},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::io::{
    attach::{self, Mode},
    datapath::{self, DatapathError},
    netlink::Netlink,
};

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The interface that packets from balancers come in by.
    pub interface: String,
    /// Where the balancers are.
    pub from: Vec<Prefix>,
    /// For which addresses.
    pub vips: Vec<Ipv4Addr>,
    /// How the program is attached.
    pub mode: Mode,
}

/// An IPv4 prefix; written as one, or as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    address: Ipv4Addr,
    length: u8,
}

/// What is wrong with a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash.
    #[error("not an IPv4 address: {0}")]
    Address(#[from] AddrParseError),
    /// The part after the slash.
    #[error("the length of an IPv4 prefix is a number from 0 to 32")]
    Length,
    /// An address within the prefix instead of the prefix.
    #[error("has bits set beyond its length; the prefix is {0}")]
    HostBits(Prefix),
}

/// Attaches the program, prints "ready", and detaches at SIGTERM or SIGINT.
///
/// # Errors
///
/// The program cannot be loaded or attached; packets are then treated as before.
pub fn run(options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(!options.from.is_empty(), "--from needs at least one prefix");
    anyhow::ensure!(!options.vips.is_empty(), "--vip needs at least one address");
    for (option, given) in [("--from", options.from.len()), ("--vip", options.vips.len())] {
        anyhow::ensure!(given <= DECAP_ENTRIES as usize, "{option} takes at most {DECAP_ENTRIES}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(attached(options))
}

async fn attached(options: &Options) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut netlink = Netlink::open()?;
    // Asked before anything is loaded, and again by attaching.
    attach::unoccupied(&mut netlink, &options.interface)?;
    let mut ebpf = datapath::load_decap()?;
    fill(&mut ebpf, options)?;
    let program = datapath::program(&mut ebpf, "decap")?;
    let link = attach::attach_unpinned(&mut netlink, &options.interface, program, options.mode)?;
    println!("ready");
    std::io::stdout().flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(link);
    info!(interface = options.interface, "detached");
    Ok(())
}

fn fill(ebpf: &mut aya::Ebpf, options: &Options) -> Result<(), DatapathError> {
    let mut from: LpmTrie<MapData, Address, u32> = map(ebpf, DECAP_FROM)?;
    for prefix in &options.from {
        from.insert(&prefix.key(), 1, 0).map_err(|error| DatapathError::Map { name: DECAP_FROM, error })?;
    }
    let mut vips: HashMap<MapData, Address, u32> = map(ebpf, DECAP_VIPS)?;
    for vip in &options.vips {
        vips.insert(mapped(vip.octets()), 1, 0).map_err(|error| DatapathError::Map { name: DECAP_VIPS, error })?;
    }
    Ok(())
}

fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<T, DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    T::try_from(map).map_err(|error| DatapathError::Map { name, error })
}

impl Prefix {
    /// Over the v4-mapped address.
    fn key(&self) -> Key<Address> {
        Key::new(96 + u32::from(self.length), mapped(self.address.octets()))
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse()?;
        let length = length.parse().ok().filter(|length| *length <= 32).ok_or(PrefixError::Length)?;
        let network = address.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let prefix = Self { address: network.into(), length };
        if prefix.address == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_bad_ones_refused() {
        for good in ["10.0.1.0/24", "0.0.0.0/0", "10.0.1.11/32", "128.0.0.0/1"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        assert_eq!("10.0.1.11".parse::<Prefix>().unwrap().to_string(), "10.0.1.11/32");
        for bad in ["", "/", "10.0.1/24", "10.0.1.0/33", "10.0.1.0/-1", "10.0.1.0/", "::1/64", "10.0.1.0/24/1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let error = "10.0.1.1/24".parse::<Prefix>().unwrap_err();
        assert_eq!(error.to_string(), "has bits set beyond its length; the prefix is 10.0.1.0/24");
    }

    #[test]
    fn a_prefix_covers_the_mapped_addresses() {
        let key = "10.0.0.0/8".parse::<Prefix>().unwrap().key();
        assert_eq!(key.prefix_len(), 104);
        assert_eq!(key.data(), mapped([10, 0, 0, 0]));
    }
}
