//! Floods: packets from random sources, as fast as the balancers take them off their links.
//!
//! A link that is full is given time to drain. Without that the flood would fill each place that comes free, and every
//! other sender would lose most of its packets in front of the balancer, whatever the balancer does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::raw::{BATCH, EMPTY, Link, Packet};
use crate::{netns::Namespace, topology::Host};

/// In this time a balancer empties a full link.
const DRAINING: Duration = Duration::from_micros(500);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYNs, each from another source.
    Syn,
    /// A SYN and the ACK that its handshake would end with, from a source that never saw the SYN-ACK.
    Handshake,
    /// Datagrams, each from another source.
    Udp,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames that the links took.
    pub packets: u64,
    /// Frames that a full link refused.
    pub refused: u64,
    /// For how long.
    pub seconds: f64,
}

/// A flood that goes on until it is finished or dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<io::Result<Sent>>>,
}

impl Flood {
    /// Begins to send to the VIP on the router's links to `balancers` in turn.
    pub fn start(router: &Arc<Namespace>, balancers: &[Host], kind: Kind) -> Result<Self> {
        let links = balancers.iter().map(|host| Link::new(router, host)).collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = router.thread("flood", move || send(&links, kind, &flag))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(Ok(sent)) = self.thread.take().map(thread::JoinHandle::join) else {
            bail!("the flood's thread panicked")
        };
        sent.context("sending a flood")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(links: &[Link], kind: Kind, stop: &AtomicBool) -> io::Result<Sent> {
    let began = Instant::now();
    let (mut tuple, mut packets, mut refused) = (0_u32, 0, 0);
    let mut frames = [EMPTY; BATCH];
    for link in links.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (place, frame) in frames.iter_mut().enumerate() {
            let is_second = kind == Kind::Handshake && place % 2 == 1;
            if !is_second {
                // Odd: 2^32 tuples before one comes again, in no order that would suit a table.
                tuple = tuple.wrapping_add(0x9e37_79b1);
            }
            let packet = match kind {
                Kind::Syn => Packet::Syn,
                Kind::Handshake if is_second => Packet::Ack,
                Kind::Handshake => Packet::Syn,
                Kind::Udp => Packet::Datagram,
            };
            link.compose(frame, packet, tuple);
        }
        let taken = link.send(&mut frames)?;
        packets += taken;
        if taken < BATCH as u64 {
            refused += BATCH as u64 - taken;
            thread::sleep(DRAINING);
        }
    }
    Ok(Sent { packets, refused, seconds: began.elapsed().as_secs_f64() })
}
