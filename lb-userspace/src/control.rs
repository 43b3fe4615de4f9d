//! The control socket: what people and programs ask of a running agent. `docs/design/0015-control-socket.md`.
//!
//! HTTP runs on a thread of its own. A request that concerns the agent becomes an [`Order`] in a bounded channel; whoever
//! sends more than the agent takes in is told to come again.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::SystemTime,
};

use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::warn;

pub mod api;
pub mod client;
mod server;

use crate::inspect::metrics::Source;
use api::{Applied, Apply, Backends, ConfigState, ConfigText, DrainBackend, EventLine, Matched, Node};

/// Where the socket is, when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tandem/control.sock";
/// Orders that the agent has not taken in.
const ORDERS: usize = 64;
/// Events that are remembered, and that a slow listener may be behind.
const EVENTS: usize = 1000;
/// Owner and group.
const MODE: u32 = 0o660;

/// Something that the agent is asked. A dropped answer is a client that has gone.
#[derive(Debug)]
pub enum Order {
    /// How it is.
    Node(oneshot::Sender<Node>),
    /// How its backends are.
    Backends(oneshot::Sender<Backends>),
    /// To drain this member, or not any more.
    DrainNode(bool, oneshot::Sender<Node>),
    /// To drain a backend, or not any more.
    DrainBackend(DrainBackend, oneshot::Sender<Matched>),
    /// Which configuration runs here and at the others.
    Config(oneshot::Sender<ConfigState>),
    /// Its text.
    ConfigText(oneshot::Sender<ConfigText>),
    /// To read the configuration's file again, or to change it.
    Change(Change, oneshot::Sender<Result<Applied, Refusal>>),
}

/// What is to be done with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The file is another one.
    Reload,
    /// This shall be the file.
    Apply(Apply),
    /// What is on trial is good.
    Confirm,
    /// What is on trial is not.
    Undo,
}

/// Why something was not done with the configuration; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The text is no valid configuration here.
    Invalid(String),
    /// It is not the moment, or somebody else was faster.
    Conflict(String),
    /// The disk.
    Failed(String),
}

impl Refusal {
    /// What happened.
    pub fn words(&self) -> &str {
        match self {
            Self::Invalid(words) | Self::Conflict(words) | Self::Failed(words) => words,
        }
    }
}

/// The agent's side of the socket. Dropped, the socket goes.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    orders: mpsc::Receiver<Order>,
    journal: Arc<Journal>,
}

/// What happened, for those who ask later and those who listen.
#[derive(Debug)]
struct Journal {
    past: Mutex<VecDeque<EventLine>>,
    news: broadcast::Sender<EventLine>,
}

impl Control {
    /// Listens at `path`, where `metrics` can be had, too.
    ///
    /// # Errors
    /// When somebody listens there already, or the directory cannot be made.
    pub fn listen(path: &Path, metrics: Arc<Source>) -> io::Result<Self> {
        let listener = bind(path)?;
        let (sender, orders) = mpsc::channel(ORDERS);
        let journal = Arc::new(Journal { past: Mutex::default(), news: broadcast::channel(EVENTS).0 });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&journal);
        thread::Builder::new().name("control".into()).spawn(move || {
            if let Err(error) = runtime.block_on(server::serve(listener, sender, shared, metrics)) {
                warn!(%error, "the control socket is not served any more");
            }
        })?;
        Ok(Self { path: path.to_owned(), orders, journal })
    }

    /// The next order. Cancel-safe.
    pub async fn next(&mut self) -> Option<Order> {
        self.orders.recv().await
    }

    /// Something happened.
    pub fn tell(&self, level: &'static str, text: String) {
        self.journal.add(EventLine { time: SystemTime::now(), level: level.to_owned(), text });
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nobody can be told on the way out.
        _ = fs::remove_file(&self.path);
    }
}

impl Journal {
    fn add(&self, line: EventLine) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == EVENTS {
            past.pop_front();
        }
        past.push_back(line.clone());
        // Under the lock, so that a listener gets every line once. Nobody listening is no error.
        _ = self.news.send(line);
    }

    /// What was, and what will be.
    fn listen(&self) -> (Vec<EventLine>, broadcast::Receiver<EventLine>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.news.subscribe())
    }
}

/// A socket that a dead agent has left is in the way of nobody.
fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(at)?;
    }
    if UnixStream::connect(path).is_ok() {
        let error =
            io::Error::new(io::ErrorKind::AddrInUse, "another agent listens there (--socket gives this one its own)");
        return Err(at(error));
    }
    if path.exists() {
        fs::remove_file(path).map_err(at)?;
    }
    let listener = UnixListener::bind(path).map_err(at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests;
