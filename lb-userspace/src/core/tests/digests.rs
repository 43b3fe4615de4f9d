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
