//! The router in front: equal-cost multipath over the members that it takes to be alive.

use std::collections::BTreeSet;

use lb_common::{flow::FlowKey as _, hash::mix};

use crate::{
    agenda::Happening,
    segment::{Role, Segment},
    time::{MS, Ns},
    world::World,
};

/// What the router does with packets to a VIP.
#[derive(Debug, Default)]
pub(crate) struct Router {
    usable: BTreeSet<u8>,
    salt: u64,
}

impl Router {
    /// The member that gets such packets now: those with one 5-tuple go one way.
    ///
    /// Later fragments go their own way, without ports to choose by, and an error goes its sender's.
    fn next_hop(&self, segment: &Segment) -> Option<u8> {
        let count = self.usable.len() as u64;
        let path = u64::from(segment.packet.key.tag()) ^ u64::from(segment.role == Role::Quote) << 32;
        let at = (mix(path ^ self.salt) >> 8).checked_rem(count)?;
        self.usable.iter().nth(at as usize).copied()
    }

    /// Every flow may go elsewhere from now on.
    pub(crate) fn reshuffle(&mut self, salt: u64) {
        self.salt = salt;
    }
}

impl World {
    /// A packet of a client or an attacker starts on its way.
    pub(crate) fn send_to_vip(&mut self, mut segment: Segment) {
        let Some(member) = self.router.next_hop(&segment) else { return };
        let at = self.network.carry_outside(self.now);
        segment.receiver = member;
        self.arrive(at, Happening::Packet { member, segment });
    }

    /// The router notices later what became of a member.
    pub(crate) fn tell_router(&mut self, member: u8, usable: bool, within: Ns) {
        let at = self.now + self.rng.between(MS, within.max(MS));
        self.agenda.plan(at, Happening::Route { member, usable });
    }

    /// The router notices; what is no longer true it does not.
    pub(crate) fn route(&mut self, member: u8, usable: bool) {
        let serves = self.hosts.get(&member).is_some_and(|host| host.serves());
        if usable && serves {
            self.router.usable.insert(member);
        } else if !usable && (!serves || !self.calm) {
            self.router.usable.remove(&member);
        }
    }
}
