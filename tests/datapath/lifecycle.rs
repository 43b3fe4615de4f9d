//! Law 5: no FIN, RST or SYN destroys a live entry, and no SYN moves a flow off a backend in service.

use lb_common::{
    flow::{FlowEntry, STATE_CLOSING, STATE_ESTABLISHED, STATE_RESET, STATE_YOUNG, tick, ticks_of_ms},
    reason::Reason,
    target::{TARGET_DOWN, TARGET_DRAINING, TARGET_REMOVED, TARGET_SERVING},
};

use crate::{
    checks::{entry, now_ns},
    rig::Rig,
    wire::Datagram,
    world::{DNS, ring, world},
};

const PORT: u16 = 5000;

/// A client's packet of each kind.
fn packet(kind: &str) -> Datagram {
    match kind {
        "SYN" => Datagram::tcp(PORT, "S"),
        "SYN-ACK" => Datagram::tcp(PORT, "S."),
        "FIN" => Datagram::tcp(PORT, "F."),
        "FIN with data" => Datagram::tcp(PORT, "F.").with_payload(b"bye"),
        "RST" => Datagram::tcp(PORT, "R"),
        "RST-ACK" => Datagram::tcp(PORT, "R."),
        "FIN and RST" => Datagram::tcp(PORT, "FR."),
        "data" => Datagram::tcp(PORT, "P.").with_payload(b"more"),
        "bare" => Datagram::tcp(PORT, "."),
        "bare with options" => Datagram::tcp(PORT, ".").with_ip_options(10).with_tcp_options(10),
        other => panic!("{other}"),
    }
}

/// An entry like those that the kernel makes, a second old.
fn known(backend: u16, state: u8, packets: u8) -> FlowEntry {
    let stamp = tick(now_ns()).wrapping_sub(ticks_of_ms(1000));
    let made = entry(&packet("SYN").key(), backend, state);
    // What the agent has filled in must survive whatever XDP writes.
    FlowEntry { last_seen: stamp, created: stamp, packets, generation: 3, revision: 9, term: 2, creator: 2, ..made }
}

#[test]
fn fin_rst_and_syn_leave_the_entry_and_later_packets_revive_it() {
    let (young, established, closing, reset) = (STATE_YOUNG, STATE_ESTABLISHED, STATE_CLOSING, STATE_RESET);
    // State and packets before; the packet; state, packets and revision after; is it news.
    let rows = [
        (young, 2, "bare", established, 3, 9, true),
        (young, 2, "data", established, 3, 9, true),
        (young, 1, "bare", young, 2, 9, false),
        (young, 2, "SYN", young, 2, 9, false),
        (young, 2, "FIN", closing, 0, 9, true),
        (young, 2, "RST", reset, 0, 9, true),
        (established, 3, "bare", established, 3, 9, false),
        (established, 3, "data", established, 3, 9, false),
        (established, 3, "SYN", established, 3, 9, false),
        (established, 3, "SYN-ACK", established, 3, 9, false),
        (established, 3, "FIN", closing, 0, 9, true),
        (established, 3, "FIN with data", closing, 0, 9, true),
        (established, 3, "RST", reset, 0, 9, true),
        (established, 3, "RST-ACK", reset, 0, 9, true),
        (established, 3, "FIN and RST", reset, 0, 9, true),
        (closing, 0, "bare", closing, 1, 9, false),
        (closing, 1, "bare", closing, 2, 9, false),
        (closing, 1, "bare with options", closing, 2, 9, false),
        (closing, 2, "bare", established, 0, 10, true),
        (closing, 2, "bare with options", established, 0, 10, true),
        (closing, 0, "data", established, 0, 10, true),
        (closing, 1, "FIN", closing, 1, 9, false),
        (closing, 1, "SYN", closing, 1, 9, false),
        (closing, 1, "RST", reset, 0, 9, true),
        (reset, 0, "bare", established, 0, 10, true),
        (reset, 0, "data", established, 0, 10, true),
        (reset, 0, "FIN", closing, 0, 10, true),
        (reset, 0, "SYN", reset, 0, 9, false),
        (reset, 0, "RST", reset, 0, 9, false),
    ];
    let rig = Rig::of(world(&[1]));
    for (state, packets, kind, state_after, packets_after, revision, is_news) in rows {
        println!("state {state}, {packets} packets, {kind}");
        let packet = packet(kind);
        let before = known(2, state, packets);
        rig.set_flow(&packet.key(), Some(&before));
        rig.delivers(&packet, 2, Reason::DeliverKnown);
        let expected =
            FlowEntry { state: state_after, packets: packets_after, revision, last_seen: 0, created: 0, ..before };
        if is_news {
            rig.has_told(&packet.key(), expected);
        } else {
            rig.holds(&packet.key(), expected);
            assert_eq!(rig.take_events(), []);
        }
        let after = rig.flow(&packet.key()).unwrap();
        assert_eq!(after.created, before.created);
        assert_ne!(after.last_seen, before.last_seen);
    }
}

#[test]
fn an_ordinary_close_stays_closed() {
    let rig = Rig::of(world(&[1]));
    rig.set_flow(&packet("FIN").key(), Some(&known(2, STATE_ESTABLISHED, 3)));
    // The client's FIN, its ACKs of the server's last data and FIN, a retransmitted FIN.
    for kind in ["FIN", "bare", "FIN", "bare"] {
        rig.delivers(&packet(kind), 2, Reason::DeliverKnown);
    }
    assert_eq!(rig.flow(&packet("FIN").key()).unwrap().state, STATE_CLOSING);
    assert_eq!(rig.take_events().len(), 1);
}

#[test]
fn counters_that_are_full_stay_full() {
    let rig = Rig::of(world(&[1]));
    let data = packet("data");
    rig.set_flow(&data.key(), Some(&FlowEntry { revision: u16::MAX, ..known(2, STATE_RESET, u8::MAX) }));
    rig.delivers(&data, 2, Reason::DeliverKnown);
    assert_eq!(rig.flow(&data.key()).unwrap().revision, u16::MAX);
    rig.set_flow(&data.key(), Some(&known(2, STATE_CLOSING, u8::MAX)));
    rig.delivers(&packet("bare"), 2, Reason::DeliverKnown);
    assert_eq!(rig.flow(&data.key()).unwrap().state, STATE_ESTABLISHED);
}

#[test]
fn draining_backend_keeps_its_flows_whatever_comes() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| {
        world.rings.insert(0, ring(&[1, 3]));
        world.backends.get_mut(&2).unwrap().state = TARGET_DRAINING;
    });
    for kind in ["SYN", "data", "bare", "FIN", "RST"] {
        rig.set_flow(&packet(kind).key(), Some(&known(2, STATE_ESTABLISHED, 3)));
        rig.delivers(&packet(kind), 2, Reason::DeliverKnown);
        let after = rig.flow(&packet(kind).key()).unwrap();
        assert_eq!((after.backend, after.generation), (2, 3), "{kind}");
    }
}

#[test]
fn a_connection_in_progress_stays_with_a_backend_that_is_down_or_removed() {
    for state in [TARGET_DOWN, TARGET_REMOVED] {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| {
            world.rings.insert(0, ring(&[1, 3]));
            world.backends.get_mut(&2).unwrap().state = state;
        });
        for kind in ["data", "bare", "FIN", "RST"] {
            rig.set_flow(&packet(kind).key(), Some(&known(2, STATE_ESTABLISHED, 3)));
            rig.delivers(&packet(kind), 2, Reason::DeliverKnown);
            assert_eq!(rig.flow(&packet(kind).key()).unwrap().generation, 3);
        }
    }
}

#[test]
fn a_syn_to_a_backend_out_of_service_places_the_tuple_anew() {
    for (state, old_state) in [
        (TARGET_DOWN, STATE_ESTABLISHED),
        (TARGET_REMOVED, STATE_CLOSING),
        (0, STATE_RESET),
        (TARGET_DOWN, STATE_YOUNG),
    ] {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| {
            world.rings.insert(0, ring(&[3]));
            world.backends.get_mut(&2).unwrap().state = state;
        });
        let syn = packet("SYN");
        let old = FlowEntry { primary: 1, backup: 7, ..known(2, old_state, 3) };
        rig.set_flow(&syn.key(), Some(&old));
        rig.delivers(&syn, 3, Reason::DeliverNew);
        // Generation first, registers within it: they begin anew, but the owners stay who they are.
        let anew = FlowEntry { generation: 4, term: 2, backup: 7, ..entry(&syn.key(), 3, STATE_ESTABLISHED) };
        rig.has_told(&syn.key(), anew);
        let stamps = rig.flow(&syn.key()).unwrap();
        assert_eq!(stamps.created, stamps.last_seen);
        assert_ne!(stamps.created, old.created);
        rig.delivers(&syn, 3, Reason::DeliverKnown);
        assert_eq!(rig.flow(&syn.key()).unwrap().generation, 4);
    }
}

#[test]
fn a_udp_flow_leaves_a_backend_out_of_service() {
    for (state, moves) in
        [(TARGET_SERVING, false), (TARGET_DRAINING, false), (TARGET_DOWN, true), (TARGET_REMOVED, true)]
    {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| {
            world.rings.insert(1, ring(&[3]));
            world.backends.get_mut(&4).unwrap().state = state;
        });
        let question = Datagram::udp(PORT, DNS);
        rig.set_flow(&question.key(), Some(&FlowEntry { backup: 0, ..entry(&question.key(), 4, STATE_ESTABLISHED) }));
        let (backend, reason) = if moves { (3, Reason::DeliverNew) } else { (4, Reason::DeliverKnown) };
        rig.delivers(&question, backend, reason);
        assert_eq!(rig.flow(&question.key()).unwrap().generation, u16::from(moves));
        assert_eq!(rig.take_events().len(), usize::from(moves));
    }
}

#[test]
fn a_generation_that_is_full_stays_full() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| {
        world.rings.insert(0, ring(&[3]));
        world.backends.get_mut(&2).unwrap().state = TARGET_DOWN;
    });
    let syn = packet("SYN");
    rig.set_flow(&syn.key(), Some(&FlowEntry { generation: u16::MAX, ..known(2, STATE_ESTABLISHED, 3) }));
    rig.delivers(&syn, 3, Reason::DeliverNew);
    assert_eq!(rig.flow(&syn.key()).unwrap().generation, u16::MAX);
}

#[test]
fn without_another_backend_a_tuple_stays_where_it_is() {
    for (state, ring_backend) in [(TARGET_DOWN, 0), (TARGET_REMOVED, 2)] {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| {
            world.rings.insert(0, ring(&[ring_backend]));
            world.backends.get_mut(&2).unwrap().state = state;
        });
        let old = known(2, STATE_ESTABLISHED, 3);
        rig.set_flow(&packet("SYN").key(), Some(&old));
        rig.delivers(&packet("SYN"), 2, Reason::DeliverKnown);
        assert_eq!(rig.flow(&packet("SYN").key()), Some(old));
        assert_eq!(rig.take_events(), []);
    }
}

#[test]
fn a_flow_of_a_backend_that_is_gone_is_dropped_by_name() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| {
        world.rings.insert(0, ring(&[0]));
        world.backends.remove(&2);
    });
    rig.set_flow(&packet("SYN").key(), Some(&known(2, STATE_ESTABLISHED, 3)));
    for kind in ["SYN", "data", "bare", "FIN", "RST"] {
        rig.ends(&packet(kind).frame(), Reason::DropNoBackend);
    }
    // Beyond the array.
    rig.set_flow(&packet("SYN").key(), Some(&known(u16::MAX, STATE_ESTABLISHED, 3)));
    rig.ends(&packet("data").frame(), Reason::DropNoBackend);
}
