//! Health checks: a thread of its own asks every backend, and reports what has come of it.
//!
//! Each backend of each VIP is a task that asks, judges, and rests. A task whose check stays the same through a reload goes
//! on; the others end and begin anew. Results that nobody takes in make the tasks wait, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use lb_common::{address::Address, hash::mix, service::ServiceKey};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use self::judge::{Judge, Verdict};
use crate::{
    config::{self, CheckPath, Config, Health},
    identity,
};

mod ask;
mod judge;
mod tunnel;

pub use self::{
    ask::Failure,
    tunnel::{Sources, Tunnel},
};

/// Results under way.
const RESULTS: usize = 256;

/// One backend of one VIP, and how it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The VIP.
    pub service: ServiceKey,
    /// Where its packets are sent.
    pub backend: Address,
    /// For people: the service and the backend.
    pub name: String,
    /// How.
    pub health: Health,
    /// For a check through the tunnel.
    pub sources: Option<Sources>,
}

/// The checks of a backend have come to another result than before.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The VIP.
    pub service: ServiceKey,
    /// The backend.
    pub backend: Address,
    /// Whether it answers as it should.
    pub is_up: bool,
}

/// The running checks; dropped, they end.
#[derive(Debug)]
pub struct Checks {
    subjects: watch::Sender<Arc<Vec<Subject>>>,
    results: mpsc::Receiver<Checked>,
}

impl Checks {
    /// Starts the thread, with nothing to check.
    ///
    /// # Errors
    /// Without a thread, a runtime, or random numbers.
    pub fn start(tunnel: Tunnel) -> io::Result<Self> {
        let (subjects, orders) = watch::channel(Arc::default());
        let (found, results) = mpsc::channel(RESULTS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seed = identity::nonce()?;
        thread::Builder::new()
            .name("checks".into())
            .spawn(move || runtime.block_on(tend(orders, found, tunnel, seed)))?;
        Ok(Self { subjects, results })
    }

    /// Checks these, and nothing else.
    pub fn follow(&self, subjects: Vec<Subject>) {
        self.subjects.send_replace(Arc::new(subjects));
    }

    /// The next result. Cancel-safe.
    pub async fn next(&mut self) -> Option<Checked> {
        self.results.recv().await
    }
}

/// What `config` wants checked.
pub fn subjects(config: &Config) -> Vec<Subject> {
    let own = config.this_member();
    let is_of = |address: &IpAddr, other: IpAddr| address.is_ipv4() == other.is_ipv4();
    let inner = |vip| [Some(own.address), own.second_address].into_iter().flatten().find(|own| is_of(own, vip));
    let outer = |backend| {
        let prefix = config.cluster.delivery_source.iter().map(|prefix| prefix.address).find(|at| is_of(at, backend));
        prefix.or_else(|| inner(backend))
    };
    let mut subjects = Vec::new();
    for service in &config.services {
        let Some(health) = &service.health else { continue };
        for vip in &service.vips {
            subjects.extend(service.backends.iter().map(|backend| {
                Subject {
                    service: vip.key(),
                    backend: config::address(backend.address),
                    name: format!("{} {vip} {}", service.name, backend.name),
                    health: health.clone(),
                    sources: outer(backend.address)
                        .filter(|_| health.to == CheckPath::Vip)
                        .map(|outer| Sources { inner: inner(vip.address), outer: config::address(outer) }),
                }
            }));
        }
    }
    subjects
}

impl Subject {
    /// Where it is asked.
    fn target(&self) -> SocketAddr {
        let address = match self.health.to {
            CheckPath::Vip => self.service.address,
            CheckPath::Backend => self.backend,
        };
        let port = self.health.port.unwrap_or_else(|| u16::from_be_bytes(self.service.port));
        SocketAddr::new(config::ip(address), port)
    }

    /// The server that is asked.
    fn server(&self) -> IpAddr {
        config::ip(self.backend)
    }
}

/// Has a task for each subject, until nobody wants results any more.
async fn tend(
    mut orders: watch::Receiver<Arc<Vec<Subject>>>,
    found: mpsc::Sender<Checked>,
    tunnel: Tunnel,
    mut seed: u64,
) {
    let mut tasks: BTreeMap<(ServiceKey, Address), (Subject, AbortHandle)> = BTreeMap::new();
    loop {
        let wanted = Arc::clone(&orders.borrow_and_update());
        let keys: BTreeSet<_> = wanted.iter().map(|subject| (subject.service, subject.backend)).collect();
        tasks.retain(|key, (_, task)| {
            let stays = keys.contains(key);
            if !stays {
                task.abort();
            }
            stays
        });
        for subject in wanted.iter() {
            let key = (subject.service, subject.backend);
            if tasks.get(&key).is_some_and(|(running, _)| running == subject) {
                continue;
            }
            seed = mix(seed.wrapping_add(1));
            let task = tokio::spawn(watch_over(subject.clone(), tunnel.clone(), found.clone(), seed)).abort_handle();
            if let Some((_, before)) = tasks.insert(key, (subject.clone(), task)) {
                before.abort();
            }
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

/// Asks at its interval, for ever.
async fn watch_over(subject: Subject, tunnel: Tunnel, found: mpsc::Sender<Checked>, mut seed: u64) {
    let health = &subject.health;
    let mut judge = Judge::new(health.rise, health.fall);
    // Spread, so that not all are asked in the same moment.
    let mut due = Instant::now() + random(&mut seed, health.interval.min(Duration::from_secs(1)));
    loop {
        sleep_until(due).await;
        due = Instant::now() + health.interval + random(&mut seed, health.jitter);
        let answer = ask::ask(&subject, &tunnel).await;
        let Some(verdict) = judge.hear(Instant::now().into_std(), answer.is_ok()) else { continue };
        let name = subject.name.as_str();
        match (&verdict, &answer) {
            (Verdict::Up { is_first: true }, _) => info!("{name}: answers its checks"),
            (Verdict::Up { .. }, _) => info!("{name}: answers its checks again"),
            (Verdict::Down, Err(failure)) => warn!("{name}: fails its checks: {failure}"),
            (Verdict::Down, Ok(())) => {}
        }
        let is_up = verdict != Verdict::Down;
        if found.send(Checked { service: subject.service, backend: subject.backend, is_up }).await.is_err() {
            return;
        }
    }
}

/// A duration below `most`.
fn random(seed: &mut u64, most: Duration) -> Duration {
    *seed = mix(seed.wrapping_add(1));
    most.mul_f64((*seed >> 11) as f64 / (1_u64 << 53) as f64)
}
