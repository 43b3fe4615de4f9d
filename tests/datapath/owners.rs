//! Who delivers: the acting owner, as this member sees the others.

use lb_common::{
    flow::{FlowEntry, STATE_ESTABLISHED},
    liveness::Heard,
    rank::bit,
    reason::Reason,
};
use zerocopy::FromZeros as _;

use crate::{
    checks::{entry, now_ns},
    probes,
    rig::Rig,
    wire::Datagram,
    world::{DNS, World, member_address, port_ranked, ranking, world},
};

fn mask(ids: &[u8]) -> u64 {
    ids.iter().map(|id| bit(*id)).sum()
}

/// Sets who was heard a moment ago; the others never were.
fn hear(world: &mut World, ids: &[u8]) {
    let heard = Heard { probe_ns: now_ns(), ..Heard::new_zeroed() };
    world.heard = ids.iter().map(|id| (*id, heard)).collect();
}

/// What the agent says, and what XDP has heard.
struct View {
    forwarding: &'static [u8],
    eligible: &'static [u8],
    /// Who was heard lately, where the agent's lease has lapsed.
    lapsed: Option<&'static [u8]>,
}

const fn view(forwarding: &'static [u8], eligible: &'static [u8]) -> View {
    View { forwarding, eligible, lapsed: None }
}

const fn lapsed(forwarding: &'static [u8], eligible: &'static [u8], heard: &'static [u8]) -> View {
    View { forwarding, eligible, lapsed: Some(heard) }
}

impl View {
    fn install(&self, rig: &mut Rig) {
        rig.change(|world| {
            world.liveness.forwarding = mask(self.forwarding);
            world.liveness.eligible = mask(self.eligible);
            world.liveness.lease_until_ns = if self.lapsed.is_some() { 1 } else { u64::MAX };
            hear(world, self.lapsed.unwrap_or(&[]));
        });
    }
}

#[test]
fn a_miss_goes_to_the_best_ranked_eligible_member() {
    // The flow's members by rank; the view; who delivers.
    let rows: &[(&[u8], View, u8)] = &[
        (&[1, 2, 3, 4], view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 1),
        (&[2, 1, 3, 4], view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 2),
        (&[2, 3, 1, 4], view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 2),
        (&[2, 3, 1, 4], view(&[1, 3, 4], &[1, 3, 4]), 3),
        (&[2, 3, 1, 4], view(&[1, 4], &[1, 4]), 1),
        (&[2, 3, 4, 1], view(&[1, 4], &[1, 4]), 4),
        (&[2, 1, 3, 4], view(&[1, 3, 4], &[1, 3, 4]), 1),
        // Its datapath answers, but its agent does not: it owns no misses.
        (&[2, 3, 1, 4], view(&[1, 2, 3, 4], &[1, 3, 4]), 3),
        (&[2, 3, 4, 1], view(&[1, 2, 3, 4], &[1]), 1),
        // This member is not ready: its misses go to others.
        (&[1, 2, 3, 4], view(&[1, 2, 3, 4], &[2, 3, 4]), 2),
        (&[1, 2, 3, 4], view(&[1, 3, 4], &[3, 4]), 3),
        // Nobody is eligible: forwarding decides. Nobody is left: here.
        (&[2, 3, 1, 4], view(&[1, 2, 3, 4], &[]), 2),
        (&[2, 3, 1, 4], view(&[1, 3], &[]), 3),
        (&[2, 3, 1, 4], view(&[], &[]), 1),
        (&[4, 3, 2, 1], view(&[], &[]), 1),
        // Eligible, but not configured here: unknown to the rank.
        (&[1, 2, 3, 4], view(&[1, 9], &[9]), 1),
    ];
    misses(rows);
}

#[test]
fn while_its_agent_is_gone_a_member_hands_its_misses_to_whom_it_hears() {
    let rows: &[(&[u8], View, u8)] = &[
        (&[1, 2, 3, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[2, 3, 4]), 2),
        (&[2, 1, 3, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[2, 3, 4]), 2),
        (&[1, 2, 3, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[3, 4]), 3),
        (&[2, 3, 1, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[3, 4]), 3),
        (&[2, 1, 3, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[3]), 3),
        (&[2, 3, 1, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[4]), 4),
        // What the agent last said still counts against a member.
        (&[2, 3, 1, 4], lapsed(&[1, 3, 4], &[1, 3, 4], &[2, 3, 4]), 3),
        (&[2, 3, 1, 4], lapsed(&[1, 2, 3, 4], &[1, 3, 4], &[2, 3, 4]), 3),
        // It hears nobody: here.
        (&[2, 3, 1, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[]), 1),
        (&[1, 2, 3, 4], lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[]), 1),
        (&[2, 3, 1, 4], lapsed(&[1, 2, 3, 4], &[1], &[]), 1),
    ];
    misses(rows);
}

fn misses(rows: &[(&[u8], View, u8)]) {
    let mut rig = Rig::of(world(&[1, 2, 3, 4]));
    for (n, (order, view, owner)) in rows.iter().enumerate() {
        println!("row {n}: {order:?}");
        view.install(&mut rig);
        let syn = Datagram::tcp(port_ranked(&rig.world, order), "S");
        match owner {
            1 => rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless),
            peer => rig.hands_off(&syn, *peer, Reason::HandOffUnknown),
        }
        // A receiver that hands off writes nothing; and a packet from a peer is never handed on.
        assert_eq!(rig.state().pending.len(), usize::from(*owner == 1));
        rig.set_pending(&syn.key(), None);
        rig.delivers_from(member_address(3), &syn, rig.stateless(&syn), Reason::DeliverStateless);
        rig.set_pending(&syn.key(), None);
    }
}

#[test]
fn a_known_flow_goes_to_its_recorded_owners() {
    // Primary and backup of the entry; the view; who delivers. The flow's rank is 4, 3, 2, 1.
    let rows: &[(u8, u8, View, u8)] = &[
        (1, 2, view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 1),
        (2, 1, view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 2),
        (2, 3, view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 2),
        // Forwarding is enough for a hit: the owner's agent may be gone, or not ready.
        (2, 3, view(&[1, 2, 3, 4], &[1]), 2),
        (2, 3, view(&[1, 3, 4], &[1, 2, 3, 4]), 3),
        (2, 1, view(&[1, 3, 4], &[1, 3, 4]), 1),
        // Both owners dead: the best-ranked of those who are left.
        (2, 3, view(&[1, 4], &[1, 4]), 4),
        (2, 3, view(&[1], &[1]), 1),
        (2, 3, view(&[], &[]), 1),
        // This member's own bit is of no concern to its own flows.
        (1, 2, view(&[2, 3, 4], &[2, 3, 4]), 1),
        (1, 2, view(&[], &[]), 1),
        // An entry of a cluster of one, or of members that nobody knows any more.
        (2, 0, view(&[1, 3, 4], &[1, 3, 4]), 4),
        (9, 8, view(&[1, 2, 3, 4], &[1, 2, 3, 4]), 4),
        (0, 0, view(&[1, 2, 3], &[1, 2, 3]), 3),
        (200, 65, view(&[1, 2], &[1, 2]), 2),
        // The lease has lapsed: its own hits go on, the others' are judged by the ear.
        (1, 2, lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[]), 1),
        (2, 3, lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[2, 3, 4]), 2),
        (2, 3, lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[3, 4]), 3),
        (2, 1, lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[3, 4]), 1),
        (2, 3, lapsed(&[1, 3, 4], &[1, 3, 4], &[2, 3, 4]), 3),
        (4, 3, lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[2]), 2),
        (2, 3, lapsed(&[1, 2, 3, 4], &[1, 2, 3, 4], &[]), 1),
    ];
    let mut rig = Rig::of(world(&[1, 2, 3, 4]));
    let packet = Datagram::tcp(port_ranked(&rig.world, &[4, 3, 2, 1]), ".");
    for (n, (primary, backup, view, owner)) in rows.iter().enumerate() {
        println!("row {n}: {primary}, {backup}");
        view.install(&mut rig);
        let before = FlowEntry { primary: *primary, backup: *backup, ..entry(&packet.key(), 2, STATE_ESTABLISHED) };
        rig.set_flow(&packet.key(), Some(&before));
        match owner {
            1 => rig.delivers(&packet, 2, Reason::DeliverKnown),
            peer => {
                rig.hands_off(&packet, *peer, Reason::HandOffKnown);
                // Nothing is written, not even that it was seen.
                assert_eq!(rig.flow(&packet.key()), Some(before));
            }
        }
        rig.delivers_from(member_address(3), &packet, 2, Reason::DeliverKnown);
    }
    assert_eq!(rig.take_events(), []);
}

#[test]
fn a_peer_that_was_silent_for_too_long_is_dead() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let syn = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), "S");
    // The world's bound is five seconds.
    for (silent_ms, owner) in [(0, 2), (4000, 2), (5100, 3), (9000, 3)] {
        rig.change(|world| {
            world.liveness.lease_until_ns = 1;
            hear(world, &[2, 3]);
            world.heard.get_mut(&2).unwrap().probe_ns -= silent_ms * 1_000_000;
        });
        rig.hands_off(&syn, owner, Reason::HandOffUnknown);
    }
    // A stamp of another CPU may lie a little ahead of this one's clock.
    rig.change(|world| {
        hear(world, &[2, 3]);
        world.heard.get_mut(&2).unwrap().probe_ns += 1_000_000_000;
    });
    rig.hands_off(&syn, 2, Reason::HandOffUnknown);
}

#[test]
fn a_probe_keeps_a_peer_alive_while_the_agent_is_gone() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    rig.change(|world| world.liveness.lease_until_ns = 1);
    let syn = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), "S");
    rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
    rig.send(&probes::frame(2, &probes::request(2, 1)));
    rig.hands_off(&syn, 2, Reason::HandOffUnknown);
}

#[test]
fn a_lease_counts_until_its_very_end() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let syn = Datagram::tcp(port_ranked(&rig.world, &[1, 2]), "S");
    rig.change(|world| {
        hear(world, &[2, 3]);
        world.liveness.lease_until_ns = now_ns() + 60_000_000_000;
    });
    rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
    rig.change(|world| world.liveness.lease_until_ns = now_ns());
    // The datapath's clock ticks every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.hands_off(&syn, 2, Reason::HandOffUnknown);
}

#[test]
fn an_owner_without_a_next_hop_is_replaced_by_this_member() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    rig.change(|world| world.members.get_mut(&2).unwrap().next_hop.ifindex = 0);
    let syn = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), "S");
    rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
    let packet = Datagram::tcp(5000, ".");
    rig.set_flow(
        &packet.key(),
        Some(&FlowEntry { primary: 2, backup: 3, ..entry(&packet.key(), 2, STATE_ESTABLISHED) }),
    );
    rig.delivers(&packet, 2, Reason::DeliverKnown);
}

#[test]
fn the_largest_cluster_ranks_as_sorting_does() {
    let ids: Vec<u8> = (1..=64).collect();
    let rig = Rig::of(world(&ids));
    for port in 2000..2300 {
        let syn = Datagram::tcp(port, "S");
        match ranking(&rig.world, &syn.key())[0] {
            1 => rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless),
            owner => rig.hands_off(&syn, owner, Reason::HandOffUnknown),
        }
    }
}

#[test]
fn udp_and_connections_in_progress_are_handed_off_like_syns() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked(&rig.world, &[3]);
    for flags in ["S", "S.", ".", "P.", "F.", "R", ""] {
        rig.hands_off(&Datagram::tcp(port, flags), 3, Reason::HandOffUnknown);
    }
    let question = (1024..).map(|port| Datagram::udp(port, DNS));
    let question = question.into_iter().find(|udp| ranking(&rig.world, &udp.key())[0] == 2).unwrap();
    rig.hands_off(&question, 2, Reason::HandOffUnknown);
    rig.remembers_nothing();
}
