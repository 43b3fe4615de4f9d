//! Paced UDP with sequence numbers: what is lost, doubled or out of order is counted.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdp},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{net::UdpSocket, task::JoinSet};

use super::service::UDP_PORT;
use crate::{netns::Namespace, topology::VIP};

/// The most datagrams sent at once by a sender that woke late: a veth ring holds 256.
const BURST_MAX: u64 = 32;
/// How long after the last datagram an answer may still come.
const GRACE: Duration = Duration::from_millis(500);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Flows (client ports) that the datagrams are spread over in turn.
    pub flows: usize,
    /// Datagrams per second, all flows together.
    pub per_second: u32,
    /// Payload bytes of each, at least 8.
    pub bytes: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams sent.
    pub sent: u64,
    /// Different datagrams that came back.
    pub received: u64,
    /// Datagrams that came back more than once, counted from the second time.
    pub doubled: u64,
    /// Datagrams that came back after a later one of the same flow.
    pub reordered: u64,
    /// Datagrams that came back with other bytes than they were sent with.
    pub wrong: u64,
}

impl Tally {
    /// Datagrams that did not come back.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A stream of datagrams that goes on until it is finished or dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<io::Result<Tally>>>,
}

impl Stream {
    /// Begins to send from `client` to the lab's service.
    pub fn start(client: &Arc<Namespace>, pace: Pace) -> Result<Self> {
        Self::start_to(client, VIP.into(), pace)
    }

    /// The same to a VIP of the test's choice.
    pub fn start_to(client: &Arc<Namespace>, vip: IpAddr, pace: Pace) -> Result<Self> {
        let sockets = client.within(|| open(vip, pace.flows)).context("cannot open the datagrams' sockets")?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = client.thread("datagrams", move || exchange(sockets, pace, &flag))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops sending, waits for the last answers, and counts.
    pub fn finish(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        let Some(Ok(tally)) = ended else { anyhow::bail!("the datagrams' thread panicked") };
        tally.context("sending datagrams")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn open(vip: IpAddr, flows: usize) -> io::Result<Vec<StdUdp>> {
    let any: IpAddr = if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let one = |_| {
        let socket = StdUdp::bind((any, 0))?;
        socket.connect(SocketAddr::from((vip, UDP_PORT)))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    (0..flows).map(one).collect()
}

/// What has come back on one flow.
#[derive(Default)]
struct Returned {
    seen: Vec<bool>,
    tally: Tally,
}

impl Returned {
    fn note(&mut self, sequence: usize) {
        if self.seen.len() <= sequence {
            self.seen.resize(sequence + 1, false);
        } else if self.seen[sequence] {
            self.tally.doubled += 1;
            return;
        } else {
            self.tally.reordered += 1;
        }
        self.seen[sequence] = true;
        self.tally.received += 1;
    }
}

fn exchange(sockets: Vec<StdUdp>, pace: Pace, stop: &AtomicBool) -> io::Result<Tally> {
    let senders = sockets.iter().map(StdUdp::try_clone).collect::<io::Result<Vec<_>>>()?;
    let total = Arc::new(Mutex::new(Tally::default()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sent = thread::scope(|scope| -> io::Result<u64> {
        let done = Arc::new(tokio::sync::Notify::new());
        let sender = scope.spawn({
            let done = Arc::clone(&done);
            move || {
                let sent = send_paced(&senders, pace, stop);
                done.notify_one();
                sent
            }
        });
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for socket in sockets {
                tasks.spawn(receive(UdpSocket::from_std(socket)?, pace.bytes, Arc::clone(&total)));
            }
            done.notified().await;
            tokio::time::sleep(GRACE).await;
            io::Result::Ok(())
        })?;
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    drop(runtime);
    let tally = *total.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Tally { sent, ..tally })
}

fn send_paced(sockets: &[StdUdp], pace: Pace, stop: &AtomicBool) -> io::Result<u64> {
    let period = Duration::from_secs(1) / pace.per_second;
    let mut start = Instant::now();
    let mut sent = 0_u64;
    let mut begun = 0_u64;
    let mut payload = vec![0; pace.bytes];
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_nanos() / period.as_nanos()) as u64;
        if due - begun > BURST_MAX {
            // Late by too much to catch up without a burst: the schedule moves instead.
            start += period * (due - begun - BURST_MAX) as u32;
            continue;
        }
        while begun < due {
            let flow = (sent % sockets.len() as u64) as usize;
            compose(sent / sockets.len() as u64, &mut payload);
            match sockets[flow].send(&payload) {
                Ok(_) => sent += 1,
                // A local queue is full: this one was never sent.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            begun += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    Ok(sent)
}

fn compose(sequence: u64, payload: &mut [u8]) {
    payload[..8].copy_from_slice(&sequence.to_be_bytes());
    for (place, byte) in payload[8..].iter_mut().enumerate() {
        *byte = (sequence as u8).wrapping_add(place as u8);
    }
}

async fn receive(socket: UdpSocket, bytes: usize, total: Arc<Mutex<Tally>>) {
    let mut returned = Returned::default();
    let mut datagram = vec![0; bytes + 1];
    let mut expected = vec![0; bytes];
    loop {
        // An ICMP error for an earlier datagram is told by its loss.
        let Ok(length) = socket.recv(&mut datagram).await else { continue };
        let before = returned.tally;
        let sequence = u64::from_be_bytes(std::array::from_fn(|i| datagram[i]));
        compose(sequence, &mut expected);
        if length == bytes && datagram[..bytes] == expected {
            returned.note(sequence as usize);
        } else {
            returned.tally.wrong += 1;
        }
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.received += returned.tally.received - before.received;
        total.doubled += returned.tally.doubled - before.doubled;
        total.reordered += returned.tally.reordered - before.reordered;
        total.wrong += returned.tally.wrong - before.wrong;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_doubled_datagrams_are_told_apart() {
        let mut returned = Returned::default();
        for sequence in [0, 1, 3, 2, 3, 4] {
            returned.note(sequence);
        }
        let expected = Tally { received: 5, reordered: 1, doubled: 1, ..Tally::default() };
        assert_eq!(returned.tally, expected);
    }
}
