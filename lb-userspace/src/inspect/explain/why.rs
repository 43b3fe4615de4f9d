//! The decision in words. It is `steer`'s; this only finds the step of it that made the difference.

use lb_common::{
    flow::FlowKey,
    node::NODE_DIRECT,
    rank::{Owners, bit},
    reason::{Action, Reason},
    steer::Tables,
    target::Target,
};

use super::{Decision, Judgement, decide, is_agent_alive};
use crate::{config::Names, inspect::words, pinned::Snapshot};

/// The owners that the decision starts from: those in the entry, else those by rank among all configured members.
pub(super) fn owners(snapshot: &Snapshot) -> Owners {
    match snapshot.entry {
        Some(entry) => Owners { primary: entry.primary, backup: entry.backup },
        None => snapshot.rank(snapshot.key.hash(&snapshot.node.hash_key), snapshot.node.configured),
    }
}

pub(super) fn judge(snapshot: &Snapshot, names: &Names, decision: Decision, packet: &str) -> Judgement {
    let this = (snapshot.node.id, words::own_address(&snapshot.node));
    let (reason, member, why) = match decision {
        Decision::End(reason) => (reason, None, end(reason).to_owned()),
        Decision::HandOff(target, reason) => {
            let id = snapshot.member_at(&target.address).unwrap_or(0);
            let why = match reason {
                Reason::HandOffSecondChance => {
                    let name = words::member_name(id, names);
                    format!("records may still be missing here, and {name} may know the flow")
                }
                _ => choice(snapshot, names, id),
            };
            (reason, Some((id, target.address)), why)
        }
        Decision::Deliver(_, reason) => (reason, Some(this), delivery(snapshot, names, packet)),
    };
    Judgement {
        reason: reason.name(),
        action: words::action(reason.action()),
        member: member.map(|(id, address)| words::member(id, address, names)),
        why,
    }
}

/// Why it is delivered here: this member should, or the one that should cannot be reached.
fn delivery(snapshot: &Snapshot, names: &Names, packet: &str) -> String {
    let node = &snapshot.node;
    if node.flags & NODE_DIRECT != 0 && snapshot.entry.is_some_and(|entry| entry.primary != node.id) {
        return "this member knows the flow, and who knows a flow delivers it (handoff = \"direct\")".to_owned();
    }
    let mut reachable = snapshot.clone();
    for member in &mut reachable.members {
        member.next_hop.ifindex = member.next_hop.ifindex.max(1);
    }
    match decide(&reachable, packet) {
        Decision::HandOff(Target { address, .. }, _) => {
            let owner = words::member_name(snapshot.member_at(&address).unwrap_or(0), names);
            format!("{owner} should have it, but the next hop to {owner} is not resolved")
        }
        Decision::Deliver(..) | Decision::End(_) => choice(snapshot, names, snapshot.node.id),
    }
}

/// Why member `id` gets it.
fn choice(snapshot: &Snapshot, names: &Names, id: u8) -> String {
    let owners = owners(snapshot);
    let name = words::member_name(id, names);
    let excuse = |id: u8| {
        if id == 0 { "there is no backup".to_owned() } else { unusable(snapshot, names, id) }
    };
    if id == owners.primary {
        format!("{name} is the primary")
    } else if id == owners.backup {
        format!("{name} is the backup, and {}", excuse(owners.primary))
    } else {
        let (primary, backup) = (excuse(owners.primary), excuse(owners.backup));
        format!("{name} is the best-ranked member that is usable: {primary}, and {backup}")
    }
}

/// Why the owner `id` did not get it.
fn unusable(snapshot: &Snapshot, names: &Names, id: u8) -> String {
    let name = words::member_name(id, names);
    let liveness = &snapshot.liveness;
    let heard = snapshot.probe_heard_ns(id);
    if id != snapshot.node.id && liveness.forwarding & bit(id) == 0 {
        format!("{name} is not forwarding")
    } else if id == snapshot.node.id && !is_agent_alive(snapshot) {
        format!("{name} (this member) owns no new flows while its agent is dead")
    } else if snapshot.entry.is_none() && liveness.eligible & bit(id) == 0 {
        format!("{name} is not eligible")
    } else if !is_agent_alive(snapshot) && id != snapshot.node.id {
        let silence_ms = snapshot.now_ns.saturating_sub(heard) / 1_000_000;
        format!("{name} has not probed for {silence_ms} ms, while the agent here is dead")
    } else {
        format!("{name} is not usable")
    }
}

/// What the reasons mean that end a packet's way.
fn end(reason: Reason) -> &'static str {
    match reason {
        Reason::NotOurs => "the destination is no VIP: the packet is left to the host",
        Reason::NoService => "the destination is a VIP, but no service has this port: the packet is left to the host",
        Reason::DropNoBackend => "the service has no backend in service for this flow",
        Reason::DropNoNextHop => "the way to the target is not resolved: no route, or its neighbour does not answer",
        Reason::DropTooBig => "encapsulated, the packet does not fit the link to the target",
        Reason::Unconfigured => "the agent has not configured the datapath: everything is left to the host",
        Reason::DropMartian => "the source address can only be forged",
        other => match other.action() {
            Action::Pass => "the packet is left to the host",
            Action::Drop => "the packet is dropped",
            Action::Deliver | Action::HandOff | Action::Answer | Action::Consume => "the packet ends here",
        },
    }
}
