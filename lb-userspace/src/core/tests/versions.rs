//! Members of different versions: each speaks what the other understands.

use lb_common::flow::{STATE_CLOSING, STATE_DELETED};

use super::{wire::golden, *};
use crate::core::wire::{Decoder, Frame, VERSION};

/// Two members that are running, of which the second speaks `version` and no later one.
pub(super) fn mixed(version: u8) -> Net {
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(view(id, 2));
        net.start(id);
        if id == 2 {
            let core = net.host(2).core.take().expect("a running agent");
            net.host(2).core = Some(core.speaking(version));
        }
    }
    net.run(2 * S);
    net
}

#[test]
fn both_sides_speak_the_lower_version() {
    for version in 1..=VERSION {
        let net = mixed(version);
        for id in 1..=2 {
            assert!(net.core(id).links.values().all(|link| link.version == version));
            assert!(net.is_ready(id));
        }
    }
}

#[test]
fn members_of_two_versions_replicate_both_ways() {
    let mut net = mixed(1);
    for client in 0..50 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(100 * MS);
    let primary = |client| net.core(1).record(&key(client)).expect("a record").owners.primary;
    assert!((0..50).map(primary).any(|id| id == 1) && (0..50).map(primary).any(|id| id == 2), "both have flows");
    for client in 0..50 {
        assert_eq!(net.core(1).record(&key(client)), net.core(2).record(&key(client)));
    }
    for client in 0..50 {
        let mut entry = net.hosts[&2].flows[&key(client)];
        entry.state = STATE_CLOSING;
        net.host(2).flows.insert(key(client), entry);
        net.input(2, Input::Observed { key: key(client), entry });
    }
    net.run(100 * MS);
    for client in 0..50 {
        let record = net.core(1).record(&key(client)).expect("a record");
        assert_eq!(record.lifecycle.state, STATE_CLOSING);
    }
}

/// The other side is no code of today: it is what the first release has sent, and its types of frames.
#[test]
fn a_member_of_the_first_release_is_understood_and_understands() {
    let mut net = Net::idle();
    let (cluster, services) = ("edge-1".to_owned(), vec![web(vec![backend(9)])]);
    net.add(View { cluster, services, ..view(1, 64) });
    // Its peer remembers an earlier start.
    net.host(1).incarnation = 8;
    net.start(1);
    // Another member has started often.
    net.host(1).core.as_mut().expect("a running agent").watch.learn_incarnation(3, 0x0405_0607);
    let (_, here) = net.connect(99, 1);
    // What it says stays under way, to be read below.
    net.cut.insert((1, 99));
    net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
    let said = golden(1);
    for name in ["hello", "snapshot", "delta-v6", "keepalive"] {
        net.input(1, Input::Received { session: here, bytes: said[name].clone() });
    }
    let record = net.core(1).record(&key(0x0203)).expect("the record of its snapshot");
    assert_eq!((record.generation, record.owners.primary, record.backend.creator), (0x0102, 3, 3));
    assert_eq!(net.core(1).status().parked, 1, "the delta's service is not configured here");
    net.input(1, Input::Received { session: here, bytes: said["tombstone"].clone() });
    assert_eq!(net.core(1).record(&key(0x0203)).map(|record| record.lifecycle.state), Some(STATE_DELETED));

    net.begin_at(1, 7, STATE_ESTABLISHED);
    net.run(S);
    let mut decoder = Decoder::default();
    let mut heard = Vec::new();
    for (_, bytes) in net.stuck.iter().filter(|(session, _)| *session == here) {
        decoder.push(bytes);
        while let Some(frame) = decoder.next_frame(1).expect("nothing but version 1") {
            heard.push(frame);
        }
    }
    assert!(matches!(&heard[0], Frame::Hello(hello) if hello.speaks == VERSION));
    let told = |frame: &Frame| matches!(frame, Frame::Delta(items) if items.iter().any(|item| item.key == key(7)));
    assert!(heard.iter().any(told), "{heard:?}");
    assert!(heard.contains(&Frame::Keepalive));
}
