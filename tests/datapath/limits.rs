//! What happens at the limits: budgets, a full table, no backend, the verifier, memory.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    maps::{Map, MapData, MapType},
    programs::Program,
};
use lb_common::{
    flow::{FlowEntry, FlowKeyV6, PENDING_MIDFLOW, PENDING_SYN, STATE_ESTABLISHED, STATE_YOUNG},
    maps,
    node::{BUDGET_DERIVED, BUDGET_SCTP, BUDGET_TCP, BUDGET_UDP, NODE_FIRST_PACKET},
    reason::Reason,
};

use crate::{
    checks::entry,
    rig::{FLOWS, Rig, load_object, xdp},
    wire::{Datagram, chunk},
    world::{DNS, ring, world},
};

/// A packet that would make an entry of each class, after those before it.
fn newcomers() -> [(usize, Vec<Datagram>, Datagram); 4] {
    let ack = Datagram::tcp(5000, ".").seq(1001);
    let question = Datagram::udp(5000, DNS);
    let midflow = Datagram::tcp(5001, ".");
    [
        (BUDGET_TCP, vec![Datagram::tcp(5000, "S").seq(1000)], ack),
        (BUDGET_UDP, vec![question.clone()], question),
        (BUDGET_SCTP, vec![Datagram::sctp(5000, chunk::INIT)], Datagram::sctp(5000, chunk::COOKIE_ECHO)),
        (BUDGET_DERIVED, vec![midflow.clone(), midflow.clone()], midflow),
    ]
}

#[test]
fn beyond_its_budget_a_class_gets_the_stateless_answer_and_no_entry() {
    for (class, before, last) in newcomers() {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| world.liveness.budgets[class] = 0);
        let backend = rig.stateless(&last);
        before.iter().for_each(|packet| rig.delivers(packet, backend, Reason::DeliverStateless));
        if class == BUDGET_DERIVED {
            rig.age_pending(&last.key(), 200);
        }
        rig.delivers(&last, backend, Reason::DeliverOverBudget);
        assert_eq!(rig.flow(&last.key()), None);
        assert_eq!(rig.take_events(), []);
        // It stays worth an entry, and gets one as soon as there is budget.
        rig.change(|world| world.liveness.budgets = [1000; 5]);
        rig.delivers(&last, backend, Reason::DeliverNew);
    }
}

#[test]
fn the_budget_of_one_class_is_not_used_up_by_another() {
    for (class, before, last) in newcomers() {
        let mut rig = Rig::of(world(&[1]));
        rig.change(|world| world.liveness.budgets = std::array::from_fn(|other| u32::from(other == class) * 1000));
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
fn a_full_table_of_ipv6_flows_answers_statelessly() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| world.node.flags = NODE_FIRST_PACKET);
    let syn = |port| Datagram::tcp(port, "S").v6();
    for port in 5000..5000 + FLOWS as u16 {
        rig.delivers(&syn(port), rig.stateless(&syn(port)), Reason::DeliverNew);
    }
    rig.events::<FlowKeyV6>();
    let full = rig.state();
    assert_eq!(full.flows_v6.len(), FLOWS as usize);
    for port in 100..110 {
        rig.delivers(&syn(port), rig.stateless(&syn(port)), Reason::DeliverTableFull);
        rig.delivers(&Datagram::udp(port, DNS).v6(), 7, Reason::DeliverTableFull);
        rig.delivers(&Datagram::sctp(port, chunk::INIT).v6(), 8, Reason::DeliverTableFull);
    }
    assert_eq!(rig.state(), full);
    assert_eq!(rig.events::<FlowKeyV6>(), []);
    // The other family has a table of its own.
    rig.delivers(&Datagram::udp(5000, DNS), 4, Reason::DeliverNew);
}

#[test]
fn a_full_event_ring_loses_events_but_no_entries() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| (world.node.flags, world.liveness.budgets) = (NODE_FIRST_PACKET, [u32::MAX; 5]));
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

/// The bound for every program.
const VERIFIED_MAX: u32 = 250_000;
/// What each program last took: one line a program, its name and the instructions that the verifier walked.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/datapath/verifier-budget.txt");
/// Percent that a program may take more than what is recorded: kernels differ.
const SLACK: u32 = 5;

#[test]
fn the_verifier_walks_no_more_instructions_than_recorded() {
    let mut ebpf = load_object(|_| {});
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    let walked: Vec<(String, u32)> = names
        .into_iter()
        .map(|name| {
            let program = ebpf.program_mut(&name).expect("it is one of them");
            match program {
                Program::SchedClassifier(clamp) => clamp.load(),
                _ => xdp(&mut ebpf, &name).load(),
            }
            .expect("the verifier accepts it");
            let info = ebpf.program(&name).expect("still there").info().expect("the kernel tells");
            let walked = info.verified_instruction_count().expect("since 5.16");
            (name, walked)
        })
        .collect();
    for (name, walked) in &walked {
        println!("{name}: {walked} instructions walked by the verifier, bound {VERIFIED_MAX}");
        assert!(*walked <= VERIFIED_MAX, "{name}");
    }
    let lines: String = walked.iter().map(|(name, walked)| format!("{name} {walked}\n")).collect();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(RECORDED, lines).expect("the record is written");
        return;
    }
    let recorded = std::fs::read_to_string(RECORDED).expect("the record is in the repository");
    let renew = format!("UPDATE=1 cargo test -p tests --test datapath verifier renews {RECORDED}");
    let budgets: BTreeMap<&str, u32> = recorded
        .lines()
        .map(|line| line.split_once(' ').expect("a name and a number"))
        .map(|(name, budget)| (name, budget.parse().expect("a number")))
        .collect();
    assert!(walked.iter().map(|(name, _)| name.as_str()).eq(budgets.keys().copied()), "other programs; {renew}");
    for (name, walked) in &walked {
        let bound = budgets[name.as_str()] * (100 + SLACK) / 100;
        assert!(*walked <= bound, "{name}: {walked} instructions, recorded {}; {renew}", budgets[name.as_str()]);
    }
}

#[test]
fn a_flow_costs_at_most_125_bytes_and_one_of_ipv6_160() {
    let ebpf = load_object(|loader| {
        loader.map_max_entries(maps::FLOWS, maps::FLOWS_MAX).map_max_entries(maps::FLOWS_V6, maps::FLOWS_MAX);
    });
    for (name, key_bytes, bound) in [(maps::FLOWS, 16, 125.0), (maps::FLOWS_V6, 40, 160.0)] {
        let Map::HashMap(map) = ebpf.map(name).expect("in the object") else { panic!("{name} is no HASH") };
        let shape = map.info().expect("the kernel tells");
        assert_eq!((shape.key_size(), shape.value_size(), shape.map_type().unwrap()), (key_bytes, 32, MapType::Hash));
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
