//! `lb-common`'s tables, over the BPF maps.

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
};
use lb_common::{
    address::{Address, Words},
    flow::{EventV4, EventV6, FlowEntry, FlowKeyV4, FlowKeyV6, Fragment, Pending},
    lifecycle::Lifecycle,
    liveness::{Heard, Liveness, heard_lately},
    node::{BUDGET_CLASSES, NODE_PEER_PREFIXES, Node},
    packet::Packet,
    rank::{Owners, rank},
    service::{Service, ServiceKey},
    steer::{Flows, Inserted, Tables},
    target::Target,
};

use crate::maps;

/// `bpf_map_update_elem`: only where there is no element.
const BPF_NOEXIST: u64 = 1;
/// `bpf_map_update_elem`: only where there is one.
const BPF_EXIST: u64 = 2;
const EEXIST: i32 = 17;

/// Stands for an element that an array of one always has.
static DEAD: Liveness = Liveness {
    forwarding: 0,
    eligible: 0,
    lease_until_ns: 0,
    doubt_until_ns: 0,
    grace_until_ns: 0,
    budgets: [0; BUDGET_CLASSES],
    epoch: 0,
    awaited: 0,
    left: 0,
    flags: 0,
};

/// The maps, with what nearly every packet needs at hand.
#[derive(Clone, Copy)]
pub(crate) struct Maps {
    /// This member.
    pub(crate) node: &'static Node,
    now_ns: u64,
}

impl Maps {
    /// None while the agent has not configured the datapath.
    #[inline(always)]
    pub(crate) fn open() -> Option<Self> {
        let node: &'static Node = maps::NODE.get(0)?;
        if node.id == 0 {
            return None;
        }
        Some(Self { node, now_ns: 0 })
    }

    /// Reads the clock: left until a packet is known to need it. The coarse one costs a load, and ticks every few milliseconds.
    #[inline(always)]
    pub(crate) fn set_clock(&mut self) {
        // SAFETY: a helper call without arguments.
        self.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    #[inline(always)]
    fn node(&self) -> &Node {
        self.node
    }

    #[inline(always)]
    fn liveness(&self) -> &Liveness {
        maps::LIVENESS.get(0).unwrap_or(&DEAD)
    }

    #[inline(always)]
    fn probe_heard_ns(&self, id: u8) -> u64 {
        probe_heard_ns(id)
    }

    #[inline(always)]
    fn heard_lately(&self) -> u64 {
        heard_members(self.now_ns)
    }

    #[inline(always)]
    fn may_be_ours(&self, address: Words) -> bool {
        maps::VIP_FILTER.get(0).is_some_and(|filter| filter.may_contain(address))
    }

    #[inline(always)]
    fn member_at(&self, address: &Address) -> Option<u8> {
        // SAFETY: the value is one word; a concurrent update is seen whole or not at all.
        let member = unsafe { maps::PEERS.get(address) };
        if member.is_none() && self.node.flags & NODE_PEER_PREFIXES != 0 {
            return maps::PEER_PREFIXES.get(&Key::new(128, *address)).map(|id| *id as u8);
        }
        member.map(|id| *id as u8)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: copied at once; the agent replaces elements, it does not write into them.
        unsafe { maps::SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn ring(&self, ring: u32, slot: usize) -> u16 {
        ring_entry(ring, slot as u32) as u16
    }

    #[inline(always)]
    fn backend(&self, slot: u16) -> Option<&Target> {
        maps::BACKENDS.get(u32::from(slot))
    }

    #[inline(always)]
    fn member(&self, id: u8) -> Option<&Target> {
        maps::MEMBERS.get(u32::from(id))
    }

    #[inline(always)]
    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners {
        let packed = rank_members(flow_hash, candidates);
        Owners { primary: packed as u8, backup: (packed >> 8) as u8 }
    }

    #[inline(always)]
    fn take_budget(&self, class: usize) -> bool {
        let Some(budget) = maps::BUDGET.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own element.
        unsafe { &mut *budget }.take(class, &self.liveness().budgets, self.now_ns)
    }
}

// Global functions (kernel 5.6, be8704ff07d2): the verifier walks each once, and not once for every path that calls it.

/// The backend slot in a slot of a ring; 0 for none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ring_entry(ring: u32, slot: u32) -> u32 {
    let Some(ring) = maps::RINGS.get_value(ring, &0) else { return 0 };
    // A mask bounds the index in a way that the verifier understands; `ring_slot` stays below it anyway.
    u32::from(ring.slots[slot as usize & (ring.slots.len() - 1)])
}

/// The owners among `candidates`: the primary's id in the lowest byte, the backup's in the next.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn rank_members(flow_hash: u64, candidates: u64) -> u32 {
    let Some(node) = maps::NODE.get(0) else { return 0 };
    let owners = rank(flow_hash, &node.seeds, node.members, candidates);
    u32::from(owners.primary) | u32::from(owners.backup) << 8
}

/// The members heard lately, as a mask.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn heard_members(now_ns: u64) -> u64 {
    let Some(node) = maps::NODE.get(0) else { return 0 };
    heard_lately(node, now_ns, probe_heard_ns)
}

#[inline(always)]
fn probe_heard_ns(id: u8) -> u64 {
    maps::HEARD.get(u32::from(id)).map_or(0, Heard::probe_with_records_ns)
}

/// A packet that is put aside, for functions that have no room for it on their stack.
pub(crate) trait Aside: Sized + 'static {
    /// Where this CPU's is kept.
    fn aside() -> Option<&'static mut Self>;
}

macro_rules! flows {
    ($($key:ty, $event:ident, $flows:ident, $pending:ident, $fragments:ident, $emit:ident, $aside:ident;)*) => {$(
        impl Flows<$key> for Maps {
            type Flow = *mut FlowEntry;

            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<Self::Flow> {
                maps::$flows.get_ptr_mut(key)
            }

            #[inline(always)]
            fn entry(&self, flow: Self::Flow) -> FlowEntry {
                // SAFETY: an element of the preallocated map stays mapped; its fields may change meanwhile.
                unsafe { *flow }
            }

            #[inline(always)]
            fn seen(&self, flow: Self::Flow, tag: u32, now: u32) {
                // SAFETY: as in `touch`.
                unsafe {
                    if (*flow).tag == tag {
                        (*flow).last_seen = now;
                    }
                }
            }

            #[inline(always)]
            fn touch(&self, flow: Self::Flow, tag: u32, step: Lifecycle) {
                // SAFETY: as above; no reference is made, because other CPUs write too. The tag is compared right before
                // the writes, and each is one store.
                unsafe {
                    if (*flow).tag == tag {
                        (*flow).last_seen = step.last_seen;
                        (*flow).revision = step.revision;
                        (*flow).state = step.state;
                        (*flow).packets = step.packets;
                    }
                }
            }

            #[inline(always)]
            fn insert(&self, key: &$key, entry: &FlowEntry) -> Inserted {
                match maps::$flows.insert(key, entry, BPF_NOEXIST) {
                    Ok(()) => Inserted::Yes,
                    Err(error) if error == -EEXIST => Inserted::Exists,
                    Err(_) => Inserted::Full,
                }
            }

            #[inline(always)]
            fn replace(&self, key: &$key, entry: &FlowEntry) {
                // Fails only if the agent deleted the entry meanwhile: then the flow begins anew with its next packet.
                let _ = maps::$flows.insert(key, entry, BPF_EXIST);
            }

            #[inline(always)]
            fn pending(&self, key: &$key) -> Option<Pending> {
                // SAFETY: copied at once; another CPU that writes it meanwhile counts a packet of the same tuple.
                unsafe { maps::$pending.get(key) }.copied()
            }

            #[inline(always)]
            fn set_pending(&self, key: &$key, pending: &Pending) {
                if let Some(known) = maps::$pending.get_ptr_mut(key) {
                    // SAFETY: the map's element. Written in place: an insertion takes a lock and a free element.
                    unsafe { *known = *pending };
                    return;
                }
                // Fails only under contention for a free element: then the tuple is remembered at its next packet.
                let _ = maps::$pending.insert(key, pending, 0);
            }

            #[inline(always)]
            fn fragment(&self, datagram: &$key) -> Option<Fragment> {
                // SAFETY: copied at once; elements are replaced, not written into.
                unsafe { maps::$fragments.get(datagram) }.copied()
            }

            #[inline(always)]
            fn set_fragment(&self, datagram: &$key, fragment: &Fragment) {
                // Fails only under contention for a free element: then the later fragments are dropped and counted.
                let _ = maps::$fragments.insert(datagram, fragment, 0);
            }

            #[inline(always)]
            fn emit(&self, key: &$key, entry: &FlowEntry) {
                $emit(key, entry);
            }
        }

        impl Aside for Packet<$key> {
            #[inline(always)]
            fn aside() -> Option<&'static mut Self> {
                // SAFETY: this CPU's own element, and XDP programs of one CPU do not interrupt each other; no caller holds
                // two of these at a time.
                maps::$aside.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
            }
        }

        #[inline(never)]
        fn $emit(key: &$key, entry: &FlowEntry) -> u32 {
            // SAFETY: a helper call without arguments.
            let cpu = unsafe { bpf_get_smp_processor_id() };
            let Some(ring) = maps::EVENTS.get(cpu) else { return 0 };
            let Some(mut event) = ring.reserve_untyped::<$event>(0) else { return 0 };
            event.write($event { key: *key, entry: *entry });
            event.submit(0);
            1
        }
    )*};
}
flows! {
    FlowKeyV4, EventV4, FLOWS, PENDING, FRAGMENTS, emit_v4, ASIDE;
    FlowKeyV6, EventV6, FLOWS_V6, PENDING_V6, FRAGMENTS_V6, emit_v6, ASIDE_V6;
}
