//! A configuration takes effect: peers, slots, and what the tables shall hold.

use lb_common::{
    abi::SCHEMA,
    address::is_mapped,
    node::{
        NODE_DIRECT, NODE_DROP_OTHER, NODE_DROP_OVERSIZED, NODE_FIRST_PACKET, NODE_PEER_PREFIXES, Node, Source, V4, V6,
    },
    rank::{Seed, seed},
};
use zerocopy::FromZeros;

use super::{Core, Output, Tables, View, event::Event, expiry::Timers};

impl Core {
    /// A new configuration of the same member.
    pub(crate) fn configure(&mut self, now: u64, view: View) {
        if view.me != self.view.me {
            self.report(Event::OtherMember { me: self.view.me, other: view.me });
            return;
        }
        let is_rekeyed = view.hash_key != self.view.hash_key;
        if view.configured() != self.view.configured() || is_rekeyed {
            self.membership_since = now;
        }
        self.view = view;
        if is_rekeyed {
            self.rekey(self.view.hash_key);
        }
        self.watch.configure(&self.view);
        self.place_backends();
        self.hold();
        self.apply_view(now);
        self.review_epochs(now);
        self.unpark(now);
        self.announce(now, false);
    }

    pub(crate) fn apply_view(&mut self, now: u64) {
        self.configure_peers(now);
        self.timers = Timers::new(&self.view);
        self.apply_services(now);
    }

    /// Asks for the tables as they shall be now.
    pub(crate) fn install(&mut self) {
        self.node = self.make_node();
        let mut tables = Tables::empty();
        tables.node = self.node;
        tables.members = self.view.members.iter().map(|member| (member.id, member.address)).collect();
        let others = self.view.members.iter().filter(|member| member.id != self.view.me);
        tables.peer_prefixes = others.filter_map(|member| Some((member.hand_off_source?, member.id))).collect();
        self.slots.fill(&mut tables);
        for own in self.node.addresses.iter().filter(|own| **own != [0; 16]) {
            tables.vip_filter.insert(own);
        }
        self.outputs.push_back(Output::Install(Box::new(tables)));
    }

    fn make_node(&self) -> Node {
        let view = &self.view;
        let mut node = Node::new_zeroed();
        node.schema = SCHEMA;
        node.hash_key = view.hash_key;
        if let Some(own) = view.member(view.me) {
            for address in [Some(own.address), own.second_address].into_iter().flatten() {
                let family = if is_mapped(&address) { V4 } else { V6 };
                node.addresses[family] = address;
                node.delivery_sources[family] = Source { address, spread: [0; 4] };
                node.hand_off_sources[family] = node.delivery_sources[family];
            }
            if let Some(prefix) = own.hand_off_source {
                node.hand_off_sources[if is_mapped(&prefix.address) { V4 } else { V6 }] = prefix.source();
            }
        }
        for (source, prefix) in node.delivery_sources.iter_mut().zip(view.delivery_sources) {
            *source = prefix.map_or(*source, |prefix| prefix.source());
        }
        node.configured = view.configured();
        node.silence_ns = self.patience();
        for (place, member) in node.seeds.iter_mut().zip(&view.members) {
            *place = Seed { seed: seed(member.id), id: u64::from(member.id) };
        }
        node.members = view.members.len() as u32;
        node.incarnation = self.incarnation;
        node.probe_nonce = self.watch.nonce();
        for member in &view.members {
            node.probe_keys[usize::from(member.id) - 1] = member.probe_keys;
        }
        node.port = view.port.to_be_bytes();
        node.id = view.me;
        let has_prefixes = view.members.iter().any(|member| member.id != view.me && member.hand_off_source.is_some());
        node.flags = [
            (view.first_packet, NODE_FIRST_PACKET),
            (view.direct, NODE_DIRECT),
            (view.drop_other, NODE_DROP_OTHER),
            (view.drop_oversized, NODE_DROP_OVERSIZED),
            (has_prefixes, NODE_PEER_PREFIXES),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(0, |flags, (_, flag)| flags | flag);
        node
    }
}
