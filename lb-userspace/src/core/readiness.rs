//! When this member may own new flows: when it knows what the others know (law 7).

use std::time::Duration;

use super::{Core, event::Event, link::Stage};

/// Without a ready peer for this long the cluster starts cold.
const COLD_START: Duration = Duration::from_secs(1);
/// After this long without the records of a ready peer that lives, somebody should know.
const PATIENCE: Duration = Duration::from_secs(10);

impl Core {
    /// Becomes ready when all that can be known is known.
    ///
    /// The own map has been swept, and every connected ready peer has sent all its records, one of them at least. If no
    /// ready peer lives after a second, every connected peer counts, and none needs to be: joiners merge and are ready.
    pub(crate) fn consider_readiness(&mut self, now: u64) {
        if self.ready || !self.has_swept || self.stopping.is_some() {
            return;
        }
        let waited = now.saturating_sub(self.started);
        let ready_peer = self.peers.keys().copied().find(|&id| self.is_peer_ready(id));
        if ready_peer.is_none() && !self.peers.is_empty() && waited < COLD_START.as_nanos() as u64 {
            return;
        }
        let open = || self.links.values().filter(|link| link.stage == Stage::Open);
        let mut awaited = open().filter(|link| ready_peer.is_none() || self.is_peer_ready(link.peer));
        let is_complete = awaited.all(|link| link.is_synchronized);
        let peers = open().filter(|link| link.is_synchronized && self.is_peer_ready(link.peer)).count();
        if is_complete && (ready_peer.is_none() || peers > 0) {
            self.ready = true;
            let records = self.live();
            self.report(Event::Ready { records, peers });
        } else if let Some(id) = ready_peer
            && waited >= PATIENCE.as_nanos() as u64
            && !self.has_complained
        {
            self.has_complained = true;
            let peer = self.label(id);
            self.report(Event::NotReady { peer });
        }
    }

    fn is_peer_ready(&self, id: u8) -> bool {
        let said_so = |link: &super::link::Link| link.stage == Stage::Open && link.peer == id && link.said_ready;
        self.watch.is_ready(id) || self.watch.is_agent_alive(id) && self.links.values().any(said_so)
    }
}
