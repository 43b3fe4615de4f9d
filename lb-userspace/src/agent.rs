//! The agent: one loop between the core, which decides, and the edges in `io`, which act.
//!
//! Everything but look-ups that may block (`io::neighbours`, `io::sweep`) runs on one thread, so
//! nothing here waits for anything but the next thing to happen.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use lb_common::address::Address;
use rustix::process::setpriority_process;
use tracing::{error, info, warn};

use crate::{
    config::{Config, Names, OnStop},
    control::Control,
    core::{Core, Input, View},
    identity,
    inspect::metrics::Source,
    io::{
        attach::Mode,
        checks::{self, Subject},
        clock::{Alarm, now_ns},
        exporter,
        handshake::Trust,
        supervisor::{Supervisor, Word},
    },
};

mod edges;
mod fixed;
mod orders;
mod signals;
mod view;

use edges::{Carried, Edges};
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

/// Runs the agent until SIGTERM or SIGINT, with a configuration that `options.config` holds at the moment.
///
/// # Errors
///
/// The agent cannot start; the datapath is then as it was. Once it runs, failures are logged and lived with.
pub fn run(options: &Options, config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Agent::start(options, config)?.run().await })
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
    reload: Option<Reload>,
    upkeep_ns: u64,
    /// When it leaves the cluster.
    stop_ns: Option<u64>,
}

/// A configuration that waits until its targets can be reached.
struct Reload {
    trust: Trust,
    view: Box<View>,
    checks: Vec<Subject>,
    on_stop: OnStop,
    names: Names,
    targets: Vec<Address>,
    patience_ns: u64,
}

impl<'o> Agent<'o> {
    fn start(options: &'o Options, config: &Config) -> anyhow::Result<Self> {
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
        let core = Core::new(now_ns(), view::of(config), incarnation, nonce, &adopted);
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
                self.reload.take_if(|new| new.patience_ns <= now_ns() || self.edges.reach(&new.targets))
            {
                self.configure(ready);
                continue;
            }
            self.edges.follow_readiness(&self.core);
            if self.stop_ns.take_if(|stop| *stop <= now_ns()).is_some() {
                self.core.handle(now_ns(), Input::Stop);
                continue;
            }
            // 4. Whatever happens next. The choice among several is random, so none starves another.
            let waiting_ns = self.reload.as_ref().map(|new| new.patience_ns);
            self.alarm.set([due_ns, waiting_ns, self.stop_ns, Some(self.upkeep_ns)].into_iter().flatten().min())?;
            tokio::select! {
                rung = self.alarm.ring() => rung?,
                order = self.signals.next() => self.obey(&order),
                Some(order) = self.control.next() => self.answer(order),
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
                if let Err(error) = self.read_again() {
                    error!("the configuration that is running stays: {error}");
                    self.supervisor.tell(Word::Ready);
                }
            }
        }
    }

    /// Reads the configuration again; why it is not taken over.
    fn read_again(&mut self) -> Result<(), String> {
        let options = self.options;
        Config::load(&options.config, options.node.as_deref(), &options.interfaces, &options.state)
            .map_err(|error| error.to_string())
            .and_then(|config| self.prepare(&config))
    }

    /// First finds out how new targets are reached: a new flow must not go where no packet can.
    fn prepare(&mut self, config: &Config) -> Result<(), String> {
        self.edges.fixed().accepts(config).map_err(|reason| format!("{reason}; that needs a restart"))?;
        let (view, checks) = (Box::new(view::of(config)), checks::subjects(config));
        let targets = view::targets(&view);
        self.edges.follow(&targets);
        let patience_ns = now_ns() + PATIENCE_NS;
        self.reload = Some(Reload {
            trust: view::trust(config),
            view,
            checks,
            on_stop: config.node.on_stop,
            names: Names::of(config),
            targets,
            patience_ns,
        });
        Ok(())
    }

    fn configure(&mut self, new: Reload) {
        self.on_stop = new.on_stop;
        self.metrics.rename(new.names);
        self.edges.trust(&new.trust);
        self.core.handle(now_ns(), Input::Configure(new.view));
        self.edges.check(new.checks);
        self.edges.announce(&self.core);
        info!(config = %self.options.config.display(), "configuration reloaded");
        self.supervisor.tell(Word::Ready);
    }
}
