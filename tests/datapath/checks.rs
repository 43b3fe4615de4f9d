//! What the tests expect of a packet, as one line each.

use lb_common::{
    flow::{FlowEntry, FlowKey, FlowKeyV4, FlowKeyV6, Pending, WITNESSED, tick, ticks_of_ms},
    reason::Reason,
};

use crate::{
    rig::{Key, Rig, Seen, State},
    wire::Datagram,
    world::{SELF, stateless},
};

impl Rig {
    /// The frame stays as it was.
    #[track_caller]
    pub(crate) fn ends(&self, frame: &[u8], reason: Reason) {
        let seen = self.send(frame);
        assert_eq!((seen.reason.name(), seen.frame), (reason.name(), frame.to_vec()));
    }

    /// From the wire to a backend.
    #[track_caller]
    pub(crate) fn delivers(&self, datagram: &Datagram, backend: u16, reason: Reason) {
        self.becomes(&datagram.frame(), &datagram.delivered(&self.world.backends[&backend]), reason);
    }

    /// From the tunnel to a backend.
    #[track_caller]
    pub(crate) fn delivers_from(&self, peer: [u8; 4], datagram: &Datagram, backend: u16, reason: Reason) {
        let expected = datagram.delivered(&self.world.backends[&backend]);
        self.becomes(&datagram.tunnelled(peer, 0), &expected, reason);
    }

    /// From the wire to another member.
    #[track_caller]
    pub(crate) fn hands_off(&self, datagram: &Datagram, member: u8, reason: Reason) {
        self.becomes(&datagram.frame(), &datagram.handed_off(&self.world.members[&member]), reason);
    }

    /// Every byte of what comes out.
    #[track_caller]
    pub(crate) fn becomes(&self, frame: &[u8], expected: &[u8], reason: Reason) {
        let Seen { reason: seen, frame, .. } = self.send(frame);
        assert_eq!(seen.name(), reason.name());
        assert_eq!(hex(&frame), hex(expected), "{}", reason.name());
    }

    /// No entry, nothing pending, no event.
    #[track_caller]
    pub(crate) fn remembers_nothing(&self) {
        assert_eq!(self.state(), State::default());
        assert_eq!(self.events::<FlowKeyV4>(), []);
        assert_eq!(self.events::<FlowKeyV6>(), []);
    }

    /// The table holds this entry of the flow, and the agent was told so exactly once since the last look.
    #[track_caller]
    pub(crate) fn has_told<K: Key>(&self, key: &K, expected: FlowEntry) {
        self.holds(key, expected);
        let told: Vec<_> = self.events::<K>().into_iter().map(|(key, entry)| (key, timeless(entry))).collect();
        assert_eq!(told, [(*key, expected)]);
    }

    /// The table holds this entry of the flow, times apart.
    #[track_caller]
    pub(crate) fn holds<K: Key>(&self, key: &K, expected: FlowEntry) {
        assert_eq!(self.flow(key).map(timeless), Some(expected));
    }

    /// This is remembered of the tuple, times apart, and no event was sent.
    #[track_caller]
    pub(crate) fn expects<K: Key>(&self, key: &K, kind: u8, backend: u16, packets: u8, seq: u32) {
        let pending = self.pending(key).expect("something is remembered");
        assert!(is_recent(pending.last_seen));
        let seen = (pending.kind, pending.backend, pending.packets, pending.expected_seq);
        assert_eq!(seen, (kind, backend, packets, seq));
        assert_eq!(self.flow(key), None);
        assert_eq!(self.events::<K>(), []);
    }

    /// Lets what is remembered of a tuple become `ms` milliseconds older.
    pub(crate) fn age_pending<K: Key>(&self, key: &K, ms: u64) {
        let pending = self.pending(key).expect("something is remembered");
        let age = |stamp: u32| stamp.wrapping_sub(ticks_of_ms(ms));
        let aged = Pending { first_seen: age(pending.first_seen), last_seen: age(pending.last_seen), ..pending };
        self.set_pending(key, Some(&aged));
    }

    /// The backend that the stateless answer gives to a packet.
    pub(crate) fn stateless(&self, datagram: &Datagram) -> u16 {
        match datagram.is_v6() {
            true => stateless(&self.world, &datagram.key_v6()),
            false => stateless(&self.world, &datagram.key()),
        }
    }
}

/// An entry as the member under test makes it, with the owners 1 and 2 and without times.
pub(crate) fn entry<K: FlowKey>(key: &K, backend: u16, state: u8) -> FlowEntry {
    FlowEntry {
        last_seen: 0,
        created: 0,
        tag: key.tag(),
        creator_incarnation: 5,
        generation: 0,
        revision: 0,
        term: 0,
        backend,
        state,
        packets: 2,
        creator: SELF | WITNESSED,
        primary: 1,
        backup: 2,
        event: 0,
        padding: [0; 2],
    }
}

/// The entry without its times, which must be of this test.
#[track_caller]
pub(crate) fn timeless(entry: FlowEntry) -> FlowEntry {
    assert!(is_recent(entry.last_seen), "{entry:?}");
    FlowEntry { last_seen: 0, created: 0, ..entry }
}

/// The kernel's monotonic clock, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether a tick lies within the last ten seconds.
pub(crate) fn is_recent(stamp: u32) -> bool {
    tick(now_ns()).wrapping_sub(stamp) < ticks_of_ms(10_000)
}

/// In rows of 16 bytes, so that a difference is found by eye.
fn hex(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x} ")).collect()).collect()
}
