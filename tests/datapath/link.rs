//! The link layer: tags in, tags out.

use lb_common::{reason::Reason, target::NextHop};

use crate::{
    rig::{Rig, XDP_REDIRECT},
    wire::{Datagram, Tag, with_tags},
    world::{ELSEWHERE, World, member_address, port_ranked, port_ranked_v6, world},
};

const TAGS: [&[Tag]; 5] =
    [&[], &[(0x8100, 5)], &[(0x8100, 0xe005)], &[(0x88a8, 100), (0x8100, 5)], &[(0x9100, 100), (0x8100, 5)]];

fn tag(hop: &mut NextHop, tags: &[Tag]) {
    let bytes: Vec<u8> = tags.iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()].concat()).collect();
    hop.tag_bytes = bytes.len() as u8;
    hop.tags[..bytes.len()].copy_from_slice(&bytes);
}

fn tag_all(world: &mut World, tags: &[Tag]) {
    world.backends.values_mut().for_each(|backend| tag(&mut backend.next_hop, tags));
    world.members.values_mut().for_each(|member| tag(&mut member.next_hop, tags));
}

#[test]
fn a_packet_leaves_with_the_tags_of_its_next_hop_whatever_it_came_with() {
    let mut rig = Rig::of(world(&[1, 2]));
    let (own, handed) = (port_ranked(&rig.world, &[1]), port_ranked(&rig.world, &[2]));
    let (own_v6, handed_v6) = (port_ranked_v6(&rig.world, &[1]), port_ranked_v6(&rig.world, &[2]));
    for outgoing in TAGS {
        rig.change(|world| tag_all(world, outgoing));
        for incoming in TAGS {
            println!("{incoming:x?} in, {outgoing:x?} out");
            for syn in [Datagram::tcp(own, "S"), Datagram::tcp(own_v6, "S").v6()] {
                let expected = syn.delivered(&rig.world.backends[&rig.stateless(&syn)]);
                rig.becomes(&syn.tagged(incoming), &expected, Reason::DeliverStateless);
                let tunnelled = with_tags(incoming, syn.tunnelled(member_address(2), 0));
                rig.becomes(&tunnelled, &expected, Reason::DeliverStateless);
            }
            for syn in [Datagram::tcp(handed, "S"), Datagram::tcp(handed_v6, "S").v6()] {
                let expected = syn.handed_off(&rig.world.members[&2]);
                rig.becomes(&syn.tagged(incoming), &expected, Reason::HandOffUnknown);
            }
        }
    }
    rig.change(|world| {
        tag_all(world, &[(0x8100, 5)]);
        world.backends.values_mut().for_each(|backend| backend.next_hop.ifindex = ELSEWHERE);
    });
    assert_eq!(rig.send(&Datagram::tcp(own, "S").frame()).verdict, XDP_REDIRECT);
}

#[test]
fn a_tagged_packet_cut_at_any_length_is_a_verdict_and_never_an_entry() {
    let rig = Rig::of(world(&[1]));
    for tags in TAGS {
        for packet in [Datagram::tcp(5000, "S"), Datagram::tcp(5000, "S").v6()] {
            let frame = packet.tagged(tags);
            for length in 14..frame.len() {
                let seen = rig.send(&frame[..length]);
                assert!(
                    matches!(seen.reason, Reason::NotIp | Reason::DropMalformed),
                    "{length}: {}",
                    seen.reason.name()
                );
                assert_eq!(seen.frame, frame[..length]);
            }
        }
    }
    rig.remembers_nothing();
}

#[test]
fn tagged_traffic_of_others_passes_untouched() {
    let rig = Rig::of(world(&[1]));
    for tags in TAGS {
        rig.ends(&Datagram::tcp(5000, "S").to([203, 0, 113, 11]).tagged(tags), Reason::NotOurs);
        rig.ends(&Datagram::tcp(5000, "S").with_port(81).tagged(tags), Reason::NoService);
        rig.ends(&Datagram::tcp(5000, "S").v6().with_port(81).tagged(tags), Reason::NoService);
    }
}
