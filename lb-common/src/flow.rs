//! Flows: their keys, the entry that `flows` holds for each, and what precedes an entry.

use zerocopy::transmute;

use crate::{
    address::{Address, mapped},
    hash::{HashKey, mix, siphash13},
    map_type,
    service::ServiceKey,
};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of SCTP.
pub const SCTP: u8 = 132;

map_type! {
    /// A client's IPv4 5-tuple to a service.
    ///
    /// Aligned, so that it is hashed and compared by words.
    #[derive(Hash, PartialOrd, Ord)]
    #[repr(align(8))]
    pub struct FlowKeyV4: 16 {
        /// The client's address.
        pub source: [u8; 4],
        /// The VIP.
        pub destination: [u8; 4],
        /// The client's port, network order.
        pub source_port: [u8; 2],
        /// The service's port, network order.
        pub destination_port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub padding: [u8; 3],
    }

    /// A client's IPv6 5-tuple to a service.
    ///
    /// Aligned, so that it is hashed and compared by words.
    #[derive(Hash, PartialOrd, Ord)]
    #[repr(align(8))]
    pub struct FlowKeyV6: 40 {
        /// The client's address.
        pub source: Address,
        /// The VIP.
        pub destination: Address,
        /// The client's port, network order.
        pub source_port: [u8; 2],
        /// The service's port, network order.
        pub destination_port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub padding: [u8; 3],
    }

    /// What a member knows of a flow: the three registers of its record, and local facts.
    ///
    /// XDP inserts whole entries; in an existing one it writes only `last_seen`, `revision`, `state`
    /// and `packets`, after comparing `tag`: an element of a kernel HASH is recycled at once, so a
    /// value pointer may come to belong to another flow. Everything else is the agent's.
    pub struct FlowEntry: 32 {
        /// Tick of the last packet delivered here, or of the last refresh by a peer.
        pub last_seen: u32,
        /// Tick at which the flow became known here.
        pub created: u32,
        /// `FlowKey::tag` of the key this entry belongs to.
        pub tag: u32,
        /// Backend register: the incarnation of `creator` that chose the backend.
        pub creator_incarnation: u32,
        /// How often the tuple was placed anew; compared before the registers.
        pub generation: u16,
        /// Lifecycle register: rises with every revival, saturating.
        pub revision: u16,
        /// Owners register: rises with every change of the owners.
        pub term: u16,
        /// Backend register: the local slot of the backend.
        pub backend: u16,
        /// Lifecycle register: one of `STATE_*`.
        pub state: u8,
        /// Client packets counted here towards the next lifecycle step, saturating.
        pub packets: u8,
        /// Backend register: the member that chose the backend; its id, and `WITNESSED` if it saw the SYN.
        pub creator: u8,
        /// Owners register: the primary's member id.
        pub primary: u8,
        /// Owners register: the backup's member id, 0 in a cluster of one.
        pub backup: u8,
        /// Zero in maps; in an event, one of `EVENT_*`.
        pub event: u8,
        /// Zero.
        pub padding: [u8; 2],
    }

    /// What is remembered of a tuple before it earns an entry.
    pub struct Pending: 16 {
        /// Tick of the first packet counted.
        pub first_seen: u32,
        /// For `PENDING_SYN`: the sequence number that the handshake's ACK must carry.
        pub expected_seq: u32,
        /// Local slot of the backend that the first packet went to.
        pub backend: u16,
        /// One of `PENDING_*`.
        pub kind: u8,
        /// Packets counted, saturating.
        pub packets: u8,
        /// Tick of the last packet counted.
        pub last_seen: u32,
    }

    /// What the first fragment of a datagram told; the key is the datagram's, see `FlowKey::datagram`.
    pub struct Fragment: 8 {
        /// Source and destination port, network order.
        pub ports: [u8; 4],
        /// Tick at which the first fragment came.
        pub seen: u32,
    }
}

/// A TCP flow whose handshake is plausible but that is not yet worth replicating.
pub const STATE_YOUNG: u8 = 1;
/// A flow that is replicated.
pub const STATE_ESTABLISHED: u8 = 2;
/// The client sent a FIN.
pub const STATE_CLOSING: u8 = 3;
/// The client sent a RST.
pub const STATE_RESET: u8 = 4;
/// A tombstone; only in records, never in a map.
pub const STATE_DELETED: u8 = 5;

/// The bit of `FlowEntry::creator` that says the flow's beginning was seen.
pub const WITNESSED: u8 = 0x80;

/// An event that says nothing new: a member that does not know the flow asked for it (the second chance).
pub const EVENT_ASKED: u8 = 1;

/// A SYN, or SCTP's INIT, was seen.
pub const PENDING_SYN: u8 = 1;
/// A packet of an unknown TCP connection or SCTP association was seen.
pub const PENDING_MIDFLOW: u8 = 2;
/// A UDP packet was seen.
pub const PENDING_UDP: u8 = 3;

/// A young flow is replicated at its third client packet (SYN, ACK, and one more), or after `PLAUSIBLE_TICKS`.
pub const PLAUSIBLE_PACKETS: u8 = 3;
/// 100 ms: the age at which a young flow is replicated, and that a derived one must reach.
pub const PLAUSIBLE_TICKS: u32 = ticks_of_ms(100);
/// How long a SYN is remembered: as long as a client retries it (RFC 6298 doubles from 1 s; six tries take 63 s).
pub const PENDING_TICKS: u32 = ticks_of_ms(63_000);
/// Bare packets after the client's FIN that show it was not the client's: a close ends with at most two.
pub const REVIVAL_PACKETS: u8 = 3;

/// How long later fragments may follow the first: as long as hosts wait for them (RFC 1122, section 3.3.2; Linux: 30 s).
pub const FRAGMENT_TICKS: u32 = ticks_of_ms(30_000);

map_type! {
    /// An IPv4 flow's entry as the kernel reports it to the agent; the family is told by the length.
    pub struct EventV4: 48 {
        /// The flow.
        pub key: FlowKeyV4,
        /// Its entry at the moment of the event.
        pub entry: FlowEntry,
    }

    /// An IPv6 flow's entry as the kernel reports it to the agent.
    pub struct EventV6: 72 {
        /// The flow.
        pub key: FlowKeyV6,
        /// Its entry at the moment of the event.
        pub entry: FlowEntry,
    }
}

/// A tick is 2^20 ns, about 1.05 ms, of the local monotonic clock.
///
/// Ticks wrap after 52 days; ages are wrapping differences, and no timeout comes near half of that.
#[inline(always)]
pub const fn tick(now_ns: u64) -> u32 {
    (now_ns >> 20) as u32
}

/// `ms` milliseconds in ticks, rounded up.
pub const fn ticks_of_ms(ms: u64) -> u32 {
    ((ms * 1_000_000 + (1 << 20) - 1) >> 20) as u32
}

/// `ticks` in milliseconds.
pub const fn ms_of_ticks(ticks: u32) -> u64 {
    ((ticks as u64) << 20) / 1_000_000
}

/// A key of either family.
pub trait FlowKey: Copy + Eq {
    /// The family.
    const IS_V6: bool;
    /// The keyed hash that owners and backend of an unknown flow are derived from.
    fn hash(&self, key: &HashKey) -> u64;
    /// An unkeyed 32-bit fingerprint that ties an entry to its key.
    fn tag(&self) -> u32;
    /// The service the flow is for.
    fn service(&self) -> ServiceKey;
    /// IP protocol number.
    fn protocol(&self) -> u8;
    /// Source and destination port, network order.
    fn ports(&self) -> [u8; 4];
    /// The same addresses and protocol with other ports (source, destination; network order).
    fn with_ports(&self, ports: [u8; 4]) -> Self;

    /// The key under which `Fragment`s of this key's datagram `id` are remembered: the identification in the ports' place.
    #[inline(always)]
    fn datagram(&self, id: [u8; 4]) -> Self {
        self.with_ports(id)
    }

    /// What all flows between the two addresses have in common.
    #[inline(always)]
    fn without_ports(&self) -> Self {
        self.with_ports([0; 4])
    }
}

impl FlowKey for FlowKeyV4 {
    const IS_V6: bool = false;

    #[inline(always)]
    fn hash(&self, key: &HashKey) -> u64 {
        let words: [u64; 2] = transmute!(*self);
        siphash13(key, &words.map(u64::from_le))
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        let words: [u64; 2] = transmute!(*self);
        (mix(words[0] ^ words[1].rotate_left(23)) >> 32) as u32
    }

    #[inline(always)]
    fn service(&self) -> ServiceKey {
        ServiceKey {
            address: mapped(self.destination),
            port: self.destination_port,
            protocol: self.protocol,
            padding: 0,
        }
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn ports(&self) -> [u8; 4] {
        let [_, _, ports, _]: [[u8; 4]; 4] = transmute!(*self);
        ports
    }

    #[inline(always)]
    fn with_ports(&self, ports: [u8; 4]) -> Self {
        let [source, destination, _, protocol]: [u32; 4] = transmute!(*self);
        transmute!([source, destination, u32::from_ne_bytes(ports), protocol])
    }
}

impl FlowKey for FlowKeyV6 {
    const IS_V6: bool = true;

    #[inline(always)]
    fn hash(&self, key: &HashKey) -> u64 {
        let words: [u64; 5] = transmute!(*self);
        siphash13(key, &words.map(u64::from_le))
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        let words: [u64; 5] = transmute!(*self);
        (mix(words[0] ^ mix(words[1] ^ words[4]) ^ words[2].rotate_left(23) ^ words[3].rotate_left(41)) >> 32) as u32
    }

    #[inline(always)]
    fn service(&self) -> ServiceKey {
        ServiceKey { address: self.destination, port: self.destination_port, protocol: self.protocol, padding: 0 }
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn ports(&self) -> [u8; 4] {
        let [_, _, _, _, _, _, _, _, ports, _]: [[u8; 4]; 10] = transmute!(*self);
        ports
    }

    #[inline(always)]
    fn with_ports(&self, ports: [u8; 4]) -> Self {
        let [a, b, c, d, last]: [u64; 5] = transmute!(*self);
        let last: [u32; 2] = transmute!(last);
        let last: u64 = transmute!([u32::from_ne_bytes(ports), last[1]]);
        transmute!([a, b, c, d, last])
    }
}

impl FlowKeyV4 {
    /// The key of a 5-tuple; addresses and ports in network order.
    #[inline(always)]
    pub const fn new(
        source: [u8; 4],
        destination: [u8; 4],
        source_port: [u8; 2],
        destination_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        let ([a, b], [c, d]) = (source_port, destination_port);
        let ports = u32::from_ne_bytes([a, b, c, d]);
        Self::of_words(u32::from_ne_bytes(source), u32::from_ne_bytes(destination), ports, protocol)
    }

    /// The same from words as they lie in memory.
    #[inline(always)]
    pub const fn of_words(source: u32, destination: u32, ports: u32, protocol: u8) -> Self {
        // Four whole words: for a padding of bytes the eBPF compiler would call a byte-wise memset.
        transmute!([source, destination, ports, u32::from_ne_bytes([protocol, 0, 0, 0])])
    }
}

impl FlowKeyV6 {
    /// The key of a 5-tuple; addresses and ports in network order.
    #[inline(always)]
    pub const fn new(
        source: Address,
        destination: Address,
        source_port: [u8; 2],
        destination_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        let ([a, b], [c, d]) = (source_port, destination_port);
        Self::of_words(transmute!(source), transmute!(destination), u32::from_ne_bytes([a, b, c, d]), protocol)
    }

    /// The same from words as they lie in memory.
    #[inline(always)]
    pub const fn of_words(source: [u64; 2], destination: [u64; 2], ports: u32, protocol: u8) -> Self {
        let last: u64 = transmute!([ports, u32::from_ne_bytes([protocol, 0, 0, 0])]);
        transmute!([source[0], source[1], destination[0], destination[1], last])
    }
}

impl FlowEntry {
    /// The member that chose the backend.
    #[inline(always)]
    pub const fn creator_id(&self) -> u8 {
        self.creator & !WITNESSED
    }

    /// Whether the flow's beginning was seen (as opposed to derived from its later packets).
    #[inline(always)]
    pub const fn is_witnessed(&self) -> bool {
        self.creator & WITNESSED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_made_of_words_has_its_fields_in_place() {
        let key = FlowKeyV4::new([1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12], TCP);
        let fields = FlowKeyV4 {
            source: [1, 2, 3, 4],
            destination: [5, 6, 7, 8],
            source_port: [9, 10],
            destination_port: [11, 12],
            protocol: TCP,
            padding: [0; 3],
        };
        assert_eq!(key, fields);
        assert_eq!(key.with_ports([9, 10, 11, 13]), FlowKeyV4 { destination_port: [11, 13], ..fields });

        let key = FlowKeyV6::new([1; 16], [2; 16], [9, 10], [11, 12], UDP);
        let fields = FlowKeyV6 {
            source: [1; 16],
            destination: [2; 16],
            source_port: [9, 10],
            destination_port: [11, 12],
            protocol: UDP,
            padding: [0; 3],
        };
        assert_eq!(key, fields);
        assert_eq!(key.without_ports(), FlowKeyV6 { source_port: [0; 2], destination_port: [0; 2], ..fields });
    }

    #[test]
    fn ticks_are_rounded_up_and_back() {
        assert_eq!(ticks_of_ms(0), 0);
        assert!(ms_of_ticks(ticks_of_ms(100)) >= 100);
        assert_eq!(tick(1 << 20), 1);
    }
}
