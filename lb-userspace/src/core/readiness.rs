//! When this member may own new flows: when it knows what the others know (law 7).

use std::time::Duration;

use super::{
    Core,
    event::Event,
    link::{Introduction, Link, Stage},
};

/// Without a ready peer for this long the cluster starts cold.
const COLD_START: Duration = Duration::from_secs(1);
/// After this long without the records of a ready peer that lives, somebody should know.
const PATIENCE: Duration = Duration::from_secs(10);

impl Core {
    /// Becomes ready when all that can be known is known.
    ///
    /// The own map has been swept, every connected ready peer has sent all its records, one of them at least, and since
    /// then each bucket was once equal at one of them and here, or came whole: what was under way meanwhile is known, too. What a
    /// peer sent before it was ready does not count: it said so itself when it had become ready, and began anew. If no
    /// ready peer lives after a second, every connected peer counts, and none needs to be: joiners merge and are ready.
    pub(crate) fn consider_readiness(&mut self, now: u64) {
        if self.ready || !self.has_swept || self.stopping.is_some() {
            return;
        }
        let waited = now.saturating_sub(self.started);
        let ready_peer = self.peers.keys().copied().find(|&id| self.is_peer_ready(id));
        if ready_peer.is_none() && self.peers.iter().any(|(&id, p)| !p.was_synchronized && self.watch.holds_flows(id)) {
            // Its agent has died before it told all it knew. It may come back; until then the flows are delivered by its
            // datapath, and by whoever knows them.
            return;
        }
        if ready_peer.is_none() && !self.peers.is_empty() && waited < COLD_START.as_nanos() as u64 {
            return;
        }
        let open = || self.links.values().filter(|link| link.stage == Stage::Open);
        let mut awaited = open().filter(|link| ready_peer.is_none() || self.is_peer_ready(link.peer));
        let is_complete = awaited.all(|link| link.is_synchronized && (ready_peer.is_none() || link.said_ready));
        let knows_all = |link: &Link| !link.compares() || link.comparison.knows_all();
        let has_all =
            |link: &&Link| link.is_synchronized && link.said_ready && self.is_peer_ready(link.peer) && knows_all(link);
        let peers = open().filter(has_all).count();
        if is_complete && (ready_peer.is_none() || peers > 0) {
            (self.ready, self.ready_since) = (true, now);
            let records = self.live();
            self.report(Event::Ready { records, peers });
            self.vouch_for_records(now);
        } else if let Some(id) = ready_peer
            && waited >= PATIENCE.as_nanos() as u64
            && !self.has_complained
        {
            self.has_complained = true;
            let peer = self.label(id);
            self.report(Event::NotReady { peer });
        }
    }

    /// Tells the peers that from here on a snapshot is one of all records; those who wait for one get it anew.
    fn vouch_for_records(&mut self, now: u64) {
        self.greet_all_again();
        // The peer counts from the greeting on, so a snapshot that is under way begins anew in any case.
        let waits =
            |link: &Link| link.stage == Stage::Open && (link.introduction != Introduction::Over || !link.said_ready);
        self.links.values_mut().filter(|link| waits(link)).for_each(|link| link.introduce(now));
    }

    fn is_peer_ready(&self, id: u8) -> bool {
        let said_so = |link: &Link| link.stage == Stage::Open && link.peer == id && link.said_ready;
        self.watch.is_ready(id) || self.watch.is_agent_alive(id) && self.links.values().any(said_so)
    }
}
