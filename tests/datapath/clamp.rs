//! The program `clamp`: SYNs and SYN-ACKs that leave from a VIP name a smaller segment size; all else leaves untouched.

use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, PerCpuArray},
    programs::SchedClassifier,
};
use etherparse::{TcpHeader, TcpOptionElement as Option_};
use lb_common::{
    address::{Address, mapped},
    clamp::{CLAMP_COUNTERS, CLAMP_MSS, Outcome},
    decap::DECAP_VIPS,
    node::{V4, V6},
    reason::Counter,
};

use crate::{
    rig::load_object,
    wire::{Datagram, Transport},
    world::{DNS, VIP, VIP_V6},
};

/// What the programs of an interface say that leave a packet to the next one (linux/pkt_cls.h).
const TC_ACT_UNSPEC: i32 = -1;
const MSS: u16 = 1440;
const MSS_V6: u16 = 1420;

struct Server {
    ebpf: Ebpf,
    counters: PerCpuArray<aya::maps::MapData, Counter>,
}

impl Server {
    fn new() -> Self {
        let mut ebpf = load_object(|_| {});
        let program: &mut SchedClassifier = ebpf.program_mut("clamp").unwrap().try_into().expect("a classifier");
        program.load().expect("the verifier accepts it");
        let vips = ebpf.map_mut(DECAP_VIPS).expect("in the object");
        let mut vips = HashMap::<_, Address, u32>::try_from(vips).expect("a hash");
        vips.insert(mapped(VIP), V4 as u32, 0).expect("room");
        vips.insert(VIP_V6, V6 as u32, 0).expect("room");
        let bounds = ebpf.map_mut(CLAMP_MSS).expect("in the object");
        let mut bounds = Array::<_, u32>::try_from(bounds).expect("an array");
        bounds.set(V4 as u32, u32::from(MSS), 0).expect("in the array");
        bounds.set(V6 as u32, u32::from(MSS_V6), 0).expect("in the array");
        let counters = ebpf.take_map(CLAMP_COUNTERS).expect("in the object");
        Self { ebpf, counters: PerCpuArray::try_from(counters).expect("per CPU") }
    }

    fn counters(&self) -> [u64; Outcome::ALL.len()] {
        let sum = |outcome| self.counters.get(&(outcome as u32), 0).unwrap().iter().map(|count| count.packets).sum();
        Outcome::ALL.map(sum)
    }

    /// Runs the program, and checks that the outcome's counter, and no other, counts it.
    #[track_caller]
    fn makes(&self, frame: &[u8], expected: &[u8], outcome: Outcome) {
        let before = self.counters();
        let program: &SchedClassifier = self.ebpf.program("clamp").unwrap().try_into().expect("a classifier");
        let mut after = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut after), ..TestRunOptions::new() };
        let result = program.test_run(options).expect("the kernel runs it");
        after.truncate(result.data_size_out as usize);
        let counted: Vec<u64> = self.counters().iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(counted, Outcome::ALL.map(|other| u64::from(other == outcome)), "{}", outcome.name());
        assert_eq!(result.return_value as i32, TC_ACT_UNSPEC);
        assert_eq!(after, expected);
    }

    #[track_caller]
    fn leaves(&self, frame: &[u8], outcome: Outcome) {
        self.makes(frame, frame, outcome);
    }
}

/// What the server answers, with these options; a whole SYN-ACK, whose checksum etherparse computes.
fn answer(flags: &str, options: &[u8]) -> Datagram {
    let mut packet = Datagram::tcp(5000, flags).reversed();
    let Transport::Tcp(tcp) = &mut packet.transport else { panic!("it is TCP") };
    tcp.set_options_raw(options).expect("at most ten words");
    packet
}

fn named(bytes: u16) -> [u8; 4] {
    let [high, low] = bytes.to_be_bytes();
    [2, 4, high, low]
}

#[test]
fn a_larger_segment_size_is_lowered() {
    let server = Server::new();
    for flags in ["S.", "S"] {
        for size in [MSS + 1, 1460, 8960, u16::MAX] {
            let (before, after) = (answer(flags, &named(size)), answer(flags, &named(MSS)));
            server.makes(&before.frame(), &after.frame(), Outcome::Lowered);
            server.makes(&before.tagged(&[(0x8100, 7)]), &after.tagged(&[(0x8100, 7)]), Outcome::Lowered);
            let (before, after) = (answer(flags, &named(size)).v6(), answer(flags, &named(MSS_V6)).v6());
            let (before, after) = (from_vip_v6(before), from_vip_v6(after));
            server.makes(&before.frame(), &after.frame(), Outcome::Lowered);
            let extended = |packet: &Datagram| packet.clone().with_extension(60, 2).frame();
            server.makes(&extended(&before), &extended(&after), Outcome::Lowered);
        }
    }
    // With data (TCP Fast Open), and behind IP options.
    let (before, after) = (answer("S.", &named(1460)), answer("S.", &named(MSS)));
    let more = |packet: Datagram| packet.with_payload(b"an answer that came early").with_ip_options(3).frame();
    server.makes(&more(before), &more(after), Outcome::Lowered);
}

/// `v6` puts the client's address first; an answer has them the other way round.
fn from_vip_v6(packet: Datagram) -> Datagram {
    packet.source_v6(VIP_V6).destination_v6(crate::world::CLIENT_V6)
}

#[test]
fn the_option_is_found_wherever_it_stands() {
    let server = Server::new();
    // As Linux sends it, and as etherparse writes it.
    let mut linux = TcpHeader::default();
    let elements = |mss| {
        [
            Option_::MaximumSegmentSize(mss),
            Option_::SelectiveAcknowledgementPermitted,
            Option_::Timestamp(1, 2),
            Option_::Noop,
            Option_::WindowScale(7),
        ]
    };
    linux.set_options(&elements(1460)).expect("they fit");
    let before = answer("S.", linux.options.as_slice());
    linux.set_options(&elements(MSS)).expect("they fit");
    server.makes(&before.frame(), &answer("S.", linux.options.as_slice()).frame(), Outcome::Lowered);
    // Behind padding of every length, at even and at odd offsets, up to the last place where it fits.
    for padding in 0..=36 {
        let options = |size| {
            let mut options = [vec![1; padding], named(size).to_vec()].concat();
            options.resize(40, 0);
            options
        };
        let (before, after) = (answer("S.", &options(0xfffe)), answer("S.", &options(MSS)));
        server.makes(&before.frame(), &after.frame(), Outcome::Lowered);
        let (before, after) = (answer("S.", &options(1460)), answer("S.", &options(MSS)));
        server.makes(&before.frame(), &after.frame(), Outcome::Lowered);
    }
    // Behind options of every length.
    for length in 2..=36 {
        let options = |size| {
            let mut options = [vec![254, length], vec![7; usize::from(length) - 2], named(size).to_vec()].concat();
            options.resize(40, 0);
            options
        };
        server.makes(&answer("S.", &options(1460)).frame(), &answer("S.", &options(MSS)).frame(), Outcome::Lowered);
    }
}

#[test]
fn all_else_leaves_untouched() {
    let server = Server::new();
    let large = named(1460);
    for size in [MSS, MSS - 1, 536, 1, 0] {
        server.leaves(&answer("S.", &named(size)).frame(), Outcome::LowEnough);
    }
    // Only what begins a connection names a segment size, and only that of a VIP is ours.
    for flags in [".", "P.", "F.", "R", "R."] {
        server.leaves(&answer(flags, &large).frame(), Outcome::Passed);
    }
    server.leaves(&answer("S.", &large).from([203, 0, 113, 11]).frame(), Outcome::Passed);
    server.leaves(&Datagram::tcp(5000, "S").frame(), Outcome::Passed);
    server.leaves(&answer("S.", &large).fragment(0, true).frame(), Outcome::Passed);
    server.leaves(&answer("S.", &large).fragment(1, false).frame(), Outcome::Passed);
    server.leaves(&from_vip_v6(answer("S.", &large).v6()).fragment(0, true).frame(), Outcome::Passed);
    server.leaves(&Datagram::udp(5000, DNS).reversed().frame(), Outcome::Passed);
    server.leaves(&Datagram::other(1, &[0; 40]).reversed().frame(), Outcome::Passed);
    // A mapped address in an IPv6 header is no IPv4 VIP.
    server.leaves(&answer("S.", &large).v6().source_v6(mapped(VIP)).frame(), Outcome::Passed);
    // No ethertype of IP.
    let mut arp = answer("S.", &large).frame();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    server.leaves(&arp, Outcome::Passed);
}

#[test]
fn options_that_name_nothing_or_cannot_be_read_are_left_alone() {
    let server = Server::new();
    let padded = |options: &[u8]| {
        let mut options = options.to_vec();
        options.resize(40, 1);
        answer("S.", &options).frame()
    };
    let unnamed: [&[u8]; 4] = [&[], &[0, 2, 4, 0xff, 0xff], &[3, 3, 7], &[254, 38]];
    for options in unnamed {
        server.leaves(&padded(options), Outcome::Unnamed);
    }
    server.leaves(&answer("S.", &[]).frame(), Outcome::Unnamed);
    // The last place is too short for it.
    server.leaves(&padded(&[&[1; 37][..], &[2, 4, 0xff]].concat()), Outcome::Unnamed);
    let unreadable: [&[u8]; 5] = [&[2, 3, 0xff], &[2, 5, 0xff, 0xff, 0xff], &[2, 0], &[254, 0], &[254, 1]];
    for options in unreadable {
        server.leaves(&padded(options), Outcome::Unreadable);
    }
    // A header length below the least, and one beyond the frame.
    let mut short = answer("S.", &named(1460)).frame();
    short[14 + 20 + 12] = 0x40;
    server.leaves(&short, Outcome::Unnamed);
    let mut long = answer("S.", &[1, 1, 1, 1]).frame();
    long[14 + 20 + 12] = 0xf0;
    server.leaves(&long, Outcome::Unreadable);
    // Frames that end anywhere; the kernel runs none that ends within the IP header.
    let whole = answer("S.", &named(1460)).frame();
    for length in 14 + 20..whole.len() {
        let outcome = if length < 14 + 20 + 20 { Outcome::Passed } else { Outcome::Unreadable };
        server.leaves(&whole[..length], outcome);
    }
}
