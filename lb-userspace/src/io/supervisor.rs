//! What systemd is told, if it started this process and wants to know: `sd_notify(3)`.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use sd_notify::NotifyState;
use tracing::warn;

/// Words that wait to be sent. More of them only say the same again.
const QUEUE: usize = 8;

/// What this process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It serves; also after a reload.
    Ready,
    /// It reads its configuration again.
    Reloading,
    /// It is alive.
    Alive,
    /// It is about to end.
    Stopping,
}

/// The way to whoever supervises this process.
///
/// A thread of its own: a supervisor that hangs must not hold up who serves.
#[derive(Debug)]
pub struct Supervisor(Option<SyncSender<Word>>);

impl Supervisor {
    /// Nobody is told anything if nobody asked for it.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn new() -> io::Result<Self> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self(None));
        }
        let (words, queue) = sync_channel(QUEUE);
        thread::Builder::new().name("supervisor".to_owned()).spawn(move || forward(&queue))?;
        Ok(Self(Some(words)))
    }

    /// Never waits: who does not listen is not told.
    pub fn tell(&self, word: Word) {
        if let Some(words) = &self.0 {
            _ = words.try_send(word);
        }
    }
}

fn forward(queue: &Receiver<Word>) {
    while let Ok(word) = queue.recv() {
        let told = match word {
            Word::Ready => sd_notify::notify(&[NotifyState::Ready]),
            Word::Reloading => NotifyState::monotonic_usec_now()
                .and_then(|moment| sd_notify::notify(&[NotifyState::Reloading, moment])),
            Word::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
            Word::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        };
        if let Err(error) = told {
            warn!(%error, "systemd cannot be told {word:?}");
        }
    }
}
