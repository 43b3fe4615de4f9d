//! The agent: one loop between the core, which decides, and the edges in `io`, which act.
//!
//! Everything but look-ups that may block (`io::neighbours`, `io::sweep`) runs on one thread, so
//! nothing here waits for anything but the next thing to happen.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use rustix::process::setpriority_process;
use tracing::{error, info, warn};

use crate::{
    config::{Config, Names, OnStop},
    control::Control,
    core::{Core, Input, distribution::Proposal},
    identity,
    inspect::metrics::Source,
    io::{
        attach::Mode,
        checks,
        clock::{Alarm, now_ns},
        exporter,
        supervisor::{Supervisor, Word},
    },
};

mod edges;
mod fixed;
mod keeper;
mod orders;
mod signals;
mod view;

use edges::{Carried, Edges};
use keeper::{Keeper, Kept, Ready, TOO_MANY, Tried, Wish};
use signals::{Order, Signals};

/// Above everything ordinary: a probe that is late looks like a peer that is dead. The thread uses little.
const PRIORITY: i32 = -10;

/// How often the edges are looked after.
const UPKEEP_NS: u64 = 1_000_000_000;
/// How long a reload waits for the next hops of new targets; ARP on a LAN takes less than a millisecond.
const PATIENCE_NS: u64 = 300_000_000;

/// How long routers have to turn to the others, once VIPs are no longer announced, before this member stops.
const WITHDRAWAL_NS: u64 = 1_000_000_000;

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file; read again on SIGHUP.
    pub config: PathBuf,
    /// Which member this is, if not the one named like the host.
    pub node: Option<String>,
    /// Interfaces instead of those of the file.
    pub interfaces: Vec<String>,
    /// Where maps and links are pinned.
    pub pins: PathBuf,
    /// Where the incarnation and the key are kept.
    pub state: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// How the program is attached.
    pub mode: Mode,
}

/// Runs the agent until SIGTERM or SIGINT, with a configuration that `options.config` holds at the moment; `text` is what is in it.
///
/// # Errors
///
/// The agent cannot start; the datapath is then as it was. Once it runs, failures are logged and lived with.
pub fn run(options: &Options, config: &Config, text: String) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Agent::start(options, config, text)?.run().await })
}

struct Agent<'o> {
    options: &'o Options,
    on_stop: OnStop,
    core: Core,
    edges: Edges,
    alarm: Alarm,
    signals: Signals,
    control: Control,
    metrics: Arc<Source>,
    supervisor: Supervisor,
    keeper: Keeper,
    /// The text that runs, as it is in the file.
    text: Arc<str>,
    /// When the configuration is undone, unless somebody confirms it.
    trial_ns: Option<u64>,
    reload: Option<Reload>,
    upkeep_ns: u64,
    /// When it leaves the cluster.
    stop_ns: Option<u64>,
}

/// A configuration that waits until its targets can be reached.
struct Reload {
    ready: Box<Ready>,
    patience_ns: u64,
}

impl<'o> Agent<'o> {
    fn start(options: &'o Options, config: &Config, text: String) -> anyhow::Result<Self> {
        // First, so that a signal that comes while the datapath is loaded is not lost.
        let signals = Signals::new().context("signals")?;
        let metrics = Arc::new(Source::new(options.pins.clone(), Names::of(config)));
        let control = Control::listen(&options.socket, Arc::clone(&metrics)).context("control socket")?;
        if let Some(address) = config.node.metrics_listen {
            exporter::start(address, Arc::clone(&metrics)).with_context(|| format!("metrics at {address}"))?;
        }
        let supervisor = Supervisor::new().context("a thread for systemd")?;
        let (edges, adopted, incarnation) = Edges::open(options, config)?;
        // After the threads of the edges were started, which would inherit it.
        if let Err(error) = setpriority_process(None, PRIORITY) {
            warn!(%error, "cannot raise this thread's priority; on a busy host probes may be late");
        }
        let nonce = identity::nonce().context("no random numbers")?;
        let mut core = Core::new(now_ns(), view::of(config), incarnation, nonce, &adopted);
        let publication = keeper::publication(config, &text, keeper::id(config)).map_err(anyhow::Error::msg)?;
        core.handle(now_ns(), Input::Publish(publication));
        let running: Arc<str> = text.as_str().into();
        let keeper = Keeper::start(options, config, text).context("the configuration's keeper")?;
        let (on_stop, alarm, upkeep_ns) = (config.node.on_stop, Alarm::new()?, now_ns() + UPKEEP_NS);
        let mut agent = Self {
            options,
            on_stop,
            core,
            edges,
            alarm,
            signals,
            control,
            metrics,
            supervisor,
            keeper,
            text: running,
            trial_ns: None,
            reload: None,
            upkeep_ns,
            stop_ns: None,
        };
        // The tables are filled before the first packet is treated.
        agent.edges.carry_out(&mut agent.core, &agent.control);
        agent.edges.attach()?;
        agent.edges.check(checks::subjects(config));
        info!(member = config.this_member().name.as_str(), incarnation, "running");
        agent.supervisor.tell(Word::Ready);
        Ok(agent)
    }

    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            // 1. What the core wants done, in its order.
            if self.edges.carry_out(&mut self.core, &self.control) == Carried::Stopped {
                return self.edges.close(self.on_stop).await;
            }
            while let Some(proposal) = self.edges.proposal() {
                self.judge(proposal);
            }
            // 2. A tick that is due, before anything else that has happened: probes must not wait for a queue.
            let due_ns = self.core.next_deadline();
            if due_ns.is_some_and(|due| due <= now_ns()) {
                self.edges.look(&mut self.core);
                self.core.handle(now_ns(), Input::Tick);
                continue;
            }
            // 3. What else has its time.
            if self.upkeep_ns <= now_ns() {
                self.edges.upkeep();
                self.supervisor.tell(Word::Alive);
                self.upkeep_ns = now_ns() + UPKEEP_NS;
                continue;
            }
            if let Some(ready) =
                self.reload.take_if(|new| new.patience_ns <= now_ns() || self.edges.reach(&new.ready.targets))
            {
                self.configure(*ready.ready);
                continue;
            }
            if self.trial_ns.take_if(|end| *end <= now_ns()).is_some() {
                self.wish(Wish::Undo { why: "nobody has confirmed it in time".into() }, None);
                continue;
            }
            self.edges.follow_readiness(&self.core);
            if self.stop_ns.take_if(|stop| *stop <= now_ns()).is_some() {
                self.core.handle(now_ns(), Input::Stop);
                continue;
            }
            // 4. Whatever happens next. The choice among several is random, so none starves another.
            let waiting_ns = self.reload.as_ref().map(|new| new.patience_ns);
            let others = [waiting_ns, self.stop_ns, self.trial_ns, Some(self.upkeep_ns)];
            self.alarm.set(others.into_iter().chain([due_ns]).flatten().min())?;
            tokio::select! {
                rung = self.alarm.ring() => rung?,
                order = self.signals.next() => self.obey(&order),
                Some(order) = self.control.next() => self.answer(order),
                Some(kept) = self.keeper.next() => self.take_kept(kept),
                happened = self.edges.next() => self.edges.take_in(&mut self.core, happened?),
            }
        }
    }

    fn obey(&mut self, order: &Order) {
        match order {
            Order::Stop => {
                info!("stopping");
                self.supervisor.tell(Word::Stopping);
                let patience_ns = if self.edges.withdraw() { WITHDRAWAL_NS } else { 0 };
                self.stop_ns = Some(now_ns() + patience_ns);
            }
            Order::Reload => {
                self.supervisor.tell(Word::Reloading);
                self.wish(Wish::Reload, None);
            }
        }
    }

    /// Asks for something to be done with the configuration.
    fn wish(&self, wish: Wish, answer: Option<keeper::Answer>) {
        let is_urgent = answer.is_none();
        if !self.keeper.ask(wish, self.edges.fixed(), self.core.highest_generation(), answer) && is_urgent {
            self.supervisor.tell(Word::Ready);
            error!("the configuration that is running stays: {TOO_MANY}");
        }
    }

    /// A peer has a later configuration.
    fn judge(&mut self, proposal: Box<Proposal>) {
        let id = proposal.id;
        if !self.keeper.ask(Wish::Take(proposal), self.edges.fixed(), id.generation, None) {
            self.core.handle(now_ns(), Input::Judged { id, refusal: Some(TOO_MANY.into()) });
        }
    }

    /// Something has come of a wish.
    fn take_kept(&mut self, kept: Kept) {
        let refusal = match kept.result {
            Ok(ready) => {
                if let Some((ready, news)) = ready {
                    info!("{news}");
                    self.control.tell("info", news);
                    self.prepare(ready);
                }
                None
            }
            Err(refusal) => Some(refusal),
        };
        match (kept.judged, &refusal) {
            (Some(id), refusal) => {
                let refusal = refusal.as_ref().map(|refusal| refusal.words().to_owned());
                self.core.handle(now_ns(), Input::Judged { id, refusal });
            }
            (None, Some(refusal)) if kept.answer.is_none() => {
                self.supervisor.tell(Word::Ready);
                let text = format!("the configuration that is running stays: {}", refusal.words());
                error!("{text}");
                self.control.tell("warn", text);
            }
            (None, _) => {}
        }
        if let Some((answer, told)) = kept.answer {
            // Who asked may have gone.
            _ = answer.send(told);
        }
    }

    /// First finds out how new targets are reached: a new flow must not go where no packet can.
    fn prepare(&mut self, mut ready: Box<Ready>) {
        match ready.trial {
            Tried::For(time) => self.trial_ns = Some(now_ns() + time.as_nanos() as u64),
            Tried::No => self.trial_ns = None,
            Tried::AsBefore => {}
        }
        ready.publication.trial_until = self.trial_ns;
        self.text = Arc::clone(&ready.text);
        self.core.handle(now_ns(), Input::Publish(ready.publication.clone()));
        self.edges.follow(&ready.targets);
        self.reload = Some(Reload { ready, patience_ns: now_ns() + PATIENCE_NS });
    }

    fn configure(&mut self, new: Ready) {
        self.on_stop = new.on_stop;
        self.metrics.rename(new.names);
        self.edges.trust(&new.trust);
        self.core.handle(now_ns(), Input::Configure(new.view));
        self.edges.check(new.checks);
        self.edges.announce(&self.core);
        info!(config = %self.options.config.display(), "configuration in effect");
        self.supervisor.tell(Word::Ready);
    }
}
