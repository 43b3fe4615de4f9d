//! How long a change takes to a peer that owns it, while a snapshot is under way and while none is.
//!
//! Two agents' cores on their real connections, TLS over loopback, each on a thread of its own with a loop like the agent's; what the receiver
//! wants written goes into a real flow map, and then the change has arrived.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::flow::FlowKeyV4;
use lb_userspace::{
    core::{Adopted, Core, Input, Key, Output},
    identity::MemberKey,
    io::{
        clock::{Alarm, now_ns},
        flows::FlowTable,
        handshake::Trust,
        sessions::Sessions,
    },
};
use tokio::{
    runtime,
    time::{Interval, interval},
};

use super::cluster::{self, FLOWS};

const PORT: u16 = 17_499;
/// Between two changes.
const PACE: Duration = Duration::from_millis(1);
/// How long changes are measured for without a snapshot.
const QUIET: Duration = Duration::from_secs(3);
/// The longest a snapshot, or a start, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// As the agent's loop has it.
const REPORTS: usize = 16;
const RECEIVED_BYTES: usize = 64 << 10;

/// Microseconds, sorted, from the sender's observation of a flow to the receiver's map.
pub(super) struct Delays {
    /// While a snapshot is under way.
    pub(super) busy: Vec<f64>,
    /// While none is.
    pub(super) quiet: Vec<f64>,
}

/// An agent's core with its connections.
struct Agent {
    core: Core,
    sessions: Sessions,
    alarm: Alarm,
}

/// Measures both, with all flows to be told to a joiner.
pub(super) fn measure() -> Result<Delays> {
    let (arrived, arrivals) = mpsc::channel();
    let (is_full, is_over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (begin, begun) = mpsc::channel();
    let receiver = {
        let (is_full, is_over) = (Arc::clone(&is_full), Arc::clone(&is_over));
        thread::spawn(move || {
            // The sender has its flows by then.
            if begun.recv().is_err() {
                return Ok(());
            }
            runtime()?.block_on(receive(&arrived, &is_full, &is_over))
        })
    };
    let sent = runtime()?.block_on(send(&begin, &is_full));
    is_over.store(true, Ordering::Relaxed);
    drop(begin);
    receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let (sent, full_at) = sent?;
    let mut arrived = BTreeMap::new();
    for (n, at) in arrivals {
        // The snapshot comes to these flows at its end, and tells of them again.
        arrived.entry(n).or_insert(at);
    }
    let mut delays = Delays { busy: Vec::new(), quiet: Vec::new() };
    for (n, at) in sent {
        let Some(arrived) = arrived.get(&n).copied() else { continue };
        let delay = arrived.duration_since(at).as_secs_f64() * 1e6;
        if arrived < full_at { &mut delays.busy } else { &mut delays.quiet }.push(delay);
    }
    for delays in [&mut delays.busy, &mut delays.quiet] {
        ensure!(delays.len() >= 100, "only {} changes arrived", delays.len());
        delays.sort_by(f64::total_cmp);
    }
    Ok(delays)
}

/// The value that `permille` of the delays are not above.
pub(super) fn quantile(delays: &[f64], permille: usize) -> f64 {
    let at = (delays.len() * permille).div_ceil(1000).saturating_sub(1);
    delays.get(at).copied().unwrap_or_default()
}

/// Tells of flow after flow, and returns when it observed each, and when the joiner had all.
async fn send(begin: &mpsc::Sender<()>, is_full: &AtomicBool) -> Result<(Vec<(u32, Instant)>, Instant)> {
    let mut agent = Agent::start(1)?;
    let deadline = Instant::now() + PATIENCE;
    while !agent.core.status().ready {
        ensure!(Instant::now() < deadline, "the sender is not ready");
        agent.step(None, &mut |_, _| Ok(())).await?;
    }
    for n in 0..FLOWS {
        let now = now_ns();
        let (key, entry) = cluster::flow(n, now);
        agent.core.handle(now, Input::Observed { key: key.into(), entry });
        while agent.core.poll_output().is_some() {}
    }
    begin.send(()).context("the receiver is gone")?;
    let (mut sent, mut full_at) = (Vec::new(), None);
    let mut pace = interval(PACE);
    while full_at.is_none_or(|at: Instant| at.elapsed() < QUIET) {
        ensure!(Instant::now() < deadline, "the joiner does not come to hold all");
        if full_at.is_none() && is_full.load(Ordering::Relaxed) {
            full_at = Some(Instant::now());
        }
        let is_due = agent.step(Some(&mut pace), &mut |_, _| Ok(())).await?;
        if is_due && agent.core.status().peers.iter().any(|peer| peer.connected) {
            let (n, now) = (FLOWS + sent.len() as u32, now_ns());
            sent.push((n, Instant::now()));
            let (key, entry) = cluster::flow(n, now);
            agent.core.handle(now, Input::Observed { key: key.into(), entry });
        }
    }
    // What is under way arrives.
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        agent.step(Some(&mut pace), &mut |_, _| Ok(())).await?;
    }
    Ok((sent, full_at.context("no end")?))
}

async fn receive(arrived: &mpsc::Sender<(u32, Instant)>, is_full: &AtomicBool, is_over: &AtomicBool) -> Result<()> {
    let mut map: FlowTable<FlowKeyV4> = cluster::map()?;
    let mut agent = Agent::start(2)?;
    let mut written = 0_u32;
    let mut pace = interval(PACE);
    let mut put = |key: &FlowKeyV4, output: &Output| {
        if let Output::PutFlow { entry, mode, .. } = output {
            map.put(key, *entry, *mode).context("cannot write the flow map")?;
            let n = u32::from_be_bytes(key.source);
            if n >= FLOWS {
                let _gone = arrived.send((n, Instant::now()));
            } else {
                written += 1;
                if written == FLOWS {
                    is_full.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    };
    while !is_over.load(Ordering::Relaxed) {
        agent.step(Some(&mut pace), &mut put).await?;
    }
    Ok(())
}

fn runtime() -> Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
}

impl Agent {
    fn start(id: u8) -> Result<Self> {
        let address = |id: u8| IpAddr::V4(Ipv4Addr::new(127, 0, 9, id));
        let key = |id: u8| MemberKey::from_seed(&[id; 32]);
        let mut sessions = Sessions::listen(address(id), PORT).context("cannot listen on loopback")?;
        sessions.set_members([1, 2].map(|id| (id, address(id))).into());
        let peers = [1, 2].map(|id| (id, vec![key(id).public()])).into();
        sessions.trust(&Trust { own: Some(key(id)), peers }).context("keys")?;
        let now = now_ns();
        let mut core = Core::new(now, cluster::view(id), 1, u64::from(id), &Adopted::default());
        core.handle(now, Input::Swept);
        Ok(Self { core, sessions, alarm: Alarm::new()? })
    }

    /// Does what is to be done, then waits for the next thing to happen; whether that was `pace`.
    async fn step(
        &mut self,
        pace: Option<&mut Interval>,
        put: &mut impl FnMut(&FlowKeyV4, &Output) -> Result<()>,
    ) -> Result<bool> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Dial { peer } => self.sessions.dial(peer),
                Output::Send { session, bytes } => self.sessions.send(session, bytes),
                Output::Defer { session } => self.sessions.defer(session),
                Output::Close { session } => self.sessions.close(session),
                Output::PutFlow { key: Key::V4(key), .. } => put(&key, &output)?,
                _ => {}
            }
        }
        let due = self.core.next_deadline();
        if due.is_some_and(|due| due <= now_ns()) {
            self.core.handle(now_ns(), Input::Tick);
            return Ok(false);
        }
        self.alarm.set(due)?;
        let beat = async {
            match pace {
                Some(pace) => pace.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = beat => return Ok(true),
            rung = self.alarm.ring() => rung?,
            input = self.sessions.next() => {
                let mut bytes = received(&input);
                self.core.handle(now_ns(), input);
                for _ in 0..REPORTS {
                    if bytes >= RECEIVED_BYTES {
                        break;
                    }
                    let Some(input) = self.sessions.try_next() else { break };
                    bytes += received(&input);
                    self.core.handle(now_ns(), input);
                }
            }
        }
        Ok(false)
    }
}

fn received(input: &Input) -> usize {
    if let Input::Received { bytes, .. } = input { bytes.len() } else { 0 }
}
