//! What the host's packet filter does with a packet, as far as its rules can be read: `nft -j list ruleset`, which also lists what
//! `iptables` put there through nftables.
//!
//! A rule with a condition that is not understood decides nothing here, unless it would let the packet in: then nothing is said.

use std::{io, process::Command};

use serde_json::Value as Json;

/// A packet that comes in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    /// IP protocol, as a number and as nftables calls it.
    pub(super) protocol: (u64, &'a str),
    /// Whether it is IPv4, not IPv6.
    pub(super) is_v4: bool,
    /// Destination port, of TCP and UDP.
    pub(super) port: Option<u16>,
    /// The interface.
    pub(super) interface: &'a str,
}

impl Incoming<'_> {
    fn family(&self) -> &'static str {
        if self.is_v4 { "ip" } else { "ip6" }
    }

    /// Whether it has a header of this kind, as nftables calls them; `th` is any of those with ports.
    fn has(&self, header: &str) -> bool {
        header == self.protocol.1 || header == self.family() || (header == "th" && self.port.is_some())
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It passes, or may.
    Passes,
    /// A rule or a policy of this chain drops it.
    Dropped(String),
}

/// Chains may jump to chains; the kernel allows sixteen levels.
const DEPTH: usize = 16;

/// The rules of this network namespace; `None` without `nft`.
pub(super) fn read() -> io::Result<Option<Json>> {
    match Command::new("nft").args(["--json", "list", "ruleset"]).output() {
        Ok(output) if output.status.success() => Ok(Some(serde_json::from_slice(&output.stdout)?)),
        Ok(output) => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What becomes of `packet` on its way into this host.
pub(super) fn fate(ruleset: &Json, packet: &Incoming<'_>) -> Fate {
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    for chain in chains.filter(|chain| matches!(chain["hook"].as_str(), Some("prerouting" | "input"))) {
        if chain["family"] != packet.family() && chain["family"] != "inet" {
            continue;
        }
        let place = Place { objects, family: &chain["family"], table: &chain["table"] };
        let name = format!("{} {} {}", text(&chain["family"]), text(&chain["table"]), text(&chain["name"]));
        let is_dropped = match place.walk(&chain["name"], packet, DEPTH) {
            Verdict::Drop => true,
            Verdict::None => chain["policy"] == "drop",
            Verdict::Accept | Verdict::Unsure => false,
        };
        if is_dropped {
            return Fate::Dropped(name);
        }
    }
    Fate::Passes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// No rule decides.
    None,
    /// A rule may let it in.
    Unsure,
}

/// A table's chains and rules.
struct Place<'a> {
    objects: &'a [Json],
    family: &'a Json,
    table: &'a Json,
}

impl Place<'_> {
    fn walk(&self, chain: &Json, packet: &Incoming<'_>, depth: usize) -> Verdict {
        let is_here =
            |rule: &&Json| rule["family"] == *self.family && rule["table"] == *self.table && rule["chain"] == *chain;
        for rule in self.objects.iter().filter_map(|object| object.get("rule")).filter(is_here) {
            match self.apply(rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default(), packet, depth) {
                (_, Verdict::None) | (None, Verdict::Drop) => {}
                (Some(true), verdict) => return verdict,
                (None, _) => return Verdict::Unsure,
                (Some(false), _) => {}
            }
        }
        Verdict::None
    }

    /// Whether the rule's conditions hold, if that can be told, and what it says then.
    fn apply(&self, rule: &[Json], packet: &Incoming<'_>, depth: usize) -> (Option<bool>, Verdict) {
        let mut holds = Some(true);
        for statement in rule {
            if let Some(condition) = statement.get("match") {
                match matches(condition, packet) {
                    Some(true) => {}
                    Some(false) => return (Some(false), Verdict::None),
                    None => holds = None,
                }
            } else if statement.get("accept").is_some() {
                return (holds, Verdict::Accept);
            } else if statement.get("drop").is_some() || statement.get("reject").is_some() {
                return (holds, Verdict::Drop);
            } else if let Some(jump) = statement.get("jump").or_else(|| statement.get("goto")) {
                let inner = if depth == 0 { Verdict::Unsure } else { self.walk(&jump["target"], packet, depth - 1) };
                return (holds, inner);
            } else if ["xt", "vmap", "limit"].iter().any(|kind| statement.get(kind).is_some()) {
                holds = None;
            }
        }
        (holds, Verdict::None)
    }
}

fn matches(condition: &Json, packet: &Incoming<'_>) -> Option<bool> {
    let (left, right) = (&condition["left"], &condition["right"]);
    if left["payload"]["protocol"].as_str().is_some_and(|header| !packet.has(header)) {
        return Some(false);
    }
    let is_equal = match (left["meta"]["key"].as_str(), left["payload"]["field"].as_str(), left["ct"]["key"].as_str()) {
        (Some("l4proto"), _, _) | (_, Some("protocol" | "nexthdr"), _) => is_protocol(right, packet),
        (Some("iifname" | "iif"), _, _) => any(right, &|value| Some(value.as_str()? == packet.interface)),
        (_, Some("dport"), _) => any(right, &|value| Some(Some(value.as_u64()?) == packet.port.map(u64::from))),
        // A packet that nobody expects: the first of its connection.
        (_, _, Some("state")) => any(right, &|value| Some(value.as_str()? == "new")),
        _ => None,
    }?;
    match condition["op"].as_str() {
        Some("!=") => Some(!is_equal),
        Some("==" | "in") | None => Some(is_equal),
        Some(_) => None,
    }
}

fn is_protocol(right: &Json, packet: &Incoming<'_>) -> Option<bool> {
    let (number, name) = packet.protocol;
    any(right, &|value| Some(value.as_str() == Some(name) || value.as_u64() == Some(number)))
}

/// Whether `holds` of the value, or of one in a set or a list; numbers may be ranges.
fn any(right: &Json, holds: &dyn Fn(&Json) -> Option<bool>) -> Option<bool> {
    let list = right["set"].as_array().or_else(|| right.as_array());
    if let Some(list) = list {
        let answers: Vec<Option<bool>> = list.iter().map(|value| any(value, holds)).collect();
        return if answers.contains(&Some(true)) {
            Some(true)
        } else {
            answers.into_iter().collect::<Option<Vec<_>>>().map(|_| false)
        };
    }
    if let Some([from, to]) = right["range"].as_array().map(Vec::as_slice) {
        let (from, to) = (from.as_u64()?, to.as_u64()?);
        // Ranges are of ports here, and short.
        return Some((from..=to.min(u64::from(u16::MAX))).any(|number| holds(&number.into()) == Some(true)));
    }
    holds(right)
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SESSION: Incoming<'_> = Incoming { protocol: (6, "tcp"), is_v4: true, port: Some(7400), interface: "eth0" };

    fn said(policy: &str, rules: &[Json]) -> Fate {
        let chain = json!({ "chain": { "family": "inet", "table": "filter", "name": "input", "hook": "input", "policy": policy } });
        let rules = rules
            .iter()
            .map(|expr| json!({ "rule": { "family": "inet", "table": "filter", "chain": "input", "expr": expr } }));
        fate(&json!({ "nftables": std::iter::once(chain).chain(rules).collect::<Vec<_>>() }), &SESSION)
    }

    fn dport(right: Json) -> Json {
        json!({ "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": right } })
    }

    #[test]
    fn a_packet_is_dropped_by_rule_or_by_policy_and_never_by_guess() {
        let dropped = Fate::Dropped("inet filter input".into());
        let (accept, drop) = (json!({ "accept": null }), json!({ "drop": null }));
        let other = json!({ "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": "saddr" } }, "right": "192.0.2.1" } });
        let known = json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"] } });
        assert_eq!(said("accept", &[]), Fate::Passes);
        assert_eq!(said("drop", &[]), dropped);
        assert_eq!(said("drop", &[json!([dport(json!(7400)), accept])]), Fate::Passes);
        assert_eq!(
            said("drop", &[json!([dport(json!({ "set": [22, { "range": [7000, 8000] }] })), accept])]),
            Fate::Passes
        );
        assert_eq!(said("drop", &[json!([dport(json!({ "set": [22, 80] })), accept])]), dropped);
        assert_eq!(said("accept", &[json!([dport(json!(7400)), drop])]), dropped);
        assert_eq!(said("drop", &[json!([known, accept])]), dropped, "of connections that are there only");
        let ping = json!({ "match": { "op": "==", "left": { "payload": { "protocol": "icmp", "field": "type" } }, "right": "echo-request" } });
        assert_eq!(said("drop", &[json!([ping, accept])]), dropped, "a packet of another kind");
        assert_eq!(said("drop", &[json!([other, accept])]), Fate::Passes, "it may come from there");
        assert_eq!(said("accept", &[json!([other, drop])]), Fate::Passes);
    }
}
