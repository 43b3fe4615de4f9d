//! Packets, built header by header; and what the balancer is expected to make of them.

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpEcn,
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};
use lb_common::{
    address::{Address, is_mapped, low_v4, mapped},
    flow::{FlowKey as _, FlowKeyV4, FlowKeyV6},
    packet::{ROUND, SECOND_CHANCE},
    target::{NextHop, Target},
};

use crate::world::{CLIENT, CLIENT_V6, DIAMETER, OWN_ADDRESS, OWN_ADDRESS_V6, OWN_MAC, ROUTER_MAC, VIP, VIP_V6, WEB};

/// A packet of a client.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) ip: Ip,
    pub(crate) protocol: IpNumber,
    /// IPv6: in their order, each of a kind and its bytes from the second on (the first one names what follows).
    extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

/// The IP header.
#[derive(Clone, Debug)]
pub(crate) enum Ip {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

/// What follows the IP header.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    Tcp(TcpHeader),
    Udp(UdpHeader),
    /// Source and destination port; the chunks are the payload.
    Sctp(u16, u16),
    /// Nothing that this crate builds: the payload follows at once.
    None,
}

/// SCTP's chunk types (RFC 9260, section 3.2).
pub(crate) mod chunk {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const INIT: u8 = 1;
    pub(crate) const HEARTBEAT: u8 = 4;
    pub(crate) const ABORT: u8 = 6;
    pub(crate) const SHUTDOWN: u8 = 7;
    pub(crate) const COOKIE_ECHO: u8 = 10;
}

impl Datagram {
    /// A TCP segment from the client's `port` to the service `web`, its flags as tcpdump writes them: `S`, `.`, `P.`, `F.`, `R`.
    pub(crate) fn tcp(port: u16, flags: &str) -> Self {
        let mut tcp = TcpHeader::new(port, WEB, 1000, 0xfaf0);
        tcp.syn = flags.contains('S');
        tcp.fin = flags.contains('F');
        tcp.rst = flags.contains('R');
        tcp.psh = flags.contains('P');
        tcp.ack = flags.contains('.');
        Self::new(IpNumber::TCP, Transport::Tcp(tcp))
    }

    /// A UDP datagram of 12 bytes from the client's `port` to `destination_port` of the VIP.
    pub(crate) fn udp(port: u16, destination_port: u16) -> Self {
        let udp = UdpHeader { source_port: port, destination_port, length: 0, checksum: 0 };
        Self::new(IpNumber::UDP, Transport::Udp(udp)).with_payload(b"a question. ")
    }

    /// An SCTP packet from the client's `port` to the service `diameter`, of one chunk of this kind.
    pub(crate) fn sctp(port: u16, kind: u8) -> Self {
        Self::new(IpNumber::SCTP, Transport::Sctp(port, DIAMETER)).with_payload(&[kind, 0, 0, 8, 1, 2, 3, 4])
    }

    /// A packet of another protocol.
    pub(crate) fn other(protocol: u8, payload: &[u8]) -> Self {
        Self::new(IpNumber(protocol), Transport::None).with_payload(payload)
    }

    /// An ICMP message.
    pub(crate) fn icmp(kind: Icmpv4Type, data: &[u8]) -> Self {
        let header = Icmpv4Header::with_checksum(kind, data);
        Self::other(1, &[&header.to_bytes()[..], data].concat())
    }

    /// An ICMPv6 message.
    pub(crate) fn icmp_v6(kind: Icmpv6Type, data: &[u8]) -> Self {
        let header = Icmpv6Header::with_checksum(kind, CLIENT_V6, VIP_V6, data).expect("short enough");
        Self::other(58, &[&header.to_bytes()[..], data].concat()).v6()
    }

    /// An echo request (ping).
    pub(crate) fn ping(id: u16, data: &[u8]) -> Self {
        Self::icmp(Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 1 }), data)
    }

    /// The same of IPv6.
    pub(crate) fn ping_v6(id: u16, data: &[u8]) -> Self {
        Self::icmp_v6(Icmpv6Type::EchoRequest(IcmpEchoHeader { id, seq: 1 }), data)
    }

    fn new(protocol: IpNumber, transport: Transport) -> Self {
        let mut ip = Ipv4Header::new(0, 63, protocol, CLIENT, VIP).expect("an empty payload fits");
        (ip.identification, ip.dont_fragment) = (0x1d1d, true);
        Self { ip: Ip::V4(ip), protocol, extensions: Vec::new(), transport, payload: Vec::new() }
    }

    /// The same from the IPv6 client to the IPv6 VIP.
    pub(crate) fn v6(mut self) -> Self {
        self.ip = Ip::V6(Ipv6Header {
            traffic_class: self.class(),
            flow_label: Ipv6FlowLabel::try_new(0xbeef5).expect("20 bits"),
            payload_length: 0,
            next_header: self.protocol,
            hop_limit: self.hops(),
            source: CLIENT_V6,
            destination: VIP_V6,
        });
        self
    }

    pub(crate) fn is_v6(&self) -> bool {
        matches!(self.ip, Ip::V6(_))
    }

    fn v4_mut(&mut self) -> &mut Ipv4Header {
        match &mut self.ip {
            Ip::V4(ip) => ip,
            Ip::V6(_) => panic!("it is IPv6"),
        }
    }

    fn v6_mut(&mut self) -> &mut Ipv6Header {
        match &mut self.ip {
            Ip::V6(ip) => ip,
            Ip::V4(_) => panic!("it is IPv4"),
        }
    }

    fn class(&self) -> u8 {
        match &self.ip {
            Ip::V4(ip) => ip.dscp.value() << 2 | ip.ecn.value(),
            Ip::V6(ip) => ip.traffic_class,
        }
    }

    fn hops(&self) -> u8 {
        match &self.ip {
            Ip::V4(ip) => ip.time_to_live,
            Ip::V6(ip) => ip.hop_limit,
        }
    }

    pub(crate) fn seq(mut self, seq: u32) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.sequence_number = seq,
            other => panic!("{other:?} has no sequence numbers"),
        }
        self
    }

    pub(crate) fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn from(mut self, source: [u8; 4]) -> Self {
        self.v4_mut().source = source;
        self
    }

    pub(crate) fn to(mut self, destination: [u8; 4]) -> Self {
        self.v4_mut().destination = destination;
        self
    }

    pub(crate) fn source_v6(mut self, source: Address) -> Self {
        self.v6_mut().source = source;
        self
    }

    pub(crate) fn destination_v6(mut self, destination: Address) -> Self {
        self.v6_mut().destination = destination;
        self
    }

    /// Of this destination port.
    pub(crate) fn with_port(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.destination_port = port,
            Transport::Udp(udp) => udp.destination_port = port,
            Transport::Sctp(_, destination) => *destination = port,
            Transport::None => panic!("no ports"),
        }
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.ip {
            Ip::V4(ip) => ip.time_to_live = ttl,
            Ip::V6(ip) => ip.hop_limit = ttl,
        }
        self
    }

    pub(crate) fn tos(mut self, tos: u8) -> Self {
        match &mut self.ip {
            Ip::V4(ip) => (ip.dscp, ip.ecn) = classes(tos),
            Ip::V6(ip) => ip.traffic_class = tos,
        }
        self
    }

    /// With this identification in the IPv4 header.
    pub(crate) fn identified(mut self, identification: u16) -> Self {
        self.v4_mut().identification = identification;
        self
    }

    /// Routers may fragment it.
    pub(crate) fn divisible(mut self) -> Self {
        self.v4_mut().dont_fragment = false;
        self
    }

    /// With this flow label.
    pub(crate) fn label(mut self, label: u32) -> Self {
        self.v6_mut().flow_label = Ipv6FlowLabel::try_new(label).expect("20 bits");
        self
    }

    /// `words` words of IP options: "no operation".
    pub(crate) fn with_ip_options(mut self, words: usize) -> Self {
        self.v4_mut().options = Ipv4Options::try_from(&[1_u8; 40][..4 * words]).expect("at most ten words");
        self
    }

    /// `words` words of TCP options: "no operation".
    pub(crate) fn with_tcp_options(mut self, words: usize) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.set_options_raw(&[1; 40][..4 * words]).expect("at most ten words"),
            other => panic!("{other:?} has no options"),
        }
        self
    }

    /// One more extension header, of `units` times eight bytes: padding (RFC 8200, section 4.2).
    pub(crate) fn with_extension(mut self, kind: u8, units: u8) -> Self {
        let length = usize::from(units) * 8;
        let mut bytes = vec![units - 1];
        // PadN holds at most 255 bytes; longer headers take several.
        while bytes.len() < length - 1 {
            let padding = (length - 1 - bytes.len()).min(200);
            match padding {
                1 => bytes.push(0),
                _ => bytes.extend([&[1, padding as u8 - 2][..], &vec![0; padding - 2]].concat()),
            }
        }
        self.extensions.push((kind, bytes));
        self
    }

    /// A fragment, at `offset` in units of eight bytes.
    pub(crate) fn fragment(mut self, offset: u16, more: bool) -> Self {
        match &mut self.ip {
            Ip::V4(ip) => {
                ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
                (ip.more_fragments, ip.dont_fragment) = (more, false);
            }
            Ip::V6(_) => {
                let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
                self.extensions.push((44, vec![0, a, b, 0x1d, 0x2d, 0x3d, 0x4d]));
            }
        }
        self
    }

    /// The packet in two fragments, the first with so many units of eight bytes behind the IP headers.
    pub(crate) fn split(&self, units: u16) -> [Self; 2] {
        let bytes = self.upper();
        let (first, rest) = bytes.split_at(usize::from(units) * 8);
        let part = |bytes: &[u8]| Self { transport: Transport::None, ..self.clone() }.with_payload(bytes);
        [part(first).fragment(0, true), part(rest).fragment(units, false)]
    }

    /// As the server would send it: addresses and ports exchanged.
    pub(crate) fn reversed(mut self) -> Self {
        match &mut self.ip {
            Ip::V4(ip) => std::mem::swap(&mut ip.source, &mut ip.destination),
            Ip::V6(ip) => std::mem::swap(&mut ip.source, &mut ip.destination),
        }
        match &mut self.transport {
            Transport::Tcp(tcp) => std::mem::swap(&mut tcp.source_port, &mut tcp.destination_port),
            Transport::Udp(udp) => std::mem::swap(&mut udp.source_port, &mut udp.destination_port),
            Transport::Sctp(source, destination) => std::mem::swap(source, destination),
            Transport::None => {}
        }
        self
    }

    fn ports(&self) -> ([u8; 2], [u8; 2]) {
        let (source, destination) = match &self.transport {
            Transport::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            Transport::Udp(udp) => (udp.source_port, udp.destination_port),
            Transport::Sctp(source, destination) => (*source, *destination),
            Transport::None => (0, 0),
        };
        (source.to_be_bytes(), destination.to_be_bytes())
    }

    /// The 5-tuple; without ports where there are none.
    pub(crate) fn key(&self) -> FlowKeyV4 {
        let (source_port, destination_port) = self.ports();
        let Ip::V4(ip) = &self.ip else { panic!("it is IPv6") };
        FlowKeyV4 {
            source: ip.source,
            destination: ip.destination,
            source_port,
            destination_port,
            protocol: self.protocol.0,
            padding: [0; 3],
        }
    }

    /// The same of an IPv6 packet.
    pub(crate) fn key_v6(&self) -> FlowKeyV6 {
        let (source_port, destination_port) = self.ports();
        let Ip::V6(ip) = &self.ip else { panic!("it is IPv4") };
        FlowKeyV6 {
            source: ip.source,
            destination: ip.destination,
            source_port,
            destination_port,
            protocol: self.protocol.0,
            padding: [0; 3],
        }
    }

    /// What tells its flow from others in outer headers.
    pub(crate) fn tag(&self) -> u32 {
        if self.is_v6() { self.key_v6().tag() } else { self.key().tag() }
    }

    /// What follows the IP headers.
    fn upper(&self) -> Vec<u8> {
        let transport = match (&self.transport, &self.ip) {
            (Transport::Tcp(tcp), ip) => {
                let mut tcp = tcp.clone();
                tcp.checksum = match ip {
                    Ip::V4(ip) => tcp.calc_checksum_ipv4(ip, &self.payload).expect("short enough"),
                    Ip::V6(ip) => tcp.calc_checksum_ipv6(ip, &self.payload).expect("short enough"),
                };
                tcp.to_bytes().to_vec()
            }
            (Transport::Udp(udp), ip) => {
                let ports = (udp.source_port, udp.destination_port);
                let udp = match ip {
                    Ip::V4(ip) => UdpHeader::with_ipv4_checksum(ports.0, ports.1, ip, &self.payload),
                    Ip::V6(ip) => UdpHeader::with_ipv6_checksum(ports.0, ports.1, ip, &self.payload),
                };
                udp.expect("short enough").to_bytes().to_vec()
            }
            (Transport::Sctp(..), _) => {
                let (source, destination) = self.ports();
                // Nobody on the way looks at the verification tag or the checksum (CRC32c).
                [&source[..], &destination, &[0xa5; 8]].concat()
            }
            (Transport::None, _) => Vec::new(),
        };
        [transport, self.payload.clone()].concat()
    }

    /// The IP packet.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut body = self.upper();
        match &self.ip {
            Ip::V4(ip) => {
                let mut ip = ip.clone();
                ip.set_payload_len(body.len()).expect("short enough");
                ip.header_checksum = ip.calc_header_checksum();
                [&ip.to_bytes()[..], &body].concat()
            }
            Ip::V6(ip) => {
                let mut ip = ip.clone();
                let mut next = self.protocol.0;
                for (kind, bytes) in self.extensions.iter().rev() {
                    body = [&[next][..], bytes, &body].concat();
                    next = *kind;
                }
                ip.next_header = IpNumber(next);
                ip.set_payload_length(body.len()).expect("short enough");
                [&ip.to_bytes()[..], &body].concat()
            }
        }
    }

    /// As it comes from the router.
    pub(crate) fn frame(&self) -> Vec<u8> {
        framed(OWN_MAC, ROUTER_MAC, &self.packet())
    }

    /// As it comes from the router, with these tags.
    pub(crate) fn tagged(&self, tags: &[Tag]) -> Vec<u8> {
        with_tags(tags, self.frame())
    }

    /// As it comes from another member.
    pub(crate) fn tunnelled(&self, from: [u8; 4], outer_tos: u8) -> Vec<u8> {
        framed(OWN_MAC, ROUTER_MAC, &tunnel(from, OWN_ADDRESS, outer_tos, &self.packet()))
    }

    /// As it comes from another member's IPv6 address.
    pub(crate) fn tunnelled_v6(&self, from: Address, outer_tos: u8) -> Vec<u8> {
        framed(OWN_MAC, ROUTER_MAC, &tunnel_v6(from, OWN_ADDRESS_V6, outer_tos, 0x12345, &self.packet()))
    }

    /// As it must go to a backend.
    pub(crate) fn delivered(&self, to: &Target) -> Vec<u8> {
        self.delivered_as(self.tag(), to)
    }

    /// As it must go to a backend, as a packet of the flow with this tag.
    pub(crate) fn delivered_as(&self, tag: u32, to: &Target) -> Vec<u8> {
        towards(to, own_address(to), self.class(), tag, &self.one_hop_on().packet())
    }

    /// As it must go to another member: unchanged inside, and only the congestion bits outside.
    pub(crate) fn handed_off(&self, to: &Target) -> Vec<u8> {
        self.handed_off_as(self.tag(), to)
    }

    /// The same of a packet of the flow with this tag.
    pub(crate) fn handed_off_as(&self, tag: u32, to: &Target) -> Vec<u8> {
        towards(to, own_address(to), self.class() & 3, tag, &self.packet())
    }

    /// As it must go to another member that is asked to deliver it.
    pub(crate) fn asking(&self, to: &Target) -> Vec<u8> {
        towards(to, own_address(to), self.class() & 3 | SECOND_CHANCE, self.tag(), &self.one_hop_on().packet())
    }

    /// As it must go to another member that sends it back.
    pub(crate) fn sent_round(&self, to: &Target) -> Vec<u8> {
        towards(to, own_address(to), self.class() & 3 | ROUND, self.tag(), &self.one_hop_on().packet())
    }

    /// With a TTL of one less.
    pub(crate) fn one_hop_on(&self) -> Self {
        self.clone().ttl(self.hops() - 1)
    }
}

/// A VLAN tag: TPID and TCI.
pub(crate) type Tag = (u16, u16);

/// An Ethernet frame with an IP packet.
pub(crate) fn framed(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let header = Ethernet2Header { source: from, destination: to, ether_type };
    [&header.to_bytes()[..], packet].concat()
}

/// The same frame with tags (IEEE 802.1Q), the outer one first.
pub(crate) fn with_tags(tags: &[Tag], mut frame: Vec<u8>) -> Vec<u8> {
    for (protocol, control) in tags.iter().rev() {
        let tag = [protocol.to_be_bytes(), control.to_be_bytes()].concat();
        frame.splice(12..12, tag);
    }
    frame
}

/// IP in IPv4 (RFC 2003, RFC 4213).
pub(crate) fn tunnel(from: [u8; 4], to: [u8; 4], tos: u8, inner: &[u8]) -> Vec<u8> {
    let mut outer = Ipv4Header::new(inner.len() as u16, 64, protocol_of(inner), from, to).expect("short enough");
    (outer.dscp, outer.ecn) = classes(tos);
    (outer.identification, outer.dont_fragment) = (0, true);
    outer.header_checksum = outer.calc_header_checksum();
    [&outer.to_bytes()[..], inner].concat()
}

/// IP in IPv6 (RFC 2473).
pub(crate) fn tunnel_v6(from: Address, to: Address, tos: u8, label: u32, inner: &[u8]) -> Vec<u8> {
    let outer = Ipv6Header {
        traffic_class: tos,
        flow_label: Ipv6FlowLabel::try_new(label).expect("20 bits"),
        payload_length: inner.len() as u16,
        next_header: protocol_of(inner),
        hop_limit: 64,
        source: from,
        destination: to,
    };
    [&outer.to_bytes()[..], inner].concat()
}

/// The protocol number of a packet in a tunnel.
fn protocol_of(inner: &[u8]) -> IpNumber {
    if inner[0] >> 4 == 6 { IpNumber::IPV6 } else { IpNumber::IPV4 }
}

/// In a tunnel from `source` to a target; `tag` is the flow's.
pub(crate) fn towards(to: &Target, source: Address, tos: u8, tag: u32, inner: &[u8]) -> Vec<u8> {
    let packet = if is_mapped(&to.address) {
        tunnel(low_v4(&source), low_v4(&to.address), tos, inner)
    } else {
        // The low 20 bits of the tag's bytes.
        let label = u32::from_be_bytes(tag.to_ne_bytes()) & 0xf_ffff;
        tunnel_v6(source, to.address, tos, label, inner)
    };
    by_way_of(&to.next_hop, &packet)
}

/// As it leaves for a next hop.
pub(crate) fn by_way_of(hop: &NextHop, packet: &[u8]) -> Vec<u8> {
    let tags: Vec<Tag> = hop.tags[..usize::from(hop.tag_bytes)]
        .chunks(4)
        .map(|tag| (u16::from_be_bytes([tag[0], tag[1]]), u16::from_be_bytes([tag[2], tag[3]])))
        .collect();
    with_tags(&tags, framed(hop.destination, hop.source, packet))
}

/// The address of the member under test from which a tunnel to this target comes.
pub(crate) fn own_address(to: &Target) -> Address {
    if is_mapped(&to.address) { mapped(OWN_ADDRESS) } else { OWN_ADDRESS_V6 }
}

fn classes(tos: u8) -> (IpDscp, IpEcn) {
    (IpDscp::try_new(tos >> 2).expect("six bits"), IpEcn::try_new(tos & 3).expect("two bits"))
}
