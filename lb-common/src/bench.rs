//! What the benchmark's driver and its eBPF harness share: the course of packets that the harness lays.

use crate::map_type;

map_type! {
    /// Packets of one kind; an element of `courses`.
    pub struct Course: 160 {
        /// The first bytes of every packet, as words in memory order; how many are laid follows from `layout`.
        pub template: [u64; TEMPLATE_WORDS],
        /// Which of the programs in `targets` gets the packets.
        pub target: u32,
        /// One of `LAYOUT_*`.
        pub layout: u32,
        /// Length of every frame.
        pub frame_bytes: u32,
        /// How many packets of this course were sent before.
        pub sent: u32,
        /// Distinct clients less one; their number is a power of two.
        pub flow_mask: u32,
        /// The first client.
        pub base: u32,
        /// Odd; another one visits the same clients in another order.
        pub stride: u32,
        /// Interface that the generator of live frames sends by.
        pub ifindex: u32,
    }

    /// What the floor writes in front of every packet; the one element of `tunnel`.
    pub struct Tunnel: 52 {
        /// Destination and source MAC.
        pub macs: [u8; 12],
        /// Outer source.
        pub source_v4: [u8; 4],
        /// Outer destination.
        pub destination_v4: [u8; 4],
        /// Outer source.
        pub source_v6: [u8; 16],
        /// Outer destination.
        pub destination_v6: [u8; 16],
    }
}

/// Two courses take turns, so that a disturbance meets both: the first is usually the one to subtract.
pub const COURSES: u32 = 2;
/// Packets of a turn. The harness takes the time at its beginning: `BPF_PROG_TEST_RUN` answers in whole nanoseconds, and
/// its system call takes milliseconds before and after the packets.
pub const TURN: u32 = 1 << TURN_SHIFT;
/// log2 of it.
pub const TURN_SHIFT: u32 = 10;
/// Turns of one measurement at most.
pub const TURNS_MAX: u32 = 256;

/// Enough for the headers of IPv6 in IPv6.
pub const TEMPLATE_WORDS: usize = 16;

/// TCP over IPv4.
pub const LAYOUT_V4: u32 = 0;
/// TCP over IPv6.
pub const LAYOUT_V6: u32 = 1;
/// TCP over IPv4 in IPv4.
pub const LAYOUT_V4_IN_V4: u32 = 2;
/// TCP over IPv6 in IPv6.
pub const LAYOUT_V6_IN_V6: u32 = 3;
/// TCP over IPv6 in IPv4.
pub const LAYOUT_V6_IN_V4: u32 = 4;

/// Whose turn it is at the `n`th packet.
#[inline(always)]
pub const fn turn(n: u32) -> u32 {
    n >> TURN_SHIFT
}

/// How many packets of the same course came before the `n`th packet.
#[inline(always)]
pub const fn place(n: u32) -> u32 {
    (n >> TURN_SHIFT) / COURSES * TURN + n % TURN
}

/// The client of a course's `n`th packet: a permutation, so that neither client follows its neighbour in any table.
#[inline(always)]
pub const fn client(n: u32, course: &Course) -> u32 {
    let mask = course.flow_mask;
    let spread = (n.wrapping_add(course.sent) & mask).wrapping_mul(course.stride) & mask;
    let mixed = (spread ^ (spread >> 7)).wrapping_mul(course.stride) & mask;
    course.base.wrapping_add(mixed)
}

/// A client's IPv4 address: `10.k.x.y`, where the other bytes keep the header's checksum the same for all.
#[inline(always)]
pub const fn source_v4(client: u32) -> [u8; 4] {
    let k = client as u8;
    let [x, y] = (0x8000_u16 - k as u16).to_be_bytes();
    [10, k, x, y]
}

/// The last two bytes of a client's IPv6 address.
#[inline(always)]
pub const fn source_v6(client: u32) -> [u8; 2] {
    [1, client as u8]
}

/// A client's port, network order; clients below 2^23 have distinct addresses and ports.
#[inline(always)]
pub const fn source_port(client: u32) -> [u8; 2] {
    (1024 + (client >> 8) as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn every_client_of_a_course_comes_once() {
        for (flow_mask, stride) in [(0, 1), (0xfff, 0x9e37_79b1), (0xf_ffff, 0x85eb_ca6b)] {
            let course = Course { flow_mask, stride, base: 7, ..Course::new_zeroed() };
            let mut seen = vec![false; flow_mask as usize + 1];
            for n in 0..=flow_mask {
                let slot = &mut seen[(client(n, &course) - 7) as usize];
                assert!(!std::mem::replace(slot, true));
            }
        }
    }

    #[test]
    fn clients_are_distinct_and_their_addresses_add_up_to_the_same() {
        let word = |high, low| u32::from(u16::from_be_bytes([high, low]));
        let mut seen = std::collections::BTreeSet::new();
        for client in (0..1 << 23).step_by(61) {
            let [a, b, c, d] = source_v4(client);
            assert_eq!(word(a, b) + word(c, d), 0x0a00 + 0x8000);
            assert!(seen.insert((source_v4(client), source_port(client))));
        }
    }
}
