//! Records: what members tell each other about a flow, and how two of them become one.

use lb_common::flow::FlowEntry;

/// What a flow's entry shall hold, given what XDP has made of it meanwhile.
///
/// `wanted` decides, except that `last_seen` never goes back, and that XDP's lifecycle stays where it is higher.
/// An entry that XDP has placed anew (a higher generation) stays as it is: its event is on the way.
pub fn amend(existing: &FlowEntry, wanted: &FlowEntry) -> FlowEntry {
    if existing.generation > wanted.generation {
        return *existing;
    }
    let mut entry = *wanted;
    entry.last_seen = later(existing.last_seen, wanted.last_seen);
    if existing.generation == wanted.generation {
        entry.created = existing.created;
        entry.packets = existing.packets;
        if (existing.revision, existing.state) > (wanted.revision, wanted.state) {
            entry.revision = existing.revision;
            entry.state = existing.state;
        }
    }
    entry
}

/// Whether tick `a` is after tick `b`; ticks wrap.
pub(crate) const fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// The later of two ticks.
pub(crate) const fn later(a: u32, b: u32) -> u32 {
    if is_after(a, b) { a } else { b }
}
