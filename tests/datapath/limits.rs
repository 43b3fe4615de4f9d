//! What happens at the limits: budgets, a full table, no backend, the verifier, memory.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Map, MapData, MapType};
use lb_common::{
    flow::{FlowEntry, PENDING_MIDFLOW, PENDING_SYN, STATE_ESTABLISHED, STATE_YOUNG},
    maps,
    node::{BUDGET_DERIVED, BUDGET_TCP, BUDGET_UDP, NODE_FIRST_PACKET},
    reason::Reason,
};

use crate::{
    checks::entry,
    rig::{FLOWS, Rig, load_object, xdp},
    wire::Datagram,
    world::{DNS, ring, world},
};

/// A packet that would make an entry of each class, after those before it.
fn newcomers() -> [(usize, Vec<Datagram>, Datagram); 3] {
    let ack = Datagram::tcp(5000, ".").seq(1001);
    let question = Datagram::udp(5000, DNS);
    let midflow = Datagram::tcp(5001, ".");
    [
        (BUDGET_TCP, vec![Datagram::tcp(5000, "S").seq(1000)], ack),
        (BUDGET_UDP, vec![question.clone()], question),
        (BUDGET_DERIVED, vec![midflow.clone(), midflow.clone()], midflow),
    ]
}

#[test]
fn beyond_its_budget_a_class_gets_the_stateless_answer_and_no_entry() {
    for (class, before, last) in newcomers() {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| world.node.budgets[class] = 0);
        let backend = rig.stateless(&last);
        before.iter().for_each(|packet| rig.delivers(packet, backend, Reason::DeliverStateless));
        if class == BUDGET_DERIVED {
            rig.age_pending(&last.key(), 200);
        }
        rig.delivers(&last, backend, Reason::DeliverOverBudget);
        assert_eq!(rig.flow(&last.key()), None);
        assert_eq!(rig.take_events(), []);
        // It stays worth an entry, and gets one as soon as there is budget.
        rig.change(|world| world.node.budgets = [1000; 3]);
        rig.delivers(&last, backend, Reason::DeliverNew);
    }
}

#[test]
fn the_budget_of_one_class_is_not_used_up_by_another() {
    for (class, before, last) in newcomers() {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| world.node.budgets = std::array::from_fn(|other| u32::from(other == class) * 1000));
        let backend = rig.stateless(&last);
        before.iter().for_each(|packet| rig.delivers(packet, backend, Reason::DeliverStateless));
        if class == BUDGET_DERIVED {
            rig.age_pending(&last.key(), 200);
        }
        rig.delivers(&last, backend, Reason::DeliverNew);
        let used: u32 = (0..aya::util::nr_cpus().unwrap()).map(|cpu| rig.budget(cpu).used[class]).sum();
        assert_eq!(used, 1);
    }
}

#[test]
fn a_full_table_evicts_nobody() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| world.node.flags = NODE_FIRST_PACKET);
    let syn = |port| Datagram::tcp(port, "S");
    let flows = 5000..5000 + FLOWS as u16;
    for port in flows.clone() {
        rig.delivers(&syn(port), rig.stateless(&syn(port)), Reason::DeliverNew);
    }
    rig.take_events();
    let full = rig.state();
    assert_eq!(full.flows.len(), FLOWS as usize);
    for port in 100..110 {
        rig.delivers(&syn(port), rig.stateless(&syn(port)), Reason::DeliverTableFull);
        let question = Datagram::udp(port, DNS);
        rig.delivers(&question, 4, Reason::DeliverTableFull);
    }
    assert_eq!(rig.state(), full);
    assert_eq!(rig.take_events(), []);
    // Those who were there first still are.
    for port in flows.clone() {
        rig.delivers(&Datagram::tcp(port, "."), rig.stateless(&syn(port)), Reason::DeliverKnown);
    }
    // And one that goes makes room for one.
    rig.set_flow(&syn(flows.start).key(), None);
    rig.delivers(&syn(100), rig.stateless(&syn(100)), Reason::DeliverNew);
    rig.delivers(&syn(101), rig.stateless(&syn(101)), Reason::DeliverTableFull);
}

#[test]
fn a_full_event_ring_loses_events_but_no_entries() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| (world.node.flags, world.node.budgets) = (NODE_FIRST_PACKET, [u32::MAX; 3]));
    let flows_that_fill_it = maps::EVENT_RING_BYTES / 56 + 10;
    let mut seen = 0;
    for n in 0..flows_that_fill_it {
        let syn = Datagram::tcp((n % 60_000) as u16, "S").from([198, 51, 100, (n / 60_000) as u8]);
        let (_, frame) = rig.run(&syn.frame());
        assert_ne!(frame, syn.frame());
        assert!(rig.flow(&syn.key()).is_some());
        rig.set_flow(&syn.key(), None);
        seen += 1;
    }
    assert_eq!(rig.counter(Reason::DeliverNew).packets, seen);
    let told = rig.take_events().len() as u64;
    assert!((16_000..seen).contains(&told), "{told} of {seen} events");
}

#[test]
fn a_service_without_backends_drops_by_name() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| {
        world.rings.insert(0, ring(&[0]));
        world.rings.insert(1, ring(&[0]));
    });
    for packet in [Datagram::tcp(5000, "S"), Datagram::udp(5000, DNS), Datagram::tcp(5000, "F.")] {
        rig.ends(&packet.frame(), Reason::DropNoBackend);
        rig.remembers_nothing();
    }
    // An unknown connection may have had one that comes back.
    rig.ends(&Datagram::tcp(5000, ".").frame(), Reason::DropNoBackend);
    rig.expects(&Datagram::tcp(5000, ".").key(), PENDING_MIDFLOW, 0, 1, 0);
}

#[test]
fn a_ring_that_is_missing_has_no_backends() {
    let mut world = world(&[1]);
    world.rings.clear();
    let rig = Rig::of(world);
    rig.ends(&Datagram::tcp(5000, "S").frame(), Reason::DropNoBackend);
    rig.ends(&Datagram::udp(5000, DNS).frame(), Reason::DropNoBackend);
    rig.remembers_nothing();
}

#[test]
fn an_entry_of_another_tuple_is_neither_believed_nor_written() {
    let rig = Rig::of(world(&[1]));
    let fin = Datagram::tcp(5000, "F.");
    let stateless = rig.stateless(&fin);
    let recycled = FlowEntry { tag: 1, ..entry(&fin.key(), stateless % 3 + 1, STATE_ESTABLISHED) };
    rig.set_flow(&fin.key(), Some(&recycled));
    rig.delivers(&fin, stateless, Reason::DeliverStateless);
    assert_eq!(rig.flow(&fin.key()), Some(recycled));
}

#[test]
fn a_record_that_arrives_before_the_ack_is_kept() {
    let rig = Rig::of(world(&[1]));
    let ack = Datagram::tcp(5000, ".").seq(1001);
    let syn = Datagram::tcp(5000, "S").seq(1000);
    let backend = rig.stateless(&syn);
    rig.delivers(&syn, backend, Reason::DeliverStateless);
    rig.expects(&syn.key(), PENDING_SYN, backend, 1, 1001);
    let record = FlowEntry { creator: 2, ..entry(&ack.key(), backend % 3 + 1, STATE_YOUNG) };
    rig.set_flow(&ack.key(), Some(&record));
    rig.delivers(&ack, record.backend, Reason::DeliverKnown);
    assert_eq!(rig.flow(&ack.key()).unwrap().creator, 2);
}

/// The bound for `balancer`.
const VERIFIED_MAX: u32 = 100_000;

#[test]
fn the_verifier_walks_at_most_100_000_instructions() {
    let mut ebpf = load_object(|_| {});
    for name in ["balancer", "decap"] {
        let program = xdp(&mut ebpf, name);
        program.load().expect("the verifier accepts it");
        let info = program.info().expect("the kernel tells");
        let walked = info.verified_instruction_count().expect("since 5.16");
        println!("{name}: {walked} instructions walked by the verifier, bound {VERIFIED_MAX}");
        assert!(walked <= VERIFIED_MAX);
    }
}

#[test]
fn a_flow_costs_at_most_125_bytes_and_one_of_ipv6_160() {
    let flows = load_object(|loader| {
        loader.map_max_entries(maps::FLOWS, maps::FLOWS_MAX);
    });
    let Map::HashMap(v4) = flows.map(maps::FLOWS).expect("in the object") else { panic!("flows is no HASH") };
    let shape = v4.info().expect("the kernel tells");
    assert_eq!((shape.key_size(), shape.value_size(), shape.map_type().unwrap()), (16, 32, MapType::Hash));
    let definition = aya_obj::Map::new_from_params(1, 40, 32, maps::FLOWS_MAX, 0);
    let v6 = MapData::create(definition, "flows_v6", None).expect("a HASH");
    for (name, map, bound) in [("IPv4", v4, 125.0), ("IPv6", &v6, 160.0)] {
        let bytes = memlock(map) as f64 / f64::from(maps::FLOWS_MAX);
        println!("{name}: {bytes:.1} bytes a flow, bound {bound}");
        assert!(bytes <= bound);
    }
}

/// Bytes of kernel memory that a map takes.
fn memlock(map: &MapData) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).expect("procfs");
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).expect("the kernel tells");
    line.trim().parse().expect("a number")
}
