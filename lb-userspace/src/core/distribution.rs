//! A configuration's text reaches every member: who hears of a higher generation asks for it. `docs/design/0016-configuration-life.md`.
//!
//! ```text
//!              a hello says a higher generation        all parts are here            the driver has stored it
//!   contented ---------------------------------> asks ---------------------> judged ------------------------> contented
//!       ^   the session ends, nothing comes for 5 s: another peer |                |  published, said in every hello
//!       +---------------------------------------------------------+                +-- refused: says why; not asked for again
//! ```
//!
//! What a text means is the driver's business: here it is bytes.

use std::{sync::Arc, time::Duration};

use super::{
    Core, Output, Session,
    event::Event,
    link::{Link, Stage, nanos},
    wire::{ConfigurationId, Frame, GENERATION_MAX, Part, REFUSAL_MAX},
};

/// The version of the protocol that texts came with.
const SINCE: u8 = 4;
/// How long a peer may say nothing of what it was asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The configuration that runs, as others may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Which it is.
    pub id: ConfigurationId,
    /// What it replaced here.
    pub replaces: ConfigurationId,
    /// Until when it is tried; `None` when it is for good.
    pub trial_until: Option<u64>,
    /// Its text, without this member's own part.
    pub text: Arc<[u8]>,
}

/// A configuration that a peer has, for the driver to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Which it is.
    pub id: ConfigurationId,
    /// What it replaced at the peer.
    pub replaces: ConfigurationId,
    /// For how long it is still tried.
    pub trial: Option<Duration>,
    /// Its text, without any member's own part.
    pub text: Vec<u8>,
    /// Whose it is, for people.
    pub from: String,
}

/// What this member has to give, and what it is about to get.
#[derive(Default)]
pub(crate) struct Distribution {
    published: Option<Publication>,
    fetch: Option<Fetch>,
    /// Handed to the driver, which has not answered.
    judged: Option<ConfigurationId>,
    /// What this member does not take over, and why.
    refused: Option<(ConfigurationId, String)>,
}

struct Fetch {
    from: Session,
    id: ConfigurationId,
    text: Vec<u8>,
    /// When something last came.
    heard_at: u64,
}

/// What a session is to be told, and has heard.
#[derive(Default)]
pub(crate) struct Hand {
    /// To be asked for.
    request: Option<ConfigurationId>,
    /// Of what is published, from here on.
    owed: Option<usize>,
    owes_refusal: bool,
    /// What the peer does not take over, and why.
    refusal: Option<(ConfigurationId, String)>,
    /// What it was asked for, and did not send.
    silent: Option<ConfigurationId>,
}

impl Hand {
    /// Whether there is something to tell.
    pub(crate) const fn is_due(&self) -> bool {
        self.request.is_some() || self.owed.is_some() || self.owes_refusal
    }

    /// Why the peer does not take over configuration `id`.
    pub(crate) fn refusal_of(&self, id: ConfigurationId) -> Option<&str> {
        self.refusal.as_ref().filter(|(refused, _)| *refused == id).map(|(_, why)| why.as_str())
    }
}

impl Core {
    /// What runs from now on, or is about to; the view that has it follows at once.
    pub(crate) fn publish(&mut self, now: u64, publication: Publication) {
        let id = publication.id;
        let distribution = &mut self.distribution;
        distribution.fetch.take_if(|fetch| fetch.id.generation <= id.generation);
        distribution.refused.take_if(|(refused, _)| refused.generation <= id.generation);
        distribution.published = Some(publication);
        // Somebody is in the middle of the text of before: its parts would be of two.
        self.links.values_mut().for_each(|link| link.hand.owed = None);
        self.review_distribution(now);
    }

    /// The driver has judged what it was given: it is stored and about to be published, or why not.
    pub(crate) fn judged(&mut self, now: u64, id: ConfigurationId, refusal: Option<String>) {
        self.distribution.judged.take_if(|judged| *judged == id);
        if let Some(why) = refusal {
            self.report(Event::ConfigurationRefused { generation: id.generation, why: why.clone() });
            self.distribution.refused = Some((id, why));
            let speaks = self.links.values_mut().filter(|link| link.speaks_of_configurations());
            speaks.for_each(|link| link.hand.owes_refusal = true);
        }
        self.review_distribution(now);
    }

    /// The highest generation that this member and its peers have spoken of.
    pub fn highest_generation(&self) -> u64 {
        let said = self.links.values().map(|link| link.configuration.0).filter(|said| *said <= GENERATION_MAX);
        said.max().unwrap_or_default().max(self.view.generation)
    }

    /// Whether a peer runs another configuration than this member.
    pub(crate) fn has_other_configurations(&self) -> bool {
        let own = self.configuration();
        self.links.values().any(|link| link.stage == Stage::Open && link.configuration_id() != own)
    }

    /// Which configuration runs.
    pub const fn configuration(&self) -> ConfigurationId {
        ConfigurationId { generation: self.view.generation, hash: self.view.hash }
    }

    /// A session has opened.
    pub(crate) fn introduce_configuration(&mut self, session: Session) {
        let has_refused = self.distribution.refused.is_some();
        if let Some(link) = self.links.get_mut(&session).filter(|link| link.speaks_of_configurations()) {
            link.hand.owes_refusal = has_refused;
        }
    }

    /// Asks for a later configuration, if a peer has one and nothing is under way.
    pub(crate) fn review_distribution(&mut self, now: u64) {
        let links = &mut self.links;
        self.distribution.fetch.take_if(|fetch| {
            let Some(link) = links.get_mut(&fetch.from) else { return true };
            let is_late = now.saturating_sub(fetch.heard_at) >= nanos(PATIENCE);
            if is_late {
                link.hand.silent = Some(fetch.id);
            }
            is_late || link.configuration_id() != fetch.id
        });
        let distribution = &self.distribution;
        let Some(published) = &distribution.published else { return };
        if distribution.fetch.is_some() || distribution.judged.is_some() || self.stopping.is_some() {
            return;
        }
        let refused = distribution.refused.as_ref().map(|(id, _)| *id);
        let is_wanted = |link: &Link| {
            let id = link.configuration_id();
            let is_later = (published.id.generation + 1..=GENERATION_MAX).contains(&id.generation);
            is_later && Some(id) != refused && link.speaks_of_configurations()
        };
        // Who did not answer is asked again only when there is nobody else.
        let worth = |link: &Link| (link.hand.silent != Some(link.configuration_id()), link.configuration_id());
        let wanted = self.links.iter().filter(|(_, link)| is_wanted(link)).max_by_key(|(_, link)| worth(link));
        let Some((from, id)) = wanted.map(|(session, link)| (*session, link.configuration_id())) else { return };
        self.distribution.fetch = Some(Fetch { from, id, text: Vec::new(), heard_at: now });
        if let Some(link) = self.links.get_mut(&from) {
            link.hand.request = Some(id);
        }
    }

    /// A peer wants a text.
    pub(crate) fn asked_for_configuration(&mut self, session: Session, id: ConfigurationId) {
        // What is no longer published has a later hello behind it.
        let has_it = self.distribution.published.as_ref().is_some_and(|published| published.id == id);
        if let Some(link) = self.links.get_mut(&session).filter(|_| has_it) {
            link.hand.owed = Some(0);
        }
    }

    /// A peer does not take a configuration over.
    pub(crate) fn heard_refusal(&mut self, session: Session, id: ConfigurationId, why: String) {
        let Some(link) = self.links.get_mut(&session) else { return };
        let (peer, is_news) = (link.peer, link.hand.refusal_of(id) != Some(why.as_str()));
        link.hand.refusal = Some((id, why.clone()));
        if is_news {
            let peer = self.label(peer);
            self.report(Event::PeerRefuses { peer, generation: id.generation, why });
        }
    }

    /// Some of a text; what was not asked for, or is no more, is nothing.
    pub(crate) fn heard_part(&mut self, now: u64, session: Session, part: Part) {
        let Some(fetch) = self.distribution.fetch.as_mut().filter(|f| f.from == session && f.id == part.id) else {
            return;
        };
        if fetch.text.len() != part.offset as usize {
            return;
        }
        fetch.heard_at = now;
        fetch.text.extend(&part.bytes);
        if fetch.text.len() < part.total as usize {
            return;
        }
        let text = std::mem::take(&mut fetch.text);
        let from = self.links.get(&session).map_or(0, |link| link.peer);
        self.distribution.fetch = None;
        self.distribution.judged = Some(part.id);
        let trial = (part.trial_ms != 0).then(|| Duration::from_millis(part.trial_ms.into()));
        let from = self.label(from);
        let proposal = Proposal { id: part.id, replaces: part.replaces, trial, text, from };
        self.outputs.push_back(Output::Judge(Box::new(proposal)));
    }

    /// The next frame of what a peer is to be told.
    pub(crate) fn tell_configuration(&mut self, now: u64, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        if let Some(id) = link.hand.request.take() {
            return Some(Frame::ConfigurationRequest(id).encode(link.version));
        }
        if std::mem::take(&mut link.hand.owes_refusal) {
            let (id, why) = self.distribution.refused.as_ref()?;
            let why = why.get(..why.floor_char_boundary(REFUSAL_MAX)).unwrap_or_default().to_owned();
            return Some(Frame::ConfigurationRefusal { id: *id, why }.encode(link.version));
        }
        let offset = link.hand.owed.take()?;
        let published = self.distribution.published.as_ref()?;
        let bytes = published.text.get(offset..).filter(|rest| !rest.is_empty())?;
        let bytes = bytes.get(..Part::BYTES_MAX).unwrap_or(bytes).to_vec();
        let end = offset + bytes.len();
        link.hand.owed = (end < published.text.len()).then_some(end);
        let left = |until: u64| u32::try_from(until.saturating_sub(now) / 1_000_000).unwrap_or(u32::MAX).max(1);
        let part = Part {
            id: published.id,
            replaces: published.replaces,
            trial_ms: published.trial_until.map_or(0, left),
            total: published.text.len() as u32,
            offset: offset as u32,
            bytes,
        };
        Some(Frame::ConfigurationPart(part).encode(link.version))
    }
}

impl Link {
    /// Whether the peer asks for texts, and has some.
    fn speaks_of_configurations(&self) -> bool {
        self.stage == Stage::Open && self.version >= SINCE
    }

    /// What the peer said that it runs.
    pub(crate) const fn configuration_id(&self) -> ConfigurationId {
        ConfigurationId { generation: self.configuration.0, hash: self.configuration.1 }
    }
}
