//! A load of TCP connections: many long-lived ones, and short ones opened all the time.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    connection::Connection,
    record::{Fault, Kind, Record},
    service::TCP_PORT,
    wire::{DIGEST, ECHO, PAYLOAD_MAX},
};
use crate::{interrupt, netns::Namespace, topology::VIP};

/// Requests that all chatty connections together make in a second; more of them, then each less often.
const CHATTER_PER_SECOND: usize = 2000;
/// Bytes that all uploading connections together send in a second.
const UPLOAD_PER_SECOND: usize = 16 << 20;
/// The pace at which the connections are opened.
const OPENING_INTERVAL: Duration = Duration::from_millis(2);
/// Bytes of the requests that only show that a connection works.
const WORD: usize = 64;

/// How many connections of each kind, and how they behave.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The service.
    pub target: SocketAddr,
    /// Connections with small requests at an interval.
    pub chatty: usize,
    /// Connections that are silent until woken.
    pub idle: usize,
    /// Connections that upload full-size segments.
    pub uploading: usize,
    /// Short connections opened per second, all the time.
    pub shorts_per_second: u32,
    /// Without an answer for this long a connection counts as broken.
    pub patience: Duration,
}

impl Plan {
    /// `connections` to the lab's service, a fifth of them idle and a fifth uploading.
    pub fn mixed(connections: usize) -> Self {
        let (idle, uploading) = (connections / 5, connections / 5);
        Self { chatty: connections - idle - uploading, idle, uploading, ..Self::quiet() }
    }

    /// No connections at all; a base for plans that name their own.
    pub fn quiet() -> Self {
        Self {
            target: SocketAddr::from((VIP, TCP_PORT)),
            chatty: 0,
            idle: 0,
            uploading: 0,
            shorts_per_second: 0,
            patience: Duration::from_secs(10),
        }
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let of = |kind, count| std::iter::repeat_n(kind, count);
        of(Kind::Chatty, self.chatty).chain(of(Kind::Idle, self.idle)).chain(of(Kind::Uploading, self.uploading))
    }

    fn chat_interval(&self) -> Duration {
        Duration::from_secs_f64(self.chatty as f64 / CHATTER_PER_SECOND as f64).max(Duration::from_millis(50))
    }

    fn upload_interval(&self) -> Duration {
        Duration::from_secs_f64((self.uploading * PAYLOAD_MAX) as f64 / UPLOAD_PER_SECOND as f64)
    }
}

/// Everything known of a load's connections.
#[derive(Debug)]
pub struct Ledger {
    long: Vec<Arc<Record>>,
    shorts: Mutex<Shorts>,
}

/// The short connections so far.
#[derive(Clone, Debug, Default)]
pub struct Shorts {
    /// Begun and not yet over, by id.
    pub open: BTreeMap<u64, Arc<Record>>,
    /// Over, and all was right.
    pub done: u64,
    /// Not connected within the load's patience.
    pub handshakes_failed: u64,
    /// Connected, then broken.
    pub broken: Vec<Arc<Record>>,
    /// The longest handshake that succeeded.
    pub slowest_handshake: Duration,
}

impl Ledger {
    /// The long-lived connections.
    pub fn long(&self) -> &[Arc<Record>] {
        &self.long
    }

    /// A copy of what is known of the short ones.
    pub fn shorts(&self) -> Shorts {
        self.shorts_mut().clone()
    }

    /// Every connection that is broken.
    pub fn broken(&self) -> Vec<Arc<Record>> {
        let long = self.long.iter().filter(|record| record.facts().fault.is_some()).cloned();
        long.chain(self.shorts_mut().broken.iter().cloned()).collect()
    }

    /// The longest wait of any long-lived connection.
    pub fn longest_wait(&self) -> Duration {
        self.long.iter().map(|record| record.facts().longest_wait).max().unwrap_or_default()
    }

    fn shorts_mut(&self) -> MutexGuard<'_, Shorts> {
        self.shorts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    wakes: u32,
    finish: bool,
}

/// A running load; dropped, it breaks off.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Ledger>,
    orders: Option<watch::Sender<Orders>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    /// Begins to open the plan's connections from `client`.
    pub fn start(client: &Arc<Namespace>, plan: Plan) -> Result<Self> {
        let long = (1..).zip(plan.kinds()).map(|(id, kind)| Arc::new(Record::new(id, kind))).collect();
        let ledger = Arc::new(Ledger { long, shorts: Mutex::default() });
        let (orders, receiver) = watch::channel(Orders::default());
        let shared = Arc::clone(&ledger);
        let thread = client.thread("client", move || drive(&plan, &shared, &receiver))?;
        Ok(Self { ledger, orders: Some(orders), thread: Some(thread) })
    }

    /// The records of all connections.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Waits until every long-lived connection has had its first answer.
    ///
    /// # Errors
    /// When one broke before that, or `limit` passed.
    pub fn wait_open(&self, limit: Duration) -> Result<()> {
        let open = |record: &Arc<Record>| record.facts().exchanges > 0;
        interrupt::wait_until(limit, Duration::from_millis(10), || {
            self.ledger.long.iter().all(|record| open(record) || record.facts().fault.is_some())
        })?;
        let (all, not_open) = (self.ledger.long.len(), self.ledger.long.iter().filter(|record| !open(record)).count());
        if not_open > 0 {
            let fault = self.ledger.broken().first().and_then(|record| record.facts().fault);
            let why = fault.map_or("no answer yet".to_owned(), |(fault, _)| fault.to_string());
            bail!("{not_open} of {all} connections did not open ({why})");
        }
        Ok(())
    }

    /// Has every idle connection make a request now.
    pub fn wake_idle(&self) {
        self.order(|orders| orders.wakes += 1);
    }

    /// Has every connection prove once more that it works, closes them all, and returns the records.
    pub fn finish(mut self) -> Arc<Ledger> {
        self.order(|orders| orders.finish = true);
        self.join();
        Arc::clone(&self.ledger)
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        if let Some(orders) = &self.orders {
            orders.send_modify(change);
        }
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the client's thread panicked");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.orders.take());
        self.join();
    }
}

fn drive(plan: &Plan, ledger: &Arc<Ledger>, orders: &watch::Receiver<Orders>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime needs only an epoll descriptor");
    let mut abandoned = orders.clone();
    runtime.block_on(async {
        tokio::select! {
            () = run_all(plan, ledger, orders) => {}
            () = async { while abandoned.changed().await.is_ok() {} } => {}
        }
    });
}

async fn run_all(plan: &Plan, ledger: &Arc<Ledger>, orders: &watch::Receiver<Orders>) {
    let mut tasks = JoinSet::new();
    for (place, record) in ledger.long.iter().enumerate() {
        let (plan, record, orders) = (*plan, Arc::clone(record), orders.clone());
        tasks.spawn(async move {
            sleep(OPENING_INTERVAL * place as u32).await;
            if let Err(fault) = live(&plan, &record, orders).await {
                record.failed(fault);
            }
        });
    }
    if plan.shorts_per_second > 0 {
        tasks.spawn(open_shorts(*plan, Arc::clone(ledger), orders.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// A long-lived connection from its handshake to its last word.
async fn live(plan: &Plan, record: &Arc<Record>, mut orders: watch::Receiver<Orders>) -> Result<(), Fault> {
    let mut connection = Connection::open(plan.target, Arc::clone(record), plan.patience).await?;
    connection.exchange(ECHO, WORD).await?;
    loop {
        let pause = match record.kind {
            Kind::Chatty => plan.chat_interval(),
            Kind::Uploading => plan.upload_interval(),
            Kind::Idle | Kind::Short => Duration::MAX,
        };
        tokio::select! {
            () = sleep(pause) => {}
            _ = orders.changed() => {}
        }
        if orders.borrow().finish {
            return connection.exchange(ECHO, WORD).await;
        }
        match record.kind {
            Kind::Uploading => connection.exchange(DIGEST, PAYLOAD_MAX).await?,
            Kind::Chatty | Kind::Idle | Kind::Short => connection.exchange(ECHO, WORD).await?,
        }
    }
}

async fn open_shorts(plan: Plan, ledger: Arc<Ledger>, orders: watch::Receiver<Orders>) {
    let mut tasks = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / plan.shorts_per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for id in (1 << 32).. {
        ticks.tick().await;
        if orders.borrow().finish {
            break;
        }
        while tasks.try_join_next().is_some() {}
        let record = Arc::new(Record::new(id, Kind::Short));
        ledger.shorts_mut().open.insert(id, Arc::clone(&record));
        let ledger = Arc::clone(&ledger);
        tasks.spawn(async move {
            let outcome = short(&plan, &record).await;
            settle(&ledger, record, outcome);
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn short(plan: &Plan, record: &Arc<Record>) -> Result<(), Fault> {
    let mut connection = Connection::open(plan.target, Arc::clone(record), plan.patience).await?;
    connection.exchange(ECHO, WORD).await
}

fn settle(ledger: &Ledger, record: Arc<Record>, outcome: Result<(), Fault>) {
    if let Err(fault) = outcome {
        record.failed(fault);
    }
    let mut shorts = ledger.shorts_mut();
    shorts.open.remove(&record.id);
    match outcome {
        Ok(()) => {
            shorts.done += 1;
            shorts.slowest_handshake = shorts.slowest_handshake.max(record.facts().handshake);
        }
        Err(Fault::Handshake) => shorts.handshakes_failed += 1,
        Err(_) => shorts.broken.push(record),
    }
}
