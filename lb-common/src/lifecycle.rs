//! What a packet does to the lifecycle of a flow that is known.

use crate::{
    flow::{FlowEntry, PLAUSIBLE_PACKETS, REVIVAL_PACKETS, STATE_CLOSING, STATE_ESTABLISHED, STATE_RESET, STATE_YOUNG},
    packet::{FIN, Packet, RST, SYN},
};

/// The fields of an entry that the datapath writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// See `FlowEntry`.
    pub last_seen: u32,
    /// See `FlowEntry`.
    pub revision: u16,
    /// See `FlowEntry`.
    pub state: u8,
    /// See `FlowEntry`.
    pub packets: u8,
}

/// What a packet means for the lifecycle of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection begins.
    Syn,
    /// The client has no more to say.
    Fin,
    /// The client aborts.
    Rst,
    /// Anything else with payload.
    Data,
    /// Anything else without.
    Bare,
}

impl Kind {
    #[inline(always)]
    /// The strongest flag decides: RST, SYN, FIN, then payload.
    pub fn of<K>(packet: &Packet<K>) -> Self {
        if packet.flags & RST != 0 {
            Self::Rst
        } else if packet.flags & SYN != 0 {
            Self::Syn
        } else if packet.flags & FIN != 0 {
            Self::Fin
        } else if packet.has_payload {
            Self::Data
        } else {
            Self::Bare
        }
    }
}

/// The lifecycle after a packet, and whether the agent must hear of it.
///
/// ```text
///          third packet              FIN                 RST
///   YOUNG ------------> ESTABLISHED ----> CLOSING ----------------> RESET
///                          ^  |              | data, or third bare    |
///                          |  +-- RST -------|----------------------->|
///                          +--- revival -----+------- not RST, SYN ---+
/// ```
///
/// A young flow takes FIN and RST like an established one: a handshake that is closed at once has a short timer.
/// Law 5: nothing here destroys an entry, and a SYN changes nothing.
#[inline(always)]
pub fn next_step(entry: &FlowEntry, kind: Kind, now: u32) -> (Lifecycle, bool) {
    let count = entry.packets.saturating_add(1);
    let (state, packets, revives) = match (entry.state, kind) {
        (STATE_YOUNG, Kind::Data | Kind::Bare) if count >= PLAUSIBLE_PACKETS => (STATE_ESTABLISHED, count, false),
        (STATE_YOUNG, Kind::Data | Kind::Bare) => (STATE_YOUNG, count, false),
        (STATE_YOUNG, Kind::Syn) => (STATE_YOUNG, entry.packets, false),
        (STATE_CLOSING, Kind::Data) => (STATE_ESTABLISHED, 0, true),
        (STATE_CLOSING, Kind::Bare) if count >= REVIVAL_PACKETS => (STATE_ESTABLISHED, 0, true),
        (STATE_CLOSING, Kind::Bare) => (STATE_CLOSING, count, false),
        (STATE_CLOSING, Kind::Syn | Kind::Fin) => (STATE_CLOSING, entry.packets, false),
        (STATE_CLOSING, Kind::Rst) => (STATE_RESET, 0, false),
        (STATE_RESET, Kind::Data | Kind::Bare) => (STATE_ESTABLISHED, 0, true),
        (STATE_RESET, Kind::Fin) => (STATE_CLOSING, 0, true),
        (STATE_RESET, Kind::Syn | Kind::Rst) => (STATE_RESET, entry.packets, false),
        // YOUNG too, and ESTABLISHED; an entry holds no other state.
        (_, Kind::Fin) => (STATE_CLOSING, 0, false),
        (_, Kind::Rst) => (STATE_RESET, 0, false),
        (_, Kind::Syn | Kind::Data | Kind::Bare) => (entry.state, entry.packets, false),
    };
    let revision = if revives { entry.revision.saturating_add(1) } else { entry.revision };
    (Lifecycle { last_seen: now, revision, state, packets }, state != entry.state)
}

#[cfg(test)]
mod tests;
