//! What is said over the control socket. Field names are stable; `format_version` of the command line says when they change.

use std::{net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

/// How a member is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Whether its records are complete: it may own new flows.
    pub ready: bool,
    /// This start of its agent.
    pub incarnation: u32,
    /// Flows that it has a record of.
    pub records: usize,
    /// Number of the epoch in force.
    pub epoch: u32,
    /// Whether another set of servers waits to come into force.
    pub pending: bool,
    /// Whether it gives its flows to others.
    pub draining: bool,
    /// Flows that still name it, while it drains; none before they were counted.
    pub flows_left: Option<usize>,
}

/// The backends of all VIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// One for each VIP of its service.
    pub backends: Vec<Backend>,
}

/// A backend of a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The service's name.
    pub service: String,
    /// `ADDRESS:PORT/PROTOCOL`.
    pub vip: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether the configuration drains it.
    pub drained_by_file: bool,
    /// Whether an operator has drained it.
    pub drained: bool,
    /// Whether most members' checks fail.
    pub down: bool,
    /// What this member's own checks say; none before they have come to a result, or if there are none.
    pub answers: Option<bool>,
    /// Flows that have a record naming it.
    pub flows: usize,
}

/// To drain a backend, or not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainBackend {
    /// Its name.
    pub backend: String,
    /// Of this service; of all that have it, if of none.
    #[serde(default)]
    pub service: Option<String>,
    /// Which of both.
    pub drain: bool,
}

/// To drain a member, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainNode {
    /// Which of both.
    pub drain: bool,
}

/// How many backends an order was for, each counted once for each VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matched {
    /// That many; 0 when there is none of that name, and nothing was changed.
    pub matched: usize,
}

/// Which configuration runs here and at the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// Rises with every change; 0 when nobody counts.
    pub generation: u64,
    /// Hash of what it means to the cluster, in hexadecimal digits.
    pub hash: String,
    /// For how long it is still tried, in milliseconds; none when it is for good.
    pub trial_left_ms: Option<u64>,
    /// Whether another set of servers waits to come into force.
    pub pending: bool,
    /// The other members.
    pub members: Vec<MemberConfig>,
}

/// The configuration of another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberConfig {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// What it runs; none while there is no session with it.
    pub generation: Option<u64>,
    /// The same.
    pub hash: Option<String>,
    /// Whether that is what runs here.
    pub same: bool,
    /// Why it does not take over what runs here, if it has said so.
    pub refuses: Option<String>,
}

/// The text of the configuration that runs here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// As it is in the file.
    pub text: String,
}

/// To take over another configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// The whole file.
    pub text: String,
    /// Go back after so many seconds unless somebody confirms it.
    #[serde(default)]
    pub confirm_s: Option<u64>,
    /// Also when the text is of an earlier generation than what runs.
    #[serde(default)]
    pub force: bool,
}

/// What has come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The generation that runs now.
    pub generation: u64,
    /// Whether it is another one than before.
    pub has_changed: bool,
    /// For how many seconds it is tried; none when it is for good.
    pub trial_s: Option<u64>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// When.
    #[serde(with = "humantime_text")]
    pub time: SystemTime,
    /// `info` or `warn`.
    pub level: String,
    /// What.
    pub text: String,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What happened, whether anything was changed, and what to do.
    pub error: String,
}

/// Times as RFC 3339 has them, in UTC.
mod humantime_text {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}
