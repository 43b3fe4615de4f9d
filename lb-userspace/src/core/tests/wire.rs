//! The codec: golden bytes, and everything that is none.

use lb_common::flow::{FlowKeyV6, STATE_DELETED};
use proptest::prelude::*;

use super::*;
use crate::core::{
    records::{BackendRegister, Lifecycle, OwnersRegister, Record},
    wire::{Decoder, Frame, Hello, Item, PAYLOAD_MAX, RECORD_V4, RECORD_V6, WireError},
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
        speaks: 1,
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
    decoder.next_frame()
}

#[test]
fn every_frame_has_its_golden_bytes() {
    let golden = [
        (
            Frame::Hello(hello()),
            "00000025 01 01 01 02 01 01 00000005 00000004 0000000000000006 0102030405060708 06 656467652d31",
        ),
        (
            Frame::Snapshot(vec![item()]),
            "00000033 01 02 04 c6330203 cb00710a 9c40 0050 06 0102 83 04050607 00000000000000000000ffff0a000209 \
             0809 02 0a0b 03 40 0c0d0e0f 00",
        ),
        (Frame::SnapshotEnd { records: 258 }, "0000000a 01 03 0000000000000102"),
        (
            Frame::Delta(vec![item_v6()]),
            "0000004b 01 04 06 11111111111111111111111111111111 22222222222222222222222222222222 3333 4444 11 0102 83 \
             04050607 00000000000000000000ffff0a000209 0809 02 0a0b 03 40 0c0d0e0f 00",
        ),
        (
            Frame::Delta(vec![tombstone()]),
            "00000033 01 04 04 c6330203 cb00710a 9c40 0050 06 0102 83 04050607 00000000000000000000ffff0a000209 \
             0809 05 0a0b 03 40 0c0d0e0f 77",
        ),
        (Frame::Keepalive, "00000002 01 05"),
        (Frame::Goodbye, "00000002 01 06"),
    ];
    for (frame, bytes) in golden {
        let bytes: String = bytes.split_whitespace().collect();
        assert_eq!(hex(&frame.encode()), bytes, "{frame:?}");
        assert_eq!(decode(&frame.encode()), Ok(Some(frame)));
    }
}

#[test]
fn records_have_the_documented_sizes() {
    let empty = Frame::Delta(vec![]).encode().len();
    assert_eq!(Frame::Delta(vec![item()]).encode().len() - empty, RECORD_V4);
    assert_eq!(Frame::Delta(vec![item_v6()]).encode().len() - empty, RECORD_V6);
}

fn frames() -> Vec<Frame> {
    vec![
        Frame::Hello(hello()),
        Frame::Snapshot(vec![item(); 100]),
        Frame::SnapshotEnd { records: 100 },
        Frame::Delta(vec![item(), item_v6(), item()]),
        Frame::Keepalive,
        Frame::Goodbye,
    ]
}

proptest! {
    #[test]
    fn frames_come_out_however_the_stream_is_cut(cuts in prop::collection::vec(1..200_usize, 1..300)) {
        let stream: Vec<u8> = frames().iter().flat_map(Frame::encode).collect();
        let mut decoder = Decoder::default();
        let (mut rest, mut cuts, mut got) = (stream.as_slice(), cuts.into_iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            rest = later;
            decoder.push(now);
            while let Some(frame) = decoder.next_frame().expect("frames") {
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
    fn no_flipped_byte_makes_the_decoder_panic(at: prop::sample::Index, with: u8, which in 0..6_usize) {
        let mut bytes = frames()[which].encode();
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        let _ = decode(&bytes);
    }
}

#[test]
fn a_truncated_payload_is_refused_at_every_length() {
    for frame in [Frame::Hello(hello()), Frame::Snapshot(vec![item()]), Frame::SnapshotEnd { records: 1 }] {
        let whole = frame.encode();
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
        let mut bytes = frame.encode();
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
        let mut bytes = frame.encode();
        bytes[4] = 2;
        assert_eq!(decode(&bytes), Err(WireError::Version(2)));
    }
    for kind in [0, 7, 16, 24, 32, 40, 48, 56, 255] {
        assert_eq!(decode(&[0, 0, 0, 2, 1, kind]), Err(WireError::Type(kind)));
    }
}

#[test]
fn impossible_records_are_refused() {
    let refused = |what: &'static str, change: &dyn Fn(&mut Item)| {
        let mut bad = item();
        change(&mut bad);
        let bytes = Frame::Delta(vec![item(), bad]).encode();
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
    let mut bytes = Frame::Delta(vec![item()]).encode();
    bytes[6] = 5;
    assert_eq!(decode(&bytes), Err(WireError::Impossible("address family")));
}

#[test]
fn impossible_hellos_are_refused() {
    let refused = |what: &'static str, hello: Hello| {
        assert_eq!(decode(&Frame::Hello(hello).encode()), Err(WireError::Impossible(what)));
    };
    refused("version", Hello { speaks: 0, ..hello() });
    refused("member id", Hello { from: 0, ..hello() });
    refused("member id", Hello { from: 65, ..hello() });
    refused("member id", Hello { to: 65, ..hello() });
    refused("member id", Hello { from: 1, ..hello() });
    refused("incarnation", Hello { incarnation: 0, ..hello() });
    let mut bytes = Frame::Hello(hello()).encode();
    let last = bytes.len() - 1;
    bytes[last] = 0xff;
    assert_eq!(decode(&bytes), Err(WireError::Impossible("cluster name")));
}

#[test]
fn nothing_of_a_bad_frame_is_applied() {
    let mut net = Net::new(2);
    let session = net.core(1).peers[&2].open.expect("a session");
    let good = item();
    let mut bad = item();
    bad.record.owners.primary = 0;
    net.input(1, Input::Received { session, bytes: Frame::Delta(vec![good, bad]).encode() });
    assert_eq!(net.records(1), 0);
    assert_eq!(net.core(1).record(&good.key), None);
    assert!(!net.core(1).links.contains_key(&session));
}
