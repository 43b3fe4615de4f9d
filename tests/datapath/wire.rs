//! Packets, built header by header; and what the balancer is expected to make of them.

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, TcpHeader, UdpHeader,
};
use lb_common::{address::low_v4, flow::FlowKeyV4, target::Target};

use crate::world::{CLIENT, OWN_ADDRESS, OWN_MAC, ROUTER_MAC, VIP, WEB};

/// An IPv4 packet of a client.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) ip: Ipv4Header,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

/// What follows the IP header.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    Tcp(TcpHeader),
    Udp(UdpHeader),
    /// Nothing that this crate builds: the payload follows at once.
    None,
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

    /// A packet of another protocol.
    pub(crate) fn other(protocol: u8, payload: &[u8]) -> Self {
        Self::new(IpNumber(protocol), Transport::None).with_payload(payload)
    }

    fn new(protocol: IpNumber, transport: Transport) -> Self {
        let mut ip = Ipv4Header::new(0, 63, protocol, CLIENT, VIP).expect("an empty payload fits");
        (ip.identification, ip.dont_fragment) = (0x1d1d, true);
        Self { ip, transport, payload: Vec::new() }
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
        self.ip.source = source;
        self
    }

    pub(crate) fn to(mut self, destination: [u8; 4]) -> Self {
        self.ip.destination = destination;
        self
    }

    pub(crate) fn with_port(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.destination_port = port,
            Transport::Udp(udp) => udp.destination_port = port,
            Transport::None => panic!("no ports"),
        }
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ip.time_to_live = ttl;
        self
    }

    pub(crate) fn tos(mut self, tos: u8) -> Self {
        (self.ip.dscp, self.ip.ecn) = classes(tos);
        self
    }

    /// `words` words of IP options: "no operation".
    pub(crate) fn with_ip_options(mut self, words: usize) -> Self {
        self.ip.options = Ipv4Options::try_from(&[1_u8; 40][..4 * words]).expect("at most ten words");
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

    /// A fragment, at `offset` in units of eight bytes.
    pub(crate) fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        (self.ip.more_fragments, self.ip.dont_fragment) = (more, false);
        self
    }

    /// The 5-tuple.
    pub(crate) fn key(&self) -> FlowKeyV4 {
        let (source, destination) = match &self.transport {
            Transport::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            Transport::Udp(udp) => (udp.source_port, udp.destination_port),
            Transport::None => panic!("no ports"),
        };
        FlowKeyV4 {
            source: self.ip.source,
            destination: self.ip.destination,
            source_port: source.to_be_bytes(),
            destination_port: destination.to_be_bytes(),
            protocol: self.ip.protocol.0,
            padding: [0; 3],
        }
    }

    /// The IP packet.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut ip = self.ip.clone();
        let transport = match &self.transport {
            Transport::Tcp(tcp) => {
                let mut tcp = tcp.clone();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).expect("short enough");
                tcp.to_bytes().to_vec()
            }
            Transport::Udp(udp) => {
                let ports = (udp.source_port, udp.destination_port);
                let udp = UdpHeader::with_ipv4_checksum(ports.0, ports.1, &ip, &self.payload).expect("short enough");
                udp.to_bytes().to_vec()
            }
            Transport::None => Vec::new(),
        };
        ip.set_payload_len(transport.len() + self.payload.len()).expect("short enough");
        ip.header_checksum = ip.calc_header_checksum();
        [&ip.to_bytes()[..], &transport, &self.payload].concat()
    }

    /// As it comes from the router.
    pub(crate) fn frame(&self) -> Vec<u8> {
        framed(OWN_MAC, ROUTER_MAC, &self.packet())
    }

    /// As it comes from another member.
    pub(crate) fn tunnelled(&self, from: [u8; 4], outer_tos: u8) -> Vec<u8> {
        framed(OWN_MAC, ROUTER_MAC, &tunnel(from, OWN_ADDRESS, outer_tos, &self.packet()))
    }

    /// As it must go to a backend.
    pub(crate) fn delivered(&self, to: &Target) -> Vec<u8> {
        let mut inner = self.clone();
        inner.ip.time_to_live -= 1;
        let tos = inner.ip.dscp.value() << 2 | inner.ip.ecn.value();
        towards(to, tos, &inner.packet())
    }

    /// As it must go to another member: unchanged inside, and only the congestion bits outside.
    pub(crate) fn handed_off(&self, to: &Target) -> Vec<u8> {
        towards(to, self.ip.ecn.value(), &self.packet())
    }
}

/// An Ethernet frame with an IPv4 packet.
pub(crate) fn framed(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: from, destination: to, ether_type: EtherType::IPV4 };
    [&header.to_bytes()[..], packet].concat()
}

/// IPv4 in IPv4 (RFC 2003).
pub(crate) fn tunnel(from: [u8; 4], to: [u8; 4], tos: u8, inner: &[u8]) -> Vec<u8> {
    let mut outer = Ipv4Header::new(inner.len() as u16, 64, IpNumber::IPV4, from, to).expect("short enough");
    (outer.dscp, outer.ecn) = classes(tos);
    (outer.identification, outer.dont_fragment) = (0, true);
    outer.header_checksum = outer.calc_header_checksum();
    [&outer.to_bytes()[..], inner].concat()
}

fn towards(to: &Target, tos: u8, inner: &[u8]) -> Vec<u8> {
    let hop = &to.next_hop;
    framed(hop.destination, hop.source, &tunnel(OWN_ADDRESS, low_v4(&to.address), tos, inner))
}

fn classes(tos: u8) -> (IpDscp, IpEcn) {
    (IpDscp::try_new(tos >> 2).expect("six bits"), IpEcn::try_new(tos & 3).expect("two bits"))
}
