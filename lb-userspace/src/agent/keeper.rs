//! Who keeps the configuration: reads, checks and writes it on a thread of its own, and hands the loop what is ready to take
//! effect. `docs/design/0016-configuration-life.md`.
//!
//! Every way in is one path: a text is parsed, checked against the host and against what a running agent cannot change, written,
//! and only then handed over. Whatever fails on the way leaves the file and the running configuration as they are.

use std::{
    fs, io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use lb_common::address::Address;
use tokio::sync::{mpsc as results, oneshot};

use super::{Options, fixed::Fixed, view};
use crate::{
    config::{Config, ConfigError, Host, Names, OnStop, shared_part, with_generation, with_own_part},
    control::{Refusal, api::Applied},
    core::{
        View,
        distribution::{Proposal, Publication},
        wire::{ConfigurationId, GENERATION_MAX, TEXT_MAX},
    },
    io::{
        checks::{self, Subject},
        handshake::Trust,
        trial::{EDITED, Trial, UNDONE, beside, replace},
    },
};

/// Wishes and results that wait; people and peers have few.
const WAITING: usize = 16;
/// Said when more wait.
pub(super) const TOO_MANY: &str = "too many changes wait; nothing was changed, try again";

pub(super) type Answer = oneshot::Sender<Result<Applied, Refusal>>;

/// What the keeper is asked for.
pub(super) enum Wish {
    /// The file is another one, perhaps.
    Reload,
    /// This text shall be the file, on trial for a time or for good. `is_forced`: also if it is of an earlier generation.
    Apply { text: String, trial: Option<Duration>, is_forced: bool },
    /// A peer has this one.
    Take(Box<Proposal>),
    /// What is tried is good.
    Confirm,
    /// What is tried is not.
    Undo { why: String },
}

struct Task {
    wish: Wish,
    fixed: Fixed,
    /// The highest generation that is known of.
    highest: u64,
    answer: Option<Answer>,
}

/// What has come of a wish.
pub(super) struct Kept {
    /// What is to take effect, if anything is, and what people are told of it; or why not.
    pub(super) result: Result<Option<(Box<Ready>, String)>, Refusal>,
    /// The proposal that it was about.
    pub(super) judged: Option<ConfigurationId>,
    /// What whoever asked is told, once the loop has it.
    pub(super) answer: Option<(Answer, Result<Applied, Refusal>)>,
}

/// A configuration that is on disk, and all that follows from it.
pub(super) struct Ready {
    pub(super) trust: Trust,
    pub(super) view: Box<View>,
    pub(super) checks: Vec<Subject>,
    pub(super) on_stop: OnStop,
    pub(super) names: Names,
    pub(super) targets: Vec<Address>,
    pub(super) publication: Publication,
    /// Whether and for how long it is tried.
    pub(super) trial: Tried,
    /// Its text as it is in the file.
    pub(super) text: Arc<str>,
}

/// What becomes of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// This one is tried for so long.
    For(Duration),
    /// It is for good.
    No,
    /// The same configuration as before goes on, and its trial if it is on one.
    AsBefore,
}

/// The loop's end.
pub(super) struct Keeper {
    tasks: mpsc::SyncSender<Task>,
    kept: results::Receiver<Kept>,
}

impl Keeper {
    /// Starts the thread; `text` is what `config` was made of.
    pub(super) fn start(options: &Options, config: &Config, text: String) -> io::Result<Self> {
        let (tasks, wishes) = mpsc::sync_channel::<Task>(WAITING);
        let (sender, kept) = results::channel(WAITING);
        let mut shelf = Shelf { options: options.clone(), id: id(config), replaces: id(config), text, trial: None };
        thread::Builder::new().name("keeper".into()).spawn(move || {
            for task in wishes {
                if sender.blocking_send(shelf.fulfil(task)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { tasks, kept })
    }

    /// Asks for something; whether it will be done. Who waits for an answer gets one in any case.
    pub(super) fn ask(&self, wish: Wish, fixed: &Fixed, highest: u64, answer: Option<Answer>) -> bool {
        let task = Task { wish, fixed: fixed.clone(), highest, answer };
        let Err(mpsc::TrySendError::Full(task) | mpsc::TrySendError::Disconnected(task)) = self.tasks.try_send(task)
        else {
            return true;
        };
        if let Some(answer) = task.answer {
            // Who asked may have gone.
            _ = answer.send(Err(Refusal::Conflict(TOO_MANY.into())));
        }
        false
    }

    /// What has come of a wish. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Kept> {
        self.kept.recv().await
    }
}

/// What `config` with `text` is to others.
pub(super) fn publication(config: &Config, text: &str, replaces: ConfigurationId) -> Result<Publication, String> {
    let shared = shared_part(text).map_err(|error| error.to_string())?;
    Ok(Publication { id: id(config), replaces, trial_until: None, text: shared.into_bytes().into() })
}

pub(super) fn id(config: &Config) -> ConfigurationId {
    ConfigurationId { generation: config.cluster.generation, hash: config.cluster_hash() }
}

/// The thread's end: what is in the file, as far as it was applied.
struct Shelf {
    options: Options,
    text: String,
    id: ConfigurationId,
    replaces: ConfigurationId,
    trial: Option<Trial>,
}

/// A text that is to be stored.
struct Plan {
    text: String,
    /// For how long, and whether the way back is kept here.
    trial: Option<Duration>,
    /// What whoever asks had in the file, if not what runs.
    typed: Option<String>,
    /// What people are told.
    news: String,
}

impl Shelf {
    fn fulfil(&mut self, task: Task) -> Kept {
        let judged = match &task.wish {
            Wish::Take(proposal) => Some(proposal.id),
            _ => None,
        };
        let result = self.carry_out(task.wish, &task.fixed, task.highest);
        let answer = task.answer.map(|answer| {
            let told = result.as_ref().map_err(Clone::clone).map(|ready| {
                let (generation, has_changed) = (self.id.generation, ready.is_some());
                let trial_s = ready.as_ref().and_then(|(ready, _)| match ready.trial {
                    Tried::For(time) => Some(time.as_secs()),
                    Tried::No | Tried::AsBefore => None,
                });
                Applied { generation, has_changed, trial_s }
            });
            (answer, told)
        });
        Kept { result, judged, answer }
    }

    fn carry_out(&mut self, wish: Wish, fixed: &Fixed, highest: u64) -> Result<Option<(Box<Ready>, String)>, Refusal> {
        let plan = match wish {
            Wish::Reload => return self.reload(fixed).map(Some),
            Wish::Apply { text, trial, is_forced } => match self.plan_applying(text, trial, is_forced, highest)? {
                Some(plan) => plan,
                None => return Ok(None),
            },
            Wish::Take(proposal) => match self.plan_taking(*proposal)? {
                Some(plan) => plan,
                None => return Ok(None),
            },
            Wish::Confirm => {
                let trial = self.the_trial("confirm")?;
                let text = with_generation(&self.text, trial.generation + 2).map_err(invalid)?;
                Plan { text, trial: None, typed: None, news: "what was on trial is confirmed".into() }
            }
            Wish::Undo { why } => {
                let trial = self.the_trial("roll back")?;
                let text = trial.undone().map_err(failed)?;
                replace(&beside(&self.options.config, UNDONE), &self.text).map_err(failed)?;
                let news = format!("{why}: the configuration of before generation {} is back", trial.generation);
                Plan { text, trial: None, typed: None, news }
            }
        };
        self.store(plan, fixed).map(Some)
    }

    fn the_trial(&self, what: &str) -> Result<Trial, Refusal> {
        let none = || {
            Refusal::Conflict(format!("no configuration is on trial, there is nothing to {what}; nothing was changed"))
        };
        self.trial.clone().ok_or_else(none)
    }

    /// The file as it is now; SIGHUP.
    fn reload(&mut self, fixed: &Fixed) -> Result<(Box<Ready>, String), Refusal> {
        let path = &self.options.config;
        let unreadable = |error: io::Error| ConfigError::Unreadable { path: path.clone(), error: error.to_string() };
        let text = fs::read_to_string(path).map_err(|error| Refusal::Invalid(unreadable(error).to_string()))?;
        let config = self.parse(&text, fixed)?;
        let trial = if text == self.text { Tried::AsBefore } else { Tried::No };
        if trial == Tried::No {
            self.forget_trial()?;
            self.replaces = self.id;
        }
        self.ready(&config, text, trial, "configuration reloaded".into())
    }

    fn plan_applying(
        &self,
        text: String,
        trial: Option<Duration>,
        is_forced: bool,
        highest: u64,
    ) -> Result<Option<Plan>, Refusal> {
        if let Some(trial) = &self.trial {
            return Err(Refusal::Conflict(format!(
                "generation {} is on trial; `tandem config confirm` or `tandem config rollback` first; nothing was changed",
                trial.generation
            )));
        }
        if text == self.text {
            return Ok(None);
        }
        // Checked as it was written, so that problems have its lines.
        let said = Config::parse(&text, &self.options.config, &self.host()).map_err(invalid)?.cluster.generation;
        if said != 0 && said < self.id.generation && !is_forced {
            return Err(Refusal::Conflict(format!(
                "the file is of generation {said}, and {} is running: somebody has changed it since; `tandem config diff` shows what, \
                 --force applies the file all the same; nothing was changed",
                self.id.generation
            )));
        }
        let generation = if said > highest { said } else { highest + 1 };
        if generation > GENERATION_MAX {
            return Err(Refusal::Invalid(format!(
                "`cluster.generation` is at most {GENERATION_MAX}; nothing was changed"
            )));
        }
        let news = match trial {
            Some(trial) => format!("applied here, on trial for {}", humantime::format_duration(trial)),
            None => "applied here".into(),
        };
        let numbered = with_generation(&text, generation).map_err(invalid)?;
        Ok(Some(Plan { text: numbered, trial, typed: Some(text), news }))
    }

    fn plan_taking(&self, proposal: Proposal) -> Result<Option<Plan>, Refusal> {
        if proposal.id.generation <= self.id.generation {
            return Ok(None);
        }
        let shared = String::from_utf8(proposal.text).map_err(invalid)?;
        let text = with_own_part(&shared, &self.text).map_err(invalid)?;
        // Who did not have what it replaces would go back to something else than the others.
        let trial = proposal.trial.filter(|_| proposal.replaces == self.id);
        Ok(Some(Plan { text, trial, typed: None, news: format!("from {}", proposal.from) }))
    }

    fn store(&mut self, plan: Plan, fixed: &Fixed) -> Result<(Box<Ready>, String), Refusal> {
        let Plan { text, trial, typed, news } = plan;
        let config = self.parse(&text, fixed)?;
        let (path, state) = (&self.options.config, &self.options.state);
        let on_disk = fs::read_to_string(path).unwrap_or_default();
        let is_known = on_disk == self.text || on_disk == text || typed.is_some_and(|typed| typed == on_disk);
        let mut news = format!("generation {} of the configuration: {news}", config.cluster.generation);
        if !is_known {
            let kept = beside(path, EDITED);
            replace(&kept, &on_disk).map_err(failed)?;
            news += &format!("; the file had been edited and not applied, that is in {} now", kept.display());
        }
        // The way back is there before the way is gone.
        let trial_of = |previous: &str| Trial { generation: config.cluster.generation, previous: previous.to_owned() };
        let kept = trial.map(|_| trial_of(&self.text));
        if let Some(kept) = &kept {
            kept.keep(state).map_err(failed)?;
        }
        replace(path, &text).map_err(failed)?;
        if kept.is_none() {
            self.forget_trial()?;
        }
        (self.trial, self.replaces) = (kept, self.id);
        self.ready(&config, text, trial.map_or(Tried::No, Tried::For), news)
    }

    fn ready(
        &mut self,
        config: &Config,
        text: String,
        trial: Tried,
        news: String,
    ) -> Result<(Box<Ready>, String), Refusal> {
        (self.id, self.text) = (id(config), text);
        let view = Box::new(view::of(config));
        let ready = Ready {
            trust: view::trust(config),
            checks: checks::subjects(config),
            on_stop: config.node.on_stop,
            names: Names::of(config),
            targets: view::targets(&view),
            publication: publication(config, &self.text, self.replaces).map_err(Refusal::Invalid)?,
            trial,
            text: self.text.as_str().into(),
            view,
        };
        Ok((Box::new(ready), news))
    }

    fn forget_trial(&mut self) -> Result<(), Refusal> {
        self.trial = None;
        Trial::forget(&self.options.state).map_err(failed)
    }

    /// All that can be said against `text` before anything is touched.
    fn parse(&self, text: &str, fixed: &Fixed) -> Result<Config, Refusal> {
        if text.len() > TEXT_MAX {
            let problem =
                format!("the file has {} bytes, and at most {TEXT_MAX} can be told to other members", text.len());
            return Err(Refusal::Invalid(problem));
        }
        let config = Config::parse(text, &self.options.config, &self.host()).map_err(invalid)?;
        let needs_restart = |reason| Refusal::Conflict(format!("{reason}; that needs a restart"));
        fixed.accepts(&config).map_err(needs_restart)?;
        Ok(config)
    }

    fn host(&self) -> Host<'_> {
        let Options { node, interfaces, state, .. } = &self.options;
        Host { node: node.as_deref(), interfaces, state, ..Host::default() }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn invalid(error: impl ToString) -> Refusal {
    Refusal::Invalid(error.to_string())
}

fn failed(error: io::Error) -> Refusal {
    Refusal::Failed(format!("{error}; the configuration that is running stays"))
}
