//! A later configuration reaches every member, once, and is judged by each.

use super::{configuration::configure, versions::mixed, *};
use crate::core::{distribution::Publication, wire::ConfigurationId};

/// What a member with generation `generation` has; the hash is the test's.
fn publication(generation: u64) -> Publication {
    let text: Vec<u8> = (0..40_000_u32).flat_map(|at| (at ^ generation as u32).to_be_bytes()).collect();
    let id = |generation| ConfigurationId { generation, hash: 7 };
    Publication { id: id(generation), replaces: id(generation - 1), trial_until: None, text: text.into() }
}

/// As a member does that was given this configuration.
fn take(net: &mut Net, id: u8, publication: Publication) {
    let generation = publication.id.generation;
    net.input(id, Input::Publish(publication));
    configure(net, id, |view| view.generation = generation - 1);
}

fn cluster(members: u8) -> Net {
    let mut net = Net::new(members);
    (1..=members).for_each(|id| net.input(id, Input::Publish(publication(1))));
    net
}

/// Has whoever was given something to judge store it.
fn store(net: &mut Net, id: u8) -> usize {
    let proposals = std::mem::take(&mut net.host(id).proposals);
    for proposal in &proposals {
        let expected = publication(proposal.id.generation);
        assert!((&proposal.text[..], proposal.replaces) == (&expected.text[..], expected.replaces));
        net.input(id, Input::Judged { id: proposal.id, refusal: None });
        take(net, id, expected);
    }
    proposals.len()
}

fn generations(net: &Net) -> Vec<u64> {
    net.hosts.values().map(|host| host.view.generation).collect()
}

#[test]
fn a_change_at_one_member_reaches_all_and_each_is_given_it_once() {
    let mut net = cluster(5);
    take(&mut net, 4, publication(2));
    let mut given = 0;
    for _ in 0..20 {
        net.run(100 * MS);
        given += (1..=5).map(|id| store(&mut net, id)).sum::<usize>();
    }
    assert_eq!((generations(&net), given), (vec![2; 5], 4));
    assert!((1..=5).all(|id| net.core(id).status().peers.iter().all(|peer| peer.same_configuration)));
    assert!((1..=5).all(|id| net.hosts[&id].liveness.flags & LIVENESS_DIFFERS == 0));
}

#[test]
fn a_member_that_was_away_gets_it_when_it_returns() {
    let mut net = cluster(3);
    net.kill(2);
    take(&mut net, 1, publication(2));
    net.run(S);
    store(&mut net, 3);
    net.start(2);
    net.input(2, Input::Publish(publication(1)));
    net.run(3 * S);
    assert_eq!(store(&mut net, 2), 1);
    net.run(S);
    assert_eq!(generations(&net), [2; 3]);
}

#[test]
fn who_refuses_says_why_and_asks_again_only_for_another() {
    let mut net = cluster(3);
    take(&mut net, 1, publication(2));
    net.run(S);
    store(&mut net, 2);
    let id = net.host(3).proposals.remove(0).id;
    net.input(3, Input::Judged { id, refusal: Some("no interface eth7".into()) });
    net.run(20 * S);
    assert!(net.hosts[&3].proposals.is_empty() && generations(&net) == [2, 2, 1]);
    for other in [1, 2] {
        let status = net.core(other).status();
        let refusal = status.peers.iter().find(|peer| peer.id == 3).and_then(|peer| peer.refusal.clone());
        assert_eq!(refusal.as_deref(), Some("no interface eth7"), "at member {other}");
        assert_ne!(net.hosts[&other].liveness.flags & LIVENESS_DIFFERS, 0);
        assert_eq!(net.reports(other, |event| matches!(event, Event::PeerRefuses { .. })), 1);
    }
    take(&mut net, 2, publication(3));
    net.run(S);
    assert_eq!((store(&mut net, 1), store(&mut net, 3)), (1, 1));
    assert!((1..=3).all(|id| net.core(id).status().peers.iter().all(|peer| peer.refusal.is_none())));
}

#[test]
fn equal_generations_stay_as_they_are() {
    let mut net = cluster(2);
    configure(&mut net, 2, |view| (view.generation, view.hash) = (0, 99));
    net.run(S);
    assert!(net.hosts.values().all(|host| host.proposals.is_empty()));
    assert_ne!(net.hosts[&1].liveness.flags & LIVENESS_DIFFERS, 0);
}

#[test]
fn another_peer_is_asked_when_the_first_dies_or_says_nothing() {
    for dies in [true, false] {
        let mut net = cluster(3);
        net.isolate(1);
        take(&mut net, 2, publication(2));
        net.run(S);
        store(&mut net, 3);
        // Whoever is asked first does not answer: what it sends does not leave it.
        net.stalled.extend([2, 3]);
        net.cut.clear();
        net.run(200 * MS);
        assert!(net.hosts[&1].proposals.is_empty());
        if dies {
            net.kill(3);
        }
        let ends = net.ends.clone();
        net.held.retain(|(session, _)| ends.get(session).is_some_and(|end| end.0 == 2));
        net.release(2);
        net.run(15 * S);
        assert_eq!(store(&mut net, 1), 1, "dies: {dies}");
    }
}

#[test]
fn a_trial_travels_with_what_is_left_of_it() {
    let mut net = cluster(2);
    let until = net.now + 60 * S;
    take(&mut net, 1, Publication { trial_until: Some(until), ..publication(2) });
    net.run(S);
    let trial = net.hosts[&2].proposals[0].trial.expect("a trial");
    assert!((Duration::from_secs(59)..=Duration::from_secs(60)).contains(&trial), "{trial:?}");
}

#[test]
fn beside_a_member_that_speaks_an_older_version_nothing_changes() {
    let mut net = mixed(3);
    (1..=2).for_each(|id| net.input(id, Input::Publish(publication(1))));
    take(&mut net, 1, publication(2));
    net.run(2 * S);
    assert!(net.hosts.values().all(|host| host.proposals.is_empty()));
    take(&mut net, 2, publication(3));
    net.run(2 * S);
    assert!(net.hosts.values().all(|host| host.proposals.is_empty()));
}
