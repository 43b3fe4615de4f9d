//! Flipped bits in a map: found by the sweep, mended, and no news to anybody.

use zerocopy::IntoBytes as _;

use super::*;

/// Fields that XDP writes, whose every value may be its word.
fn is_of_datapath(byte: usize) -> bool {
    let of = |offset: usize, size: usize| (offset..offset + size).contains(&byte);
    of(std::mem::offset_of!(FlowEntry, last_seen), 4)
        || of(std::mem::offset_of!(FlowEntry, revision), 2)
        || of(std::mem::offset_of!(FlowEntry, state), 1)
        || of(std::mem::offset_of!(FlowEntry, packets), 1)
        || of(std::mem::offset_of!(FlowEntry, event), 3)
}

/// The member's map shows each flow to its agent, twice: the first one notices, the second one sees that all is well.
fn sweeps(net: &mut Net) {
    for _ in 0..2 {
        net.run(100 * MS);
        net.sweep_all();
    }
}

/// A member delivers a flow, another one knows it, and the maps have been seen to hold it.
fn settled() -> Net {
    let mut net = Net::new(2);
    net.begin_at(1, 1, STATE_ESTABLISHED);
    sweeps(&mut net);
    net
}

fn flip(net: &mut Net, member: u8, bit: usize) {
    let entry = net.host(member).flows.get_mut(&key(1)).expect("a flow");
    entry.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
}

#[test]
fn every_flipped_bit_is_mended_and_news_to_nobody() {
    let bits = (0..8 * size_of::<FlowEntry>()).filter(|bit| !is_of_datapath(bit / 8));
    for member in 1..=2 {
        let mut net = settled();
        let (good, record) = (net.hosts[&member].flows[&key(1)], net.core(1).record(&key(1)));
        for bit in bits.clone() {
            flip(&mut net, member, bit);
            let before = net.core(member).status().restored;
            sweeps(&mut net);
            assert_eq!(net.hosts[&member].flows[&key(1)], good, "bit {bit}");
            assert_eq!(net.core(member).status().restored, before + 1, "bit {bit}");
            assert!((1..=2).all(|id| net.core(id).record(&key(1)) == record), "bit {bit}");
        }
    }
}

#[test]
fn a_flipped_bit_of_what_the_datapath_writes_moves_no_flow_and_parts_no_members() {
    for bit in (0..8 * size_of::<FlowEntry>()).filter(|bit| is_of_datapath(bit / 8)) {
        let mut net = settled();
        let good = net.hosts[&1].flows[&key(1)];
        flip(&mut net, 1, bit);
        sweeps(&mut net);
        for id in 1..=2 {
            let now = net.hosts[&id].flows[&key(1)];
            let placed = |e: &FlowEntry| (e.tag, e.backend, e.creator, e.generation, e.term, e.primary, e.backup);
            assert_eq!(placed(&now), placed(&good), "bit {bit}");
            assert!(now.revision < 2048, "bit {bit}: nobody revives a flow that often");
        }
        assert_eq!(net.core(1).record(&key(1)), net.core(2).record(&key(1)), "bit {bit}");
    }
}

#[test]
fn what_the_datapath_places_anew_is_no_damage() {
    let mut net = settled();
    let before = net.core(1).record(&key(1)).expect("a record");
    let now = tick(net.now);
    let entry = net.host(1).flows.get_mut(&key(1)).expect("a flow");
    (entry.generation, entry.created, entry.backend) = (1, now, entry.backend + 1);
    let entry = *entry;
    sweeps(&mut net);
    let after = net.core(2).record(&key(1)).expect("a record");
    assert_eq!(after.generation, 1);
    assert_ne!(after.backend.address, before.backend.address);
    assert_eq!(net.hosts[&1].flows[&key(1)].backend, entry.backend);
    assert_eq!(net.core(1).status().restored, 0);
}

#[test]
fn a_connection_that_closes_while_its_entry_is_mended_stays_closing() {
    let mut net = settled();
    let good = net.hosts[&1].flows[&key(1)];
    let entry = net.host(1).flows.get_mut(&key(1)).expect("a flow");
    (entry.primary, entry.state) = (7, lb_common::flow::STATE_CLOSING);
    sweeps(&mut net);
    net.run(100 * MS);
    for id in 1..=2 {
        assert_eq!(net.hosts[&id].flows[&key(1)].state, lb_common::flow::STATE_CLOSING);
        assert_eq!(net.hosts[&id].flows[&key(1)].primary, good.primary);
    }
}
