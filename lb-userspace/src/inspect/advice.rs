//! What `docs/reasons.md` says of a reason, for whoever has it before them and not the documentation.

use lb_common::reason::{Action, Reason};
use serde::Serialize;

use super::status::Readings;

const DOCUMENTATION: &str = include_str!("../../../docs/reasons.md");

/// Packets that were dropped for one reason; `tandem get drops -o json` prints a list of these. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The reason's name.
    pub reason: &'static str,
    /// Packets, since the maps were made.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// What it is.
    pub meaning: String,
    /// Why it happens, where that is not plain.
    pub cause: Option<String>,
    /// What to do.
    pub cure: Option<String>,
}

/// What was dropped, most first; reasons that did not happen are left out.
pub fn drops(readings: &Readings) -> Vec<Dropped> {
    let of_drops = Reason::ALL.iter().filter(|reason| reason.action() == Action::Drop);
    let mut drops: Vec<_> = of_drops
        .filter_map(|reason| {
            let counter = readings.counters.get(*reason as usize).filter(|counter| counter.packets != 0)?;
            let section = section(*reason);
            Some(Dropped {
                reason: reason.name(),
                packets: counter.packets,
                bytes: counter.bytes,
                meaning: part(&section, None),
                cause: Some(part(&section, Some("**Cause**: "))).filter(|text| !text.is_empty()),
                cure: Some(part(&section, Some("**Cure**: "))).filter(|text| !text.is_empty()),
            })
        })
        .collect();
    drops.sort_by_key(|dropped| std::cmp::Reverse(dropped.packets));
    drops
}

/// The text about a reason, on one line.
fn section(reason: Reason) -> String {
    let (_, after) = DOCUMENTATION.split_once(&format!("\n### `{}`\n", reason.name())).unwrap_or_default();
    let text = after.split("\n#").next().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What follows `mark`, or the beginning, up to the next mark.
fn part(section: &str, mark: Option<&str>) -> String {
    let text = match mark {
        None => section,
        Some(mark) => section.split_once(mark).map(|(_, after)| after).unwrap_or_default(),
    };
    text.split("**C").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::fixture::readings;

    #[test]
    fn every_drop_says_what_it_is_and_what_to_do() {
        let mut readings = readings();
        for reason in Reason::ALL {
            readings.counters[*reason as usize].packets = *reason as u64 + 1;
        }
        let drops = drops(&readings);
        assert_eq!(drops.len(), Reason::ALL.iter().filter(|reason| reason.action() == Action::Drop).count());
        assert!(drops.is_sorted_by_key(|dropped| std::cmp::Reverse(dropped.packets)));
        for dropped in &drops {
            assert!(dropped.meaning.len() > 10 && !dropped.meaning.contains("**"), "{dropped:?}");
            assert!(
                dropped.cure.as_ref().is_some_and(|cure| cure.ends_with('.') && !cure.contains('\n')),
                "{dropped:?}"
            );
        }
        let ttl = drops.iter().find(|dropped| dropped.reason == "drop_ttl").unwrap();
        assert_eq!(ttl.cause.as_deref(), Some("traceroute, a routing loop."));
        assert_eq!(ttl.cure.as_deref(), Some("look for the loop if it does not stop."));
    }
}
