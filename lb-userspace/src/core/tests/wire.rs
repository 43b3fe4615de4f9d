//! The codec: golden bytes, and everything that is none.

use lb_common::flow::{FlowKeyV6, STATE_DELETED};
use proptest::prelude::*;

use super::*;
use crate::core::{
    digests::BUCKETS,
    records::{BackendRegister, Lifecycle, OwnersRegister, Record},
    wire::{
        Condition, ConfigurationId, Decoder, Epoch, Frame, Hello, Item, Opinion, PAYLOAD_MAX, Part, RECORD_V4,
        RECORD_V6, Register, Standing, VERSION, WireError,
    },
};

fn item() -> Item {
    Item {
        key: key(0x0203),
        record: Record {
            generation: 0x0102,
            backend: BackendRegister { witnessed: true, creator: 3, incarnation: 0x0405_0607, address: server(9) },
            lifecycle: Lifecycle { revision: 0x0809, state: STATE_ESTABLISHED },
            owners: OwnersRegister { term: 0x0a0b, primary: 3, backup: 64 },
        },
        idle_ms: 0x0c0d_0e0f,
        ended_s: 0,
    }
}

fn tombstone() -> Item {
    let mut item = Item { ended_s: 0x77, ..item() };
    item.record.lifecycle.state = STATE_DELETED;
    item
}

fn item_v6() -> Item {
    let key = FlowKeyV6 {
        source: [0x11; 16],
        destination: [0x22; 16],
        source_port: [0x33, 0x33],
        destination_port: [0x44, 0x44],
        protocol: 17,
        padding: FromZeros::new_zeroed(),
    };
    Item { key: key.into(), ..item() }
}

fn hello() -> Hello {
    Hello {
        bulk: false,
        speaks: VERSION,
        from: 2,
        to: 1,
        ready: true,
        incarnation: 5,
        heard_of: 4,
        generation: 6,
        hash: 0x0102_0304_0506_0708,
        cluster: "edge-1".into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, WireError> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    decoder.next_frame(VERSION)
}

const EPOCH: Epoch = Epoch { number: 3, hash: 0x1122_3344_5566_7788 };
const NEXT: Epoch = Epoch { number: 4, hash: 0x99aa_bbcc_ddee_ff00 };

/// The frames that the golden files hold, by their names there.
fn golden_frames(version: u8) -> Vec<(&'static str, Frame)> {
    let common = [
        ("hello", Frame::Hello(Hello { speaks: version, ..hello() })),
        ("snapshot", Frame::Snapshot(vec![item()])),
        ("snapshot-end", Frame::SnapshotEnd { records: 258 }),
        ("delta-v6", Frame::Delta(vec![item_v6()])),
        ("tombstone", Frame::Delta(vec![tombstone()])),
        ("keepalive", Frame::Keepalive),
        ("goodbye", Frame::Goodbye),
    ];
    let of_its_own = match version {
        1 => vec![],
        2..=4 => vec![
            ("epoch", Frame::Epoch(Standing { in_force: EPOCH, in_hand: NEXT.hash, next: NEXT })),
            ("digests", Frame::Digests(vec![0x0102_0304_0506_0708; BUCKETS])),
            ("relay", Frame::Relay(vec![item(), item_v6()])),
            ("acknowledgement", Frame::Acknowledgement { frames: 258 }),
            ("bucket", Frame::Bucket { bucket: 0x0abc, is_last: true, items: vec![item()] }),
        ],
        _ => unreachable!("a version without golden frames"),
    };
    let condition = Condition { backend: 0x0102_0304_0506_0708, register: Register::Drained, number: 9, is_set: true };
    let since_3 = [
        ("hello-bulk", Frame::Hello(Hello { bulk: true, speaks: version, ..hello() })),
        ("opinions", Frame::Opinions(vec![Opinion { backend: 0x0102_0304_0506_0708, is_up: true }])),
        ("conditions", Frame::Conditions(vec![condition, Condition { register: Register::Down, ..condition }])),
    ];
    let since_3 = since_3.into_iter().filter(|_| version >= 3);
    let id = ConfigurationId { generation: 6, hash: 0x0102_0304_0506_0708 };
    let replaces = ConfigurationId { generation: 5, hash: 0x1112_1314_1516_1718 };
    let part = Part { id, replaces, trial_ms: 60_000, total: 8, offset: 4, bytes: b"hold".to_vec() };
    let since_4 = [
        ("configuration-request", Frame::ConfigurationRequest(id)),
        ("configuration-part", Frame::ConfigurationPart(part)),
        ("configuration-refusal", Frame::ConfigurationRefusal { id, why: "why".into() }),
    ];
    let since_4 = since_4.into_iter().filter(|_| version >= 4);
    common.into_iter().chain(of_its_own).chain(since_3).chain(since_4).collect()
}

/// The lines of a golden file: the name of a frame, and its bytes.
pub(super) fn golden(version: u8) -> BTreeMap<&'static str, Vec<u8>> {
    let file = match version {
        1 => include_str!("golden/version-1.hex"),
        2 => include_str!("golden/version-2.hex"),
        3 => include_str!("golden/version-3.hex"),
        _ => include_str!("golden/version-4.hex"),
    };
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    // Bytes, and how often they come: not written is once.
    let bytes = |word: &str| -> Vec<u8> {
        let (bytes, times) = word.split_once('*').map_or((word, 1), |(bytes, times)| (bytes, times.parse().unwrap()));
        bytes.as_bytes().chunks(2).map(byte).collect::<Vec<u8>>().repeat(times)
    };
    let line = |line: &'static str| {
        let (name, words) = line.split_once(' ').unwrap();
        (name, words.split(' ').flat_map(bytes).collect())
    };
    file.lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

#[test]
fn every_frame_of_every_version_has_its_golden_bytes() {
    for version in 1..=VERSION {
        let golden = golden(version);
        let frames = golden_frames(version);
        assert_eq!(frames.len(), golden.len());
        for (name, frame) in frames {
            let bytes = golden.get(name).unwrap_or_else(|| panic!("version {version} has no golden {name}"));
            assert_eq!(hex(&frame.encode(version)), hex(bytes), "version {version}: {name}");
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            assert_eq!(decoder.next_frame(version), Ok(Some(frame)));
        }
    }
}

#[test]
fn the_golden_bytes_of_version_1_are_those_of_the_first_release() {
    // FNV-1a over the file's bytes: who changes a line changes this one, too, and should not.
    let hash = golden(1)
        .values()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    assert_eq!(hash, 0x3791_6758_3f07_76f8);
}

#[test]
fn records_have_the_documented_sizes() {
    let empty = Frame::Delta(vec![]).encode(VERSION).len();
    assert_eq!(Frame::Delta(vec![item()]).encode(VERSION).len() - empty, RECORD_V4);
    assert_eq!(Frame::Delta(vec![item_v6()]).encode(VERSION).len() - empty, RECORD_V6);
}

fn frames() -> Vec<Frame> {
    vec![
        Frame::Hello(hello()),
        Frame::Snapshot(vec![item(); 100]),
        Frame::SnapshotEnd { records: 100 },
        Frame::Delta(vec![item(), item_v6(), item()]),
        Frame::Keepalive,
        Frame::Goodbye,
        Frame::Digests((0..BUCKETS as u64).collect()),
        Frame::Acknowledgement { frames: u64::MAX },
        Frame::Bucket { bucket: 7, is_last: false, items: vec![item_v6(); 3] },
    ]
}

proptest! {
    #[test]
    fn frames_come_out_however_the_stream_is_cut(cuts in prop::collection::vec(1..200_usize, 1..300)) {
        let stream: Vec<u8> = frames().iter().flat_map(|frame| frame.encode(VERSION)).collect();
        let mut decoder = Decoder::default();
        let (mut rest, mut cuts, mut got) = (stream.as_slice(), cuts.into_iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            rest = later;
            decoder.push(now);
            while let Some(frame) = decoder.next_frame(VERSION).expect("frames") {
                got.push(frame);
            }
        }
        prop_assert_eq!(got, frames());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_flipped_byte_makes_the_decoder_panic(at: prop::sample::Index, with: u8, which in 0..9_usize) {
        let mut bytes = frames()[which].encode(VERSION);
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        let _ = decode(&bytes);
    }
}

#[test]
fn a_truncated_payload_is_refused_at_every_length() {
    for frame in [Frame::Hello(hello()), Frame::Snapshot(vec![item()]), Frame::SnapshotEnd { records: 1 }] {
        let whole = frame.encode(VERSION);
        for length in 6..whole.len() {
            let mut bytes = whole[..length].to_vec();
            bytes[..4].copy_from_slice(&(length as u32 - 4).to_be_bytes());
            let refused = matches!(decode(&bytes), Err(WireError::Truncated(_)));
            assert!(refused || length == 6 && matches!(frame, Frame::Snapshot(_)), "{frame:?} of {length} bytes");
        }
        assert_eq!(decode(&whole[..whole.len() - 1]), Ok(None), "the rest may come");
    }
}

#[test]
fn a_frame_that_goes_on_is_refused() {
    for frame in [Frame::Hello(hello()), Frame::SnapshotEnd { records: 1 }, Frame::Keepalive, Frame::Goodbye] {
        let mut bytes = frame.encode(VERSION);
        bytes.push(0);
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        assert!(matches!(decode(&bytes), Err(WireError::LeftOver(_))), "{frame:?}");
    }
}

#[test]
fn a_length_that_no_frame_has_is_refused_before_it_is_waited_for() {
    for length in [0, 1, PAYLOAD_MAX as u32 + 3, u32::MAX] {
        assert_eq!(decode(&length.to_be_bytes()), Err(WireError::Length(length)));
    }
    assert_eq!(decode(&(PAYLOAD_MAX as u32 + 2).to_be_bytes()), Ok(None));
}

#[test]
fn another_version_and_an_unknown_type_are_refused() {
    for frame in frames() {
        let mut bytes = frame.encode(VERSION);
        bytes[4] = VERSION + 1;
        let spoken = if matches!(frame, Frame::Hello(_)) { 1 } else { VERSION };
        assert_eq!(decode(&bytes), Err(WireError::Version { said: VERSION + 1, spoken }));
    }
    for kind in [0, 7, 16, 23, 64, 255] {
        assert_eq!(decode(&[0, 0, 0, 2, VERSION, kind]), Err(WireError::Type(kind)));
    }
    for kind in (0..=u8::MAX).filter(|kind| !(1..=6).contains(kind)) {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 2, 1, kind]);
        assert_eq!(decoder.next_frame(1), Err(WireError::Type(kind)), "version 1 has no more types, for ever");
    }
}

#[test]
fn impossible_records_are_refused() {
    let refused = |what: &'static str, change: &dyn Fn(&mut Item)| {
        let mut bad = item();
        change(&mut bad);
        let bytes = Frame::Delta(vec![item(), bad]).encode(VERSION);
        assert_eq!(decode(&bytes), Err(WireError::Impossible(what)));
    };
    let with_key = |change: &dyn Fn(&mut FlowKeyV4)| {
        let Key::V4(mut key) = item().key else { unreachable!("an IPv4 key") };
        change(&mut key);
        Key::V4(key)
    };
    refused("protocol", &|item| item.key = with_key(&|key| key.protocol = 1));
    refused("count", &|item| item.record.generation = 0xff01);
    refused("count", &|item| item.record.lifecycle.revision = u16::MAX);
    refused("count", &|item| item.record.owners.term = u16::MAX);
    refused("creator", &|item| item.record.backend.creator = 0);
    refused("creator", &|item| item.record.backend.creator = 65);
    refused("backend", &|item| item.record.backend.address = [0; 16]);
    refused("state", &|item| item.record.lifecycle.state = 0);
    refused("state", &|item| item.record.lifecycle.state = STATE_DELETED + 1);
    refused("owners", &|item| item.record.owners.primary = 0);
    refused("owners", &|item| item.record.owners.backup = 65);
    refused("owners", &|item| item.record.owners.backup = 3);
    refused("end", &|item| item.ended_s = 1);
    let mut bytes = Frame::Delta(vec![item()]).encode(VERSION);
    bytes[6] = 5;
    assert_eq!(decode(&bytes), Err(WireError::Impossible("address family")));
}

#[test]
fn impossible_hellos_are_refused() {
    let refused = |what: &'static str, hello: Hello| {
        assert_eq!(decode(&Frame::Hello(hello).encode(VERSION)), Err(WireError::Impossible(what)));
    };
    refused("version", Hello { speaks: 0, ..hello() });
    refused("member id", Hello { from: 0, ..hello() });
    refused("member id", Hello { from: 65, ..hello() });
    refused("member id", Hello { to: 65, ..hello() });
    refused("member id", Hello { from: 1, ..hello() });
    refused("incarnation", Hello { incarnation: 0, ..hello() });
    let mut bytes = Frame::Hello(hello()).encode(VERSION);
    let last = bytes.len() - 1;
    bytes[last] = 0xff;
    assert_eq!(decode(&bytes), Err(WireError::Impossible("cluster name")));
}

#[test]
fn impossible_buckets_are_refused() {
    let bytes = Frame::Bucket { bucket: 4095, is_last: false, items: vec![item()] }.encode(VERSION);
    for (at, with) in [(6, 0x10), (8, 2)] {
        let mut bytes = bytes.clone();
        bytes[at] = with;
        assert_eq!(decode(&bytes), Err(WireError::Impossible("bucket")));
    }
}

#[test]
fn nothing_of_a_bad_frame_is_applied() {
    let mut net = Net::new(2);
    let session = net.core(1).peers[&2].open.expect("a session");
    let good = item();
    let mut bad = item();
    bad.record.owners.primary = 0;
    net.input(1, Input::Received { session, bytes: Frame::Delta(vec![good, bad]).encode(VERSION) });
    assert_eq!(net.records(1), 0);
    assert_eq!(net.core(1).record(&good.key), None);
    assert!(!net.core(1).links.contains_key(&session));
}
