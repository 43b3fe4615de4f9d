//! Over time: servers change for all members together, and flows get other owners when theirs are gone.

use std::time::{Duration, Instant};

use lb_common::{
    flow::FlowKeyV4,
    liveness::{LIVENESS_DRAINING, LIVENESS_PENDING, Liveness},
    rank::bit,
};
use tests::{
    cluster::READY_LIMIT,
    interrupt::wait_until,
    member::Member,
    traffic::{caller::Caller, load::Plan},
};

use super::{BTreeMap, CONNECTIONS, Known, Scene, difference_of, records};

/// Acknowledging takes a round trip; 2 s are waited at most for a member that does not.
const EPOCH_LIMIT: Duration = Duration::from_secs(4);
/// A second until the members believe in a death, a few until all rows were visited.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(5);

type Records = BTreeMap<FlowKeyV4, Known>;

fn liveness(member: &Member) -> Liveness {
    member.tables().liveness().unwrap()
}

fn names(known: &Known, id: u8) -> bool {
    let (_, primary, backup) = known.owners;
    [primary, backup].contains(&id)
}

/// Waits until no flow names `gone` any more at the others, who agree; answers the records.
#[track_caller]
fn given_away(scene: &Scene, gone: u8) -> Records {
    let others: Vec<&Member> = scene.cluster.others(gone).collect();
    let is_over = || others.iter().all(|member| records(member).values().all(|known| !names(known, gone)));
    let began = Instant::now();
    assert!(wait_until(TAKEOVER_LIMIT, Duration::from_millis(100), is_over).unwrap(), "flows still name member {gone}");
    println!("no flow names member {gone} any more after {:?}", began.elapsed());
    records(others[0])
}

/// What became of each flow of before: it stays with those of its owners that are not `gone`, and moves once.
#[track_caller]
fn moved_once(before: &Records, after: &Records, gone: u8) {
    let mut moved = 0;
    for (key, known) in before {
        let Some(now) = after.get(key) else { panic!("{key:?} is gone") };
        let ((term, primary, backup), (new_term, new_primary, new_backup)) = (known.owners, now.owners);
        let was_named = names(known, gone);
        assert_eq!(new_term, term + u16::from(was_named), "{key:?}: from {known:?} to {now:?}");
        let expected = if primary == gone { backup } else { primary };
        assert_eq!(new_primary, expected, "{key:?}: packets go to another member than since {gone} is gone");
        assert!(new_backup != new_primary && new_backup != gone, "{key:?}: {now:?}");
        assert_eq!((now.backend, now.creator, now.generation), (known.backend, known.creator, known.generation));
        moved += usize::from(was_named);
    }
    assert!(moved > before.len() / 3, "only {moved} of {} flows were the member's", before.len());
}

/// A third of a rolling reload is done, then two thirds: nobody has changed. At its end all have.
#[test]
fn c26_a_server_joins_and_one_is_drained_while_members_reload_one_after_the_other() {
    let mut scene = Scene::of(3);
    let numbers = |scene: &Scene| scene.cluster.members.iter().map(|m| liveness(m).epoch).collect::<Vec<_>>();
    let before = numbers(&scene)[0];
    let added = scene.cluster.add_server(4).unwrap();
    scene.cluster.config.add_backend(&scene.cluster.servers[added].host);
    let drained = scene.cluster.servers[0].number;
    let name = scene.cluster.servers[0].name().to_owned();
    scene.cluster.config.drain(&name);
    scene.cluster.write_config().unwrap();
    for (id, waits_for) in [(3, bit(1) | bit(2)), (1, bit(2))] {
        scene.cluster.member(id).unwrap().reload().unwrap();
        scene.pause(1500);
        assert_eq!(numbers(&scene), [before; 3], "a change that not everybody holds");
        let said = liveness(&scene.cluster.members[usize::from(id) - 1]);
        assert_eq!((said.flags & LIVENESS_PENDING, said.awaited), (LIVENESS_PENDING, waits_for), "member {id}");
        assert!(scene.cluster.members.iter().all(|member| liveness(member).eligible == 0b111));
    }
    scene.cluster.member(2).unwrap().reload().unwrap();
    let all_changed = || {
        let is_new = |member| liveness(member).epoch == before + 1 && liveness(member).flags & LIVENESS_PENDING == 0;
        scene.cluster.members.iter().all(is_new)
    };
    assert!(wait_until(EPOCH_LIMIT, Duration::from_millis(2), all_changed).unwrap(), "{:?}", numbers(&scene));
    let mut found = Vec::new();
    for port in 18_000..18_060 {
        let mut caller = Caller::open(&scene.cluster.topology.client, port).unwrap();
        caller.ask().unwrap();
        found.push(caller.server());
    }
    assert!(!found.contains(&drained), "a new connection went to the drained server: {found:?}");
    assert!(found.contains(&4), "no new connection went to the server that joined");
    scene.nothing_broke();
}

#[test]
fn a3_the_flows_of_a_member_that_stays_dead_are_taken_over_and_do_not_return() {
    let plan = Plan::mixed(CONNECTIONS);
    let mut scene = Scene::tuned(3, plan, |config| config.takeover_after = Some("2s"));
    scene.tables_agree();
    let before = records(&scene.cluster.members[0]);
    scene.cluster.cut(2).unwrap();
    let taken = given_away(&scene, 2);
    moved_once(&before, &taken, 2);
    let living = || difference_of(&scene.cluster.members).is_none();
    assert!(wait_until(READY_LIMIT, Duration::from_millis(200), living).unwrap(), "the others agree");
    // It comes back with its flows of before, and their owners of before.
    scene.cluster.revive(2).unwrap();
    scene.ready(2);
    scene.cluster.announce(2).unwrap();
    scene.pause(3000);
    scene.tables_agree();
    let owners = |records: &Records| records.iter().map(|(key, known)| (*key, known.owners)).collect::<Vec<_>>();
    for member in &scene.cluster.members {
        assert!(owners(&records(member)) == owners(&taken), "flows have moved again, says {}", member.name());
        assert_eq!(liveness(member).eligible, 0b111, "new flows are its own again");
    }
    scene.nothing_broke();
}

#[test]
fn a_drained_member_gives_its_flows_away_says_so_and_can_be_stopped() {
    let mut scene = Scene::of(3);
    let before = records(&scene.cluster.members[0]);
    scene.cluster.config.members[1].drain = true;
    scene.cluster.write_config().unwrap();
    // Its own file is enough.
    scene.cluster.member(2).unwrap().reload().unwrap();
    let drained = || {
        let said = liveness(&scene.cluster.members[1]);
        said.flags & LIVENESS_DRAINING != 0 && said.left == 0
    };
    assert!(
        wait_until(TAKEOVER_LIMIT, Duration::from_millis(20), drained).unwrap(),
        "it does not say that none are left"
    );
    for member in &scene.cluster.members {
        assert_eq!(liveness(member).eligible, 0b101, "{} lets it own new flows", member.name());
        let left = records(member).values().filter(|known| names(known, 2)).count();
        assert_eq!(left, 0, "{} has flows of it", member.name());
    }
    let load: Records = {
        let ports: Vec<u16> = scene.load.ledger().long().iter().map(|record| record.facts().port).collect();
        before.into_iter().filter(|(key, _)| ports.contains(&u16::from_be_bytes(key.source_port))).collect()
    };
    moved_once(&load, &records(&scene.cluster.members[0]), 2);
    assert!(scene.cluster.members[1].log().contains("drained: no flow names this member any more"));
    // It still delivers what the router sends to it; then it goes.
    scene.pause(500);
    scene.cluster.receive_at(&[1, 3]).unwrap();
    scene.pause(50);
    scene.cluster.member(2).unwrap().stop(STOP_LIMIT).unwrap();
    scene.pause(500);
    scene.nothing_broke();
}
