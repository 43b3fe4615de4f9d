//! A configuration takes effect: peers, slots, and what the tables shall hold.

use lb_common::{
    abi::SCHEMA,
    address::is_mapped,
    node::{NODE_FIRST_PACKET, Node, Source, V4, V6},
    rank::{Seed, seed},
};
use zerocopy::FromZeros;

use super::{Core, Output, Tables, View, event::Event};

impl Core {
    /// A new configuration of the same member.
    pub(crate) fn configure(&mut self, now: u64, view: View) {
        if view.me != self.view.me {
            self.report(Event::OtherMember { me: self.view.me, other: view.me });
            return;
        }
        if view.configured() != self.view.configured() {
            self.membership_since = now;
        }
        self.view = view;
        self.watch.configure(&self.view);
        self.apply_view(now);
        self.unpark(now);
        self.announce(now, false);
    }

    pub(crate) fn apply_view(&mut self, now: u64) {
        self.configure_peers(now);
        let backends = self.slots.configure(now, &self.view.services);
        if backends > 0 {
            self.report(Event::SlotsExhausted { backends });
        }
        self.install();
    }

    /// Asks for the tables as they shall be now.
    pub(crate) fn install(&mut self) {
        self.node = self.make_node();
        let mut tables = Tables::empty();
        tables.node = self.node;
        tables.members = self.view.members.iter().map(|member| (member.id, member.address)).collect();
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
        if let Some(own) = view.member(view.me).map(|member| member.address) {
            let family = if is_mapped(&own) { V4 } else { V6 };
            node.addresses[family] = own;
            node.delivery_sources[family] = Source { address: own, spread: [0; 4] };
            node.hand_off_sources[family] = node.delivery_sources[family];
        }
        node.configured = view.configured();
        node.silence_ns = self.patience();
        for (place, member) in node.seeds.iter_mut().zip(&view.members) {
            *place = Seed { seed: seed(member.id), id: u64::from(member.id) };
        }
        node.members = view.members.len() as u32;
        node.incarnation = self.incarnation;
        node.port = view.port.to_be_bytes();
        node.id = view.me;
        node.flags = if view.first_packet { NODE_FIRST_PACKET } else { 0 };
        node
    }
}
