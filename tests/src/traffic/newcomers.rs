//! New flows at an even rate, and how soon those know them who must.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::{
    flow::{FlowKeyV4, STATE_ESTABLISHED},
    node::Node,
};

use super::raw::{EMPTY, Link, Packet, tcp_key};
use crate::{
    cluster::Cluster,
    interrupt,
    tables::{Flows, ranking},
};

/// How often the owners' tables are looked at: a small part of what is measured.
const INTERVAL: Duration = Duration::from_micros(50);
/// Of so many flows one is watched: the machine has other work than to look at all of them.
const WATCHED: u32 = 10;
/// Flows opened at a time at most: what a queue on their way certainly holds.
const BURST: u32 = 16;
/// A flow that its owners do not know after that is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// What became of the flows.
#[derive(Clone, Debug)]
pub struct Known {
    /// From the third packet to the record on both owners, shortest first; of those that were watched.
    pub took: Vec<Duration>,
    /// Watched flows that an owner did not know in the end.
    pub lost: u64,
    /// From the first flow to the last.
    pub opened_in: Duration,
}

/// Opens `count` flows, `rate` a second, each with a SYN, the ACK that ends its handshake and one packet more, on the links to
/// all members in turn; waits until the owners of those that are watched have a record of them.
pub fn open(cluster: &Cluster, count: u32, rate: u32) -> Result<Known> {
    let router = &cluster.topology.router;
    let links = cluster.members.iter().map(|member| Link::new(router, &member.host)).collect::<Result<Vec<_>>>()?;
    let owners = Owners {
        node: cluster.members.first().context("a cluster without members")?.tables().node()?,
        tables: cluster
            .members
            .iter()
            .map(|member| Ok((member.id, member.tables().flows()?)))
            .collect::<Result<_>>()?,
    };
    let (mut known, mut waiting) = (Known { took: Vec::new(), lost: 0, opened_in: Duration::ZERO }, VecDeque::new());
    let (mut opened, mut links) = (0, links.iter().cycle());
    let began = Instant::now();
    while opened < count || !waiting.is_empty() {
        interrupt::check()?;
        let due = count.min((began.elapsed().as_secs_f64() * f64::from(rate)) as u32);
        if let (true, Some(link)) = (opened < due, links.next()) {
            let until = due.min(opened + BURST);
            let since = shake_hands(link, opened..until).context("sending new flows")?;
            for key in (opened..until).filter(|flow| flow % WATCHED == 0).map(tuple).map(tcp_key) {
                waiting.push_back(Waiting { owners: owners.of(&key)?, key, since });
            }
            opened = until;
            known.opened_in = began.elapsed();
        }
        waiting.retain(|flow| match (owners.know(flow), flow.since.elapsed()) {
            (true, took) => {
                known.took.push(took);
                false
            }
            (false, took) if took > PATIENCE => {
                known.lost += 1;
                false
            }
            (false, _) => true,
        });
        std::thread::sleep(INTERVAL);
    }
    known.took.sort_unstable();
    Ok(known)
}

impl Known {
    /// What that share of the flows did not exceed.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let place = (self.took.len() as f64 * share).ceil() as usize;
        self.took.get(place.max(1) - 1).copied()
    }
}

/// A flow whose owners have not yet been seen to know it.
struct Waiting {
    key: FlowKeyV4,
    /// Positions in `Owners::tables`.
    owners: [usize; 2],
    since: Instant,
}

struct Owners {
    node: Node,
    /// By member id.
    tables: Vec<(u8, Flows)>,
}

impl Owners {
    fn of(&self, key: &FlowKeyV4) -> Result<[usize; 2]> {
        let ranked = ranking(&self.node, key);
        ensure!(ranked.len() > 1, "a flow has two owners in a cluster of two at least");
        let place = |id| self.tables.iter().position(|(of, _)| *of == id).context("an owner that is no member");
        Ok([place(ranked[0])?, place(ranked[1])?])
    }

    fn know(&self, flow: &Waiting) -> bool {
        flow.owners.iter().all(|&owner| {
            let entry = self.tables[owner].1.get(&flow.key, 0);
            entry.is_ok_and(|entry| entry.state == STATE_ESTABLISHED)
        })
    }
}

/// A number whose source no other flow has.
fn tuple(flow: u32) -> u32 {
    // Odd, so all are different; in no order that would suit a table.
    flow.wrapping_mul(0x9e37_79b1)
}

/// All three packets of these flows, round by round; answers when the third ones were sent.
fn shake_hands(link: &Link, flows: std::ops::Range<u32>) -> io::Result<Instant> {
    let mut sent_at = Instant::now();
    for packet in [Packet::Syn, Packet::Ack, Packet::Ack] {
        let mut frames = [EMPTY; BURST as usize];
        let frames = &mut frames[..flows.len()];
        for (frame, flow) in frames.iter_mut().zip(flows.clone()) {
            link.compose(frame, packet, tuple(flow));
        }
        sent_at = Instant::now();
        link.send(frames)?;
    }
    Ok(sent_at)
}
