//! Digests: what is lost is found, what is equal costs little, who differs is not ready.

use super::*;
use crate::core::{
    digests::{BUCKETS, bucket_of, digest},
    wire::{Frame, Hello, RECORD_V4, VERSION},
};

impl Net {
    /// Takes a record away from a member as if it had never heard of it.
    fn lose(&mut self, id: u8, client: u16) {
        let core = self.host(id).core.as_mut().expect("a running agent");
        let number = core.table.find(&key(client)).expect("a record");
        core.table.remove(number);
        self.host(id).flows.remove(&key(client));
    }

    /// Digests are what they would be if they were computed from all records now.
    pub(super) fn check_digests(&self) {
        for host in self.hosts.values() {
            let Some(core) = host.core.as_ref() else { continue };
            let secret = *core.table.secret();
            let mut sums = vec![0_u64; BUCKETS];
            for (bucket, sum) in sums.iter_mut().enumerate() {
                for number in core.table.bucket(bucket as u16) {
                    let row = core.table.row(number).expect("a row of the bucket");
                    assert_eq!(usize::from(bucket_of(row.key.hash(&secret))), bucket);
                    if !row.record.is_tombstone() && !row.is_private() {
                        *sum = sum.wrapping_add(digest(&secret, &row.key, &row.record));
                    }
                }
            }
            assert_eq!(core.table.digests(), sums, "member {}", host.view.me);
            let rows: usize = (0..BUCKETS).map(|bucket| core.table.bucket(bucket as u16).count()).sum();
            assert_eq!(rows, core.table.len());
        }
    }
}

#[test]
fn every_field_that_members_agree_on_is_in_the_digest() {
    let mut net = Net::new(2);
    let owner = net.begin(1, STATE_ESTABLISHED);
    let record = net.core(owner).record(&key(1)).expect("a record");
    let of = |record: &records::Record| digest(&[1, 2], &key(1), record);
    let changes: [&dyn Fn(&mut records::Record); 10] = [
        &|r| r.generation += 1,
        &|r| r.backend.witnessed ^= true,
        &|r| r.backend.creator ^= 1,
        &|r| r.backend.incarnation += 1,
        &|r| r.backend.address[15] ^= 1,
        &|r| r.lifecycle.revision += 1,
        &|r| r.lifecycle.state += 1,
        &|r| r.owners.term += 1,
        &|r| r.owners.primary ^= 4,
        &|r| r.owners.backup ^= 4,
    ];
    let mut seen = BTreeSet::from([of(&record), digest(&[1, 3], &key(1), &record), digest(&[1, 2], &key(2), &record)]);
    for change in changes {
        let mut other = record;
        change(&mut other);
        assert!(seen.insert(of(&other)), "{other:?}");
    }
}

#[test]
fn a_lost_record_is_found_and_restored_within_10_seconds() {
    for lost_at in 1..=2 {
        let mut net = Net::new(2);
        for client in 0..100 {
            net.begin(client, STATE_ESTABLISHED);
        }
        net.run(20 * S);
        assert_eq!(net.core(1).status().repaired + net.core(2).status().repaired, 0, "nothing differed");
        net.lose(lost_at, 7);
        net.run(10 * S + 100 * MS);
        assert_eq!(net.core(lost_at).record(&key(7)), net.core(3 - lost_at).record(&key(7)));
        assert!(net.hosts[&lost_at].flows.contains_key(&key(7)), "and its map has it");
        net.check_digests();
        net.run(20 * S);
        let repaired = net.core(1).status().repaired + net.core(2).status().repaired;
        assert!((1..=2).contains(&repaired), "one bucket, from both sides unless one was faster: {repaired}");
    }
}

#[test]
fn equal_tables_cost_two_frames_of_digests() {
    let mut net = Net::new(2);
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(20 * S);
    let before: BTreeMap<u8, u64> = net.sent.clone();
    net.run(5 * S);
    for id in 1..=2 {
        let bytes = net.sent[&id] - before[&id];
        assert!((32 << 10..40 << 10).contains(&bytes), "{bytes} bytes");
    }
}

#[test]
fn what_a_dead_member_told_only_one_of_the_others_reaches_them_all_in_a_second() {
    let mut net = Net::new(3);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.run(MS);
    let record = net.core(owner).record(&key(1)).expect("a record");
    let third = (1..=3).find(|id| ![record.owners.primary, record.owners.backup].contains(id)).expect("three members");
    assert_eq!(net.core(third).record(&key(1)), None, "it waits for the lazy lane");
    net.kill(owner);
    net.host(owner).is_up = false;
    net.run(S);
    assert_eq!(net.core(third).record(&key(1)), Some(record));
}

#[test]
fn members_that_do_not_agree_for_long_bound_what_they_send() {
    let mut net = Net::new(2);
    let clients = 0..1000;
    for client in clients.clone() {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(20 * S);
    for client in clients {
        net.lose(1, client);
    }
    let before = net.sent[&2];
    net.run(10 * S + 100 * MS);
    let first = net.sent[&2] - before;
    assert!(first > 2 * (32 << 10) + 400 * RECORD_V4 as u64, "{first}");
    net.run(20 * S);
    assert_eq!(net.records(1), 1000, "all of them, after a few rounds");
}

/// The other side is a script, so that there is time between its words.
#[test]
fn a_joiner_is_ready_when_each_bucket_has_been_equal_once_or_came_whole() {
    [false, true].into_iter().for_each(join);
}

fn join(comes_whole: bool) {
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    let (_, here) = net.connect(99, 1);
    net.input(1, Input::Connected { peer: 2, session: here, dialled: true });
    let say = |net: &mut Net, frame: Frame| {
        net.input(1, Input::Received { session: here, bytes: frame.encode(VERSION) });
        let now = net.now;
        let heard = net.host(1).heard.entry(2).or_insert_with(Heard::new_zeroed);
        (heard.probe_ns, heard.incarnation, heard.flags) = (now, 5, PROBE_READY);
        heard.probe_counter += 1;
        net.run(20 * MS);
    };
    let hello = Hello {
        bulk: false,
        speaks: VERSION,
        from: 2,
        to: 1,
        ready: true,
        incarnation: 5,
        heard_of: 0,
        generation: 1,
        hash: 7,
        cluster: "test".into(),
    };
    say(&mut net, Frame::Hello(hello));
    let digests = |different: &[usize]| {
        let of = |bucket| u64::from(different.contains(&bucket));
        Frame::Digests((0..BUCKETS).map(of).collect())
    };
    say(&mut net, digests(&[]));
    say(&mut net, Frame::SnapshotEnd { records: 0 });
    let wait = |net: &mut Net| (0..100).for_each(|_| say(net, Frame::Keepalive));
    wait(&mut net);
    assert!(!net.is_ready(1), "what was equal before the snapshot's end does not count");
    say(&mut net, digests(&[3, 4095]));
    wait(&mut net);
    assert!(!net.is_ready(1));
    say(&mut net, digests(&[0, 4095]));
    wait(&mut net);
    assert!(!net.is_ready(1), "bucket 4095 has never been equal");
    let bucket = |is_last| Frame::Bucket { bucket: 4095, is_last, items: vec![] };
    say(&mut net, bucket(false));
    wait(&mut net);
    assert!(!net.is_ready(1), "its end has not come");
    say(&mut net, if comes_whole { bucket(true) } else { digests(&[0, 3]) });
    wait(&mut net);
    assert!(net.is_ready(1), "each has been equal once, or came whole");
}

impl Net {
    /// The connection between members 1 and 2 breaks, and comes again.
    fn break_session(&mut self) {
        let session = self.core(1).peers[&2].open.expect("a session");
        self.hang_up(session);
        self.input(1, Input::Closed { session });
        self.run(300 * MS);
        assert_ne!(self.core(1).peers[&2].open.expect("another session"), session);
    }

    fn snapshots(&self, id: u8, of: u64) -> usize {
        self.reports(id, |e| matches!(e, Event::Synchronized { records, .. } if *records == of))
    }
}

#[test]
fn a_session_that_begins_again_costs_the_digests_and_what_differs() {
    let mut net = Net::new(2);
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(12 * S);
    let before = net.sent.clone();
    net.break_session();
    for id in 1..=2 {
        let bytes = net.sent[&id] - before[&id];
        assert!((32 << 10..33 << 10).contains(&bytes), "member {id} sent {bytes} bytes");
        assert!(net.core(id).status().peers[0].snapshot_received);
    }
    net.lose(2, 7);
    net.break_session();
    assert_eq!(net.core(1).record(&key(7)), net.core(2).record(&key(7)), "at once, not after the second comparison");
    assert_eq!(net.snapshots(1, 500) + net.snapshots(2, 500), 0, "nobody was sent all");
    assert!((0..500).all(|client| net.core(1).is_durable(&key(client))));
    net.check_digests();
}

#[test]
fn who_lacks_most_gets_a_snapshot() {
    let mut net = Net::new(2);
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(S);
    net.kill(2);
    net.host(2).flows.clear();
    net.host(2).tables = None;
    net.start(2);
    net.run(2 * S);
    assert_eq!((net.snapshots(2, 500), net.records(2)), (1, 500));
    assert!(net.is_ready(2));
}

#[test]
fn a_restarted_agent_whose_map_is_whole_is_ready_without_a_snapshot() {
    let mut net = Net::new(2);
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(S);
    net.kill(2);
    net.start(2);
    net.run(S);
    assert!(net.is_ready(2));
    assert_eq!((net.snapshots(2, 500), net.records(2)), (0, 500));
    // What others know as well is not its own affair.
    let core = net.core(2);
    let rows = (0..500).filter_map(|client| core.table.row(core.table.find(&key(client))?));
    assert_eq!(rows.filter(|row| row.shared).count(), 500);
}

#[test]
fn nothing_ends_for_a_timeout_after_a_session_has_begun_again() {
    let timeouts = Timeouts { established: Duration::from_secs(10), ..Timeouts::default() };
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(View { timeouts, direct: true, ..view(id, 2) });
        net.start(id);
    }
    net.run(2 * S);
    // Its owner is 1; its packets pass at 2.
    let client = (0..100).find(|&client| net.begin(client, STATE_ESTABLISHED) == 1).expect("a flow of 1");
    net.run(12 * S);
    net.begin_at(1, client, STATE_ESTABLISHED);
    net.run(S);
    for _ in 0..12 {
        net.run(S);
        net.packet(2, client);
        net.sweep(2);
        // What 2 tells of it is lost.
        let session = net.core(1).peers[&2].open.expect("a session");
        net.hang_up(session);
        net.input(1, Input::Closed { session });
    }
    net.run(S);
    assert!(net.hosts[&1].flows.contains_key(&key(client)), "1 has not seen it for more than its timeout");
}

#[test]
fn comparisons_go_on_after_a_snapshot_to_a_member_that_was_ready() {
    let mut net = Net::new(2);
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(S);
    for client in 0..500 {
        net.lose(1, client);
    }
    net.break_session();
    assert_eq!((net.snapshots(1, 500), net.records(1)), (1, 500));
    net.lose(2, 8);
    net.run(10 * S + 100 * MS);
    assert_eq!(net.records(2), 500);
}
