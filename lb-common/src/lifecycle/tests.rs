use std::vec::Vec;

use zerocopy::FromZeros as _;

use super::*;
use crate::packet::{ACK, ETHERNET, IpFields, OuterFields, Part};

const ALL_KINDS: [Kind; 5] = [Kind::Syn, Kind::Fin, Kind::Rst, Kind::Data, Kind::Bare];

/// State and packets after a packet of each kind, in the order of `ALL_KINDS`; `r` where the flow is revived.
#[test]
fn every_state_takes_every_kind_of_packet() {
    let (y, e, c, r) = (STATE_YOUNG, STATE_ESTABLISHED, STATE_CLOSING, STATE_RESET);
    let rows = [
        (y, 0, [(y, 0, false), (c, 0, false), (r, 0, false), (y, 1, false), (y, 1, false)]),
        (y, 1, [(y, 1, false), (c, 0, false), (r, 0, false), (y, 2, false), (y, 2, false)]),
        (y, 2, [(y, 2, false), (c, 0, false), (r, 0, false), (e, 3, false), (e, 3, false)]),
        (y, 255, [(y, 255, false), (c, 0, false), (r, 0, false), (e, 255, false), (e, 255, false)]),
        (e, 0, [(e, 0, false), (c, 0, false), (r, 0, false), (e, 0, false), (e, 0, false)]),
        (e, 3, [(e, 3, false), (c, 0, false), (r, 0, false), (e, 3, false), (e, 3, false)]),
        (c, 0, [(c, 0, false), (c, 0, false), (r, 0, false), (e, 0, true), (c, 1, false)]),
        (c, 1, [(c, 1, false), (c, 1, false), (r, 0, false), (e, 0, true), (c, 2, false)]),
        (c, 2, [(c, 2, false), (c, 2, false), (r, 0, false), (e, 0, true), (e, 0, true)]),
        (c, 255, [(c, 255, false), (c, 255, false), (r, 0, false), (e, 0, true), (e, 0, true)]),
        (r, 0, [(r, 0, false), (c, 0, true), (r, 0, false), (e, 0, true), (e, 0, true)]),
    ];
    for (state, packets, after) in rows {
        for (kind, (state_after, packets_after, revives)) in ALL_KINDS.into_iter().zip(after) {
            for revision in [0, 7, u16::MAX] {
                let entry = FlowEntry { state, packets, revision, last_seen: 5, ..FlowEntry::new_zeroed() };
                let expected = Lifecycle {
                    last_seen: 99,
                    revision: revision.saturating_add(u16::from(revives)),
                    state: state_after,
                    packets: packets_after,
                };
                let is_news = state_after != state;
                assert_eq!(next_step(&entry, kind, 99), (expected, is_news), "state {state}, {packets}, {kind:?}");
            }
        }
    }
}

#[test]
fn no_packet_makes_a_state_that_a_map_must_not_hold() {
    for state in 0..=u8::MAX {
        for kind in ALL_KINDS {
            let entry = FlowEntry { state, ..FlowEntry::new_zeroed() };
            let (step, _) = next_step(&entry, kind, 1);
            assert!(step.state == state || (STATE_YOUNG..=STATE_RESET).contains(&step.state));
        }
    }
}

#[test]
fn the_strongest_flag_says_what_a_packet_is() {
    let kinds: Vec<Kind> = [SYN, SYN | ACK, FIN, FIN | ACK, RST, RST | ACK, RST | SYN, RST | FIN, SYN | FIN, ACK, 0]
        .into_iter()
        .map(|flags| Kind::of(&packet(flags, false)))
        .collect();
    let [syn, fin, rst, _, bare] = ALL_KINDS;
    assert_eq!(kinds, [syn, syn, fin, fin, rst, rst, rst, rst, syn, bare, bare]);
    assert_eq!(Kind::of(&packet(ACK, true)), Kind::Data);
    assert_eq!(Kind::of(&packet(FIN | ACK, true)), Kind::Fin);
}

fn packet(flags: u8, has_payload: bool) -> Packet<()> {
    Packet {
        key: (),
        flags,
        seq: 0,
        has_payload,
        part: Part::Whole,
        datagram: [0; 4],
        via_peer: false,
        ip: IpFields::default(),
        outer: OuterFields::default(),
        at: ETHERNET,
    }
}
