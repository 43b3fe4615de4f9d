//! Fragments: they meet at one member, which learns the ports from the first one, and go where the flow goes.

use lb_common::{
    flow::{FRAGMENT_TICKS, FlowKey as _, Fragment, PENDING_UDP, STATE_ESTABLISHED, tick},
    node::{BUDGET_ANSWERS, NODE_DROP_OTHER},
    packet::ROUND,
    rank::bit,
    reason::Reason,
    target::Target,
};

use crate::{
    checks::{entry, now_ns},
    rig::Rig,
    wire::Datagram,
    world::{DNS, World, member_address, ranking, world},
};

/// A datagram of the client of 2008 bytes, and its two halves.
fn datagram(is_v6: bool, port: u16) -> (Datagram, [Datagram; 2]) {
    let payload: Vec<u8> = (0..2000).map(|n| (n * 7) as u8).collect();
    let whole = Datagram::udp(port, DNS).with_payload(&payload);
    let whole = if is_v6 { whole.v6() } else { whole };
    let parts = whole.split(125);
    (whole, parts)
}

/// The members by rank for everything between the two addresses.
fn meeting_rank(world: &World, part: &Datagram) -> Vec<u8> {
    match part.is_v6() {
        true => ranking(world, &part.key_v6().without_ports()),
        false => ranking(world, &part.key().without_ports()),
    }
}

/// The world in which this member is, or is not, the one where the fragments meet.
fn world_where(is_v6: bool, is_here: bool) -> World {
    let (_, [head, _]) = datagram(is_v6, 5000);
    (0..100)
        .map(|salt| {
            let mut world = world(&[1, 2, 3]);
            world.node.hash_key[0] ^= salt;
            world
        })
        .find(|world| (meeting_rank(world, &head)[0] == 1) == is_here)
        .expect("some key ranks so")
}

/// The backend of the service DNS.
fn backend(is_v6: bool) -> u16 {
    if is_v6 { 7 } else { 4 }
}

fn forget(rig: &Rig) {
    let state = rig.state();
    state.fragments.keys().for_each(|key| rig.set_fragment(key, None));
    state.fragments_v6.keys().for_each(|key| rig.set_fragment(key, None));
    state.pending.keys().for_each(|key| rig.set_pending(key, None));
    state.pending_v6.keys().for_each(|key| rig.set_pending(key, None));
}

#[test]
fn fragments_go_where_the_whole_packets_of_their_flow_go() {
    for is_v6 in [false, true] {
        let rig = Rig::of(world_where(is_v6, true));
        let (whole, [head, tail]) = datagram(is_v6, 5000);
        let (target, tag): (&Target, _) = (&rig.world.backends[&backend(is_v6)], whole.tag());
        // A tail first: it has no ports, and nobody knows them yet.
        let second = rig.world.members[&meeting_rank(&rig.world, &head)[1]];
        rig.becomes(&tail.frame(), &tail.sent_round(&second), Reason::HandOffFragmentRound);
        rig.remembers_nothing();
        rig.becomes(&head.frame(), &head.delivered_as(tag, target), Reason::DeliverStateless);
        let state = rig.state();
        assert_eq!((state.fragments.len(), state.fragments_v6.len()), (usize::from(!is_v6), usize::from(is_v6)));
        match is_v6 {
            true => rig.expects(&whole.key_v6(), PENDING_UDP, backend(is_v6), 1, 0),
            false => rig.expects(&whole.key(), PENDING_UDP, backend(is_v6), 1, 0),
        }
        // The tail is the flow's second packet, and earns it an entry.
        rig.becomes(&tail.frame(), &tail.delivered_as(tag, target), Reason::DeliverNew);
        rig.becomes(&tail.frame(), &tail.delivered_as(tag, target), Reason::DeliverKnown);
        rig.becomes(&head.frame(), &head.delivered_as(tag, target), Reason::DeliverKnown);
    }
}

#[test]
fn a_fragment_of_a_known_flow_goes_to_its_backend_whoever_owns_it() {
    let rig = Rig::of(world_where(false, true));
    let (whole, [head, tail]) = datagram(false, 5000);
    // Of another member, and of another backend than the ring says.
    let known = lb_common::flow::FlowEntry { primary: 2, backup: 3, ..entry(&whole.key(), 3, STATE_ESTABLISHED) };
    rig.set_flow(&whole.key(), Some(&known));
    let target = &rig.world.backends[&3];
    rig.becomes(&head.frame(), &head.delivered_as(whole.tag(), target), Reason::DeliverKnown);
    rig.becomes(&tail.frame(), &tail.delivered_as(whole.tag(), target), Reason::DeliverKnown);
}

#[test]
fn every_fragment_is_handed_to_the_member_where_they_meet() {
    for is_v6 in [false, true] {
        let mut rig = Rig::of(world_where(is_v6, false));
        let (whole, [head, tail]) = datagram(is_v6, 5000);
        let order = meeting_rank(&rig.world, &head);
        let top = order[0];
        let member = rig.world.members[&top];
        // The head has its ports with it, and a tag of its own; the tail has none.
        let head_tag = whole.tag();
        rig.becomes(&head.frame(), &head.handed_off_as(head_tag, &member), Reason::HandOffFragment);
        rig.becomes(&tail.frame(), &tail.handed_off(&member), Reason::HandOffFragment);
        rig.remembers_nothing();
        // From a peer, they have met.
        let (target, peer) = (rig.world.backends[&backend(is_v6)], member_address(2));
        let tunnelled = |part: &Datagram| part.tunnelled(peer, 0);
        rig.ends(&tunnelled(&tail), Reason::DropFragmentNoHead);
        rig.becomes(&tunnelled(&head), &head.delivered_as(head_tag, &target), Reason::DeliverStateless);
        rig.becomes(&tunnelled(&tail), &tail.delivered_as(head_tag, &target), Reason::DeliverNew);
        rig.events::<lb_common::flow::FlowKeyV4>();
        // When the top member is gone, the next one takes its place.
        let next = order[1];
        rig.change(|world| {
            world.liveness.forwarding &= !bit(top);
            world.liveness.eligible &= !bit(top);
        });
        forget(&rig);
        if next == 1 {
            let last = rig.world.members[&order[2]];
            rig.becomes(&tail.frame(), &tail.sent_round(&last), Reason::HandOffFragmentRound);
        } else {
            let member = rig.world.members[&next];
            rig.becomes(&tail.frame(), &tail.handed_off(&member), Reason::HandOffFragment);
        }
    }
}

#[test]
fn a_later_fragment_that_came_first_goes_round_once() {
    for is_v6 in [false, true] {
        let mut rig = Rig::of(world_where(is_v6, true));
        let (whole, [head, tail]) = datagram(is_v6, 5000);
        let order = meeting_rank(&rig.world, &head);
        let (target, second) = (rig.world.backends[&backend(is_v6)], rig.world.members[&order[1]]);
        rig.becomes(&tail.frame(), &tail.sent_round(&second), Reason::HandOffFragmentRound);
        // The other member's part: back to where the fragments meet, which is elsewhere for it.
        let elsewhere = Rig::of(world_where(is_v6, false));
        let top = elsewhere.world.members[&meeting_rank(&elsewhere.world, &head)[0]];
        let sent = tail.tunnelled(member_address(2), ROUND);
        elsewhere.becomes(&sent, &tail.one_hop_on().handed_off(&top), Reason::HandOffFragment);
        elsewhere.remembers_nothing();
        // Back here the first one has come, or never will; that it has lost its mark does not matter.
        let back = tail.tunnelled(member_address(order[1]), 0);
        rig.ends(&back, Reason::DropFragmentNoHead);
        rig.ends(&sent, Reason::DropFragmentNoHead);
        rig.becomes(&head.frame(), &head.delivered_as(whole.tag(), &target), Reason::DeliverStateless);
        rig.becomes(&back, &tail.delivered_as(whole.tag(), &target), Reason::DeliverNew);
        // Nowhere to send it; and no more of them than answers.
        forget(&rig);
        rig.change(|world| world.liveness.budgets[BUDGET_ANSWERS] = 0);
        rig.ends(&tail.frame(), Reason::DropFragmentNoHead);
        rig.change(|world| {
            world.liveness.budgets[BUDGET_ANSWERS] = 100;
            (world.liveness.forwarding, world.liveness.eligible) = (1, 1);
        });
        rig.ends(&tail.frame(), Reason::DropFragmentNoHead);
    }
}

#[test]
fn the_ports_of_a_datagram_are_remembered_for_30_seconds_and_for_it_alone() {
    let rig = Rig::of(world_where(false, true));
    let (whole, [head, tail]) = datagram(false, 5000);
    let target = &rig.world.backends[&4];
    rig.becomes(&head.frame(), &head.delivered_as(whole.tag(), target), Reason::DeliverStateless);
    let second = rig.world.members[&meeting_rank(&rig.world, &head)[1]];
    let another = tail.clone().identified(0x1d1e);
    rig.becomes(&another.frame(), &another.sent_round(&second), Reason::HandOffFragmentRound);
    let key = *rig.state().fragments.keys().next().expect("the head's");
    let aged = |ticks: u32| Fragment { ports: whole.key().ports(), seen: tick(now_ns()).wrapping_sub(ticks) };
    rig.set_fragment(&key, Some(&aged(FRAGMENT_TICKS + 20)));
    rig.becomes(&tail.frame(), &tail.sent_round(&second), Reason::HandOffFragmentRound);
    rig.set_fragment(&key, Some(&aged(FRAGMENT_TICKS - 2000)));
    rig.becomes(&tail.frame(), &tail.delivered_as(whole.tag(), target), Reason::DeliverNew);
}

#[test]
fn fragments_of_tcp_are_flows_as_well_and_a_head_without_ports_is_malformed() {
    let rig = Rig::of(world_where(false, true));
    // Addresses and protocol decide where they meet: those of TCP may meet elsewhere.
    let whole = Datagram::tcp(5000, "P.").with_payload(&[7; 100]);
    let [head, tail] = whole.split(8);
    let first = rig.send(&head.frame());
    if first.reason == Reason::HandOffFragment {
        assert_eq!(rig.send(&tail.frame()).reason, Reason::HandOffFragment);
    } else {
        let target = &rig.world.backends[&rig.stateless(&whole)];
        assert_eq!(first.frame, head.delivered_as(whole.tag(), target));
        rig.becomes(&tail.frame(), &tail.delivered_as(whole.tag(), target), Reason::DeliverStateless);
    }
    // RFC 1858: a head so short that its ports and flags lie in the next fragment.
    let [short, _] = whole.split(1);
    rig.ends(&short.frame(), Reason::DropMalformed);
}

#[test]
fn a_fragment_for_a_vip_without_such_a_service_is_not_delivered() {
    let rig = Rig::of(world_where(false, true));
    let (_, [head, tail]) = datagram(false, 5000);
    let elsewhere = |part: Datagram| part.to([203, 0, 113, 11]);
    rig.ends(&elsewhere(head).frame(), Reason::NotOurs);
    rig.ends(&elsewhere(tail.clone()).frame(), Reason::NotOurs);
    rig.ends(&elsewhere(tail).tunnelled(member_address(2), 0), Reason::DropTunnelNoService);
}

#[test]
fn a_first_fragment_of_a_port_without_service_follows_the_policy_of_who_receives_it() {
    for is_here in [false, true] {
        let mut rig = Rig::of(world_where(false, is_here));
        let [head, _] = Datagram::udp(5000, 9).with_payload(&[7; 100]).split(8);
        rig.ends(&head.frame(), Reason::NoService);
        rig.ends(&head.tunnelled(member_address(2), 0), Reason::DropTunnelNoService);
        rig.change(|world| world.node.flags |= NODE_DROP_OTHER);
        rig.ends(&head.frame(), Reason::DropNoService);
    }
}
