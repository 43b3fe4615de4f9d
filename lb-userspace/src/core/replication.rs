//! Flows as they are observed here and as peers tell of them: one record of both, in the map and with the peers.
//!
//! The map is the truth about what passes here, an event or a sweep shows a piece of it, any number of times and in any
//! order. What is higher goes into the record and to the peers; what is lower is amended.

use lb_common::flow::{EVENT_ASKED, FlowEntry, FlowKey, PLAUSIBLE_TICKS, STATE_DELETED, tick, ticks_of_ms};

use super::{
    Core, Key, Output, PutMode,
    event::Event,
    records::{Record, age, is_after, is_plausible, later, next_count},
    table::{Place, Row},
    wire::{self, Item},
};

/// Packets that a member has seen this much later than another may be the same ones: times travel as ages, and
/// travelling takes time.
const SLACK: u32 = ticks_of_ms(1000);
/// Ages on the wire are cut to this, half of what ticks can tell apart: 13 days.
const IDLE_MS_MAX: u32 = 13 * 24 * 3600 * 1000;

impl Core {
    /// An entry of the map, as it was a moment ago.
    pub(crate) fn observed(&mut self, now: u64, key: Key, entry: &FlowEntry) {
        let known = self.table.find(&key).filter(|&number| self.is_damaged(now, number, entry));
        if let Some(number) = known {
            self.repair(now, number, entry);
            return;
        }
        if entry.tag != key.tag() {
            // An element that the kernel was about to give to another flow.
            return;
        }
        let Some(address) = self.slots.address(entry.backend, &key) else {
            // No packet of it can be delivered; in the map it would stay for ever.
            self.outputs.push_back(Output::DeleteFlow { key, unless_seen_since: entry.last_seen });
            return;
        };
        let record = Record::of(entry, address);
        if let Some(later) = self.forgotten_start(&record) {
            self.raise_incarnation(now, self.view.me, later);
        }
        if record.is_tombstone() || wire::check(&key, &record).is_err() || !self.is_of_a_start(&record) {
            // Peers would not believe it.
            return;
        }
        // A backend that was removed and configured again may have two slots for a while.
        let slot = self.slots.find(&key, &address).unwrap_or(entry.backend);
        match self.table.find(&key) {
            None => {
                let number = self.add(key, record, slot, entry.created, entry.last_seen);
                if let Some(row) = self.table.row_mut(number) {
                    // Peers know what this member told before it was restarted.
                    row.shared = !self.has_swept;
                }
                if slot != entry.backend {
                    self.put(number, PutMode::Amend);
                } else if let Some(row) = self.table.row_mut(number) {
                    row.mapped = true;
                }
                self.tell_if_plausible(now, number);
            }
            Some(number) => {
                let Some(row) = self.table.row_mut(number) else { return };
                row.swept = self.sweep;
                row.expiring = false;
                if row.record.is_tombstone() {
                    self.observed_after_end(now, number, entry, record, slot);
                } else {
                    self.observed_again(now, number, entry, record, slot);
                }
            }
        }
        if entry.event == EVENT_ASKED {
            self.asked_for(now, &key);
        }
    }

    /// A member that lacks the record had this one deliver a packet of the flow: it is told, though there is no news, and
    /// with it everybody, because the event does not say who it was.
    fn asked_for(&mut self, now: u64, key: &Key) {
        let Some(number) = self.table.find(key) else { return };
        if self.table.row(number).is_some_and(|row| !row.record.is_tombstone()) {
            self.table.change(number, |row| row.plausible = true);
            self.tell_all(now, number);
        }
    }

    /// Whether the map no longer holds what it was seen to hold, in a way that XDP cannot have brought about.
    ///
    /// XDP writes times and the lifecycle; a flow that it places anew begins at another time, as a later generation.
    fn is_damaged(&self, now: u64, number: u32, entry: &FlowEntry) -> bool {
        let known = self.table.row(number).filter(|row| row.mapped && !row.expiring && !row.record.is_tombstone());
        known.is_some_and(|row| {
            let wanted = row.record.entry(row.slot, row.key.tag(), row.created, row.last_seen);
            let placed = |e: &FlowEntry| {
                (e.backend, e.creator, e.creator_incarnation, e.generation, e.term, e.primary, e.backup)
            };
            let is_same_time = entry.created == wanted.created;
            let is_same_place = placed(entry) == placed(&wanted);
            entry.tag != wanted.tag
                || is_same_time != is_same_place
                || !is_plausible(entry, wanted.revision)
                || is_after(entry.last_seen, tick(now).wrapping_add(SLACK))
        })
    }

    /// Writes a damaged entry as it was; what XDP may have done to it since, it may have.
    fn repair(&mut self, now: u64, number: u32, entry: &FlowEntry) {
        self.restored += 1;
        if let Some(row) = self.table.row_mut(number)
            && !is_after(entry.last_seen, tick(now).wrapping_add(SLACK))
        {
            row.last_seen = later(row.last_seen, entry.last_seen);
        }
        self.put(number, PutMode::Restore);
    }

    fn observed_again(&mut self, now: u64, number: u32, entry: &FlowEntry, record: Record, slot: u16) {
        let Some(&Row { record: known, key, .. }) = self.table.row(number) else { return };
        let merged = known.merge(&record);
        self.rewrite(now, number, merged);
        let refresh = self.timeout_ticks(&key, merged.lifecycle.state) / 4;
        let Some(row) = self.table.row_mut(number) else { return };
        row.last_seen = later(row.last_seen, entry.last_seen);
        // An agent's write keeps the time of an entry that was there.
        row.created = entry.created;
        row.mapped = slot == entry.backend && merged.is_placed_as(&record);
        let is_due = age(row.last_seen, row.told) >= refresh;
        if merged != record || slot != entry.backend {
            self.put(number, PutMode::Amend);
        }
        if merged != known {
            self.tell_if_plausible(now, number);
        } else if is_due {
            self.tell_all(now, number);
        }
    }

    /// The map holds an entry of a flow that has ended: a new flow, one that goes on, or one that is yet to be deleted.
    fn observed_after_end(&mut self, now: u64, number: u32, entry: &FlowEntry, mut record: Record, slot: u16) {
        let Some(&Row { record: ended, last_seen, created: end, key, .. }) = self.table.row(number) else { return };
        let deadline = last_seen.wrapping_add(SLACK);
        if record.generation <= ended.generation {
            if !is_after(end, entry.created) {
                record.generation = next_count(ended.generation);
            } else if is_after(entry.last_seen, deadline) {
                record = going_on(&ended, &record);
            }
        }
        if ended.merge(&record) != record || record.is_tombstone() {
            // Later than any of its packets, where it has had some: spared, it would be asked about again, without end.
            let unless_seen_since = later(deadline, entry.last_seen);
            self.outputs.push_back(Output::DeleteFlow { key, unless_seen_since });
            return;
        }
        self.revive(number, record, slot, entry.created, entry.last_seen);
        self.table.change(number, |row| row.plausible = false);
        self.put(number, PutMode::Amend);
        self.tell_if_plausible(now, number);
    }

    /// A peer's record.
    pub(crate) fn apply(&mut self, now: u64, peer: u8, item: &Item) {
        let seen = tick(now).wrapping_sub(ticks_of_ms(u64::from(item.idle_ms.min(IDLE_MS_MAX))));
        let ended = tick(now).wrapping_sub(ticks_of_ms(u64::from(item.ended_s) * 1000));
        if item.record.is_tombstone() {
            self.parked.remove(&item.key);
        }
        let Some(number) = self.table.find(&item.key) else {
            match self.slots.find(&item.key, &item.record.backend.address) {
                _ if item.record.is_tombstone() => self.learn_end(now, item, seen, ended),
                Some(slot) => self.learn(item, slot, seen),
                None => self.park(peer, item, seen),
            }
            return;
        };
        let Some(&Row { record: known, last_seen, .. }) = self.table.row(number) else { return };
        let mut merged = known.merge(&item.record);
        // The merged backend may be ours or theirs; a flow that was dead, or moves, needs its slot anew.
        let needs_slot =
            !merged.is_tombstone() && (known.is_tombstone() || merged.backend.address != known.backend.address);
        let slot = self.slots.find(&item.key, &merged.backend.address);
        if needs_slot && slot.is_none() {
            self.park(peer, item, seen);
            return;
        }
        if known.is_tombstone() && !merged.is_tombstone() && !self.has_room_for_flow() {
            return;
        }
        let ends = merged.is_tombstone() && !known.is_tombstone();
        let alive = going_on(&merged, &known);
        let is_refused = ends && is_after(last_seen, seen.wrapping_add(SLACK)) && merged.merge(&alive) == alive;
        if is_refused {
            // The flow has passed here after it ended there.
            merged = alive;
        }
        let was_private = self.table.row(number).is_some_and(Row::is_private);
        self.table.change(number, |row| (row.shared, row.plausible) = (true, true));
        self.take_over(now, number, merged, slot.unwrap_or_default(), [seen, ended]);
        // Nobody has said yet what two records made together, nor what this member alone knew of a young flow.
        let is_news = merged != item.record && (was_private || merged != known);
        if is_refused || is_news {
            self.tell_all(now, number);
        } else if merged != item.record {
            self.tell(now, number, peer);
        }
    }

    /// Makes the row's record `merged`, by the word of a peer by whom the flow was last seen, and has perhaps ended, then.
    fn take_over(&mut self, now: u64, number: u32, merged: Record, slot: u16, [seen, ended]: [u32; 2]) {
        let Some(&Row { record: known, last_seen, key, .. }) = self.table.row(number) else { return };
        match (known.is_tombstone(), merged.is_tombstone()) {
            (true, true) => self.rewrite(now, number, merged),
            (true, false) => {
                self.revive(number, merged, slot, seen, seen);
                self.put(number, PutMode::Insert);
            }
            (false, true) => {
                self.end(now, number, merged, later(last_seen, seen), ended);
                self.correct(now, number);
                self.outputs.push_back(Output::DeleteFlow { key, unless_seen_since: seen.wrapping_add(SLACK) });
            }
            (false, false) => {
                self.rewrite(now, number, merged);
                let Some(row) = self.table.row_mut(number) else { return };
                row.last_seen = later(last_seen, seen);
                row.told = later(row.told, seen);
                if is_after(seen, last_seen) {
                    row.expiring = false;
                }
                if merged != known || is_after(seen, last_seen) {
                    self.put(number, PutMode::Amend);
                }
            }
        }
    }

    fn learn(&mut self, item: &Item, slot: u16, seen: u32) {
        if !self.has_room_for_flow() {
            return;
        }
        let number = self.add(item.key, item.record, slot, seen, seen);
        self.table.change(number, |row| (row.shared, row.plausible) = (true, true));
        self.put(number, PutMode::Insert);
    }

    /// Whether another flow of a peer may be kept.
    fn has_room_for_flow(&mut self) -> bool {
        let has_room = self.live() < self.view.limits.flows;
        if !has_room && !self.is_full {
            self.is_full = true;
            self.report(Event::TableFull { flows: self.view.limits.flows });
        }
        has_room
    }

    /// An end of a flow that is not known here: another member may still believe in it, and tell of it later.
    fn learn_end(&mut self, now: u64, item: &Item, seen: u32, ended: u32) {
        if age(tick(now), ended) >= self.tombstone_ticks() {
            return;
        }
        let number = self.add(item.key, item.record, 0, ended, seen);
        if let Some(row) = self.table.row_mut(number) {
            row.shared = true;
        }
        self.bury(now, number);
        if self.tombstones.count > self.view.limits.tombstones {
            // A peer may tell of more ends between two rounds than there is room for.
            self.forget_tombstones(now);
        }
        if !self.has_swept {
            // An adopted map may hold it, and would show it as a flow that nobody knows.
            self.outputs.push_back(Output::DeleteFlow { key: item.key, unless_seen_since: seen.wrapping_add(SLACK) });
        }
    }

    fn park(&mut self, peer: u8, item: &Item, seen: u32) {
        if self.parked.is_empty() {
            let peer = self.label(peer);
            self.report(Event::Parked { peer });
        }
        self.parked.insert(peer, item, seen, self.view.limits.parked);
    }

    /// Applies what was parked, now that the configuration has changed; what is still unknown is parked again.
    pub(crate) fn unpark(&mut self, now: u64) {
        let parked = self.parked.take();
        let before = parked.len();
        if before == 0 {
            return;
        }
        for (peer, mut item, seen) in parked {
            (item.idle_ms, item.ended_s) = (idle_ms(now, seen), 0);
            self.apply(now, peer, &item);
        }
        let records = before.saturating_sub(self.parked.len());
        if records > 0 {
            self.report(Event::Unparked { records });
        }
    }

    /// Tells the peers of a record that is worth it, or sees to it that a young one is looked at when it is.
    fn tell_if_plausible(&mut self, now: u64, number: u32) {
        if self.epochs.is_hasty(now) {
            self.reveal(number);
        }
        let Some(row) = self.table.row(number) else { return };
        if row.is_private() {
            let left = PLAUSIBLE_TICKS.saturating_sub(age(tick(now), row.created));
            self.young.push(now + (u64::from(left) << 20), number);
        } else {
            self.tell_all(now, number);
        }
    }

    /// Young flows that have become old enough are replicated, and stay young: a handshake alone earns no long timeout.
    pub(crate) fn promote(&mut self, now: u64) {
        while let Some(number) = self.young.pop_due(now) {
            let Some(row) = self.table.row(number) else { continue };
            // The row may have come to be another flow's, which has its own place in the queue.
            if row.is_private() && age(tick(now), row.created) >= PLAUSIBLE_TICKS {
                self.table.change(number, |row| row.plausible = true);
                self.tell_all(now, number);
            }
        }
    }

    fn add(&mut self, key: Key, record: Record, slot: u16, created: u32, last_seen: u32) -> u32 {
        self.slots.retain(slot);
        let row = Row {
            key,
            record,
            slot,
            last_seen,
            created,
            told: last_seen,
            queued: 0,
            shared: false,
            plausible: false,
            expiring: false,
            swept: self.sweep,
            mapped: false,
            place: Place::default(),
        };
        self.census.add(&row);
        self.table.insert(row)
    }

    /// Changes the record of a row that stays alive, or stays dead.
    pub(crate) fn rewrite(&mut self, now: u64, number: u32, record: Record) {
        let Some((key, old)) = self.table.change(number, |row| {
            row.record = record;
            (row.key, row.slot)
        }) else {
            return;
        };
        // Also when the backend is the same: it may have been given another slot.
        let slot = self.slots.find(&key, &record.backend.address).filter(|&slot| slot != old && !record.is_tombstone());
        if let Some(slot) = slot
            && let Some(row) = self.table.row_mut(number)
        {
            row.slot = slot;
            self.slots.retain(slot);
            self.slots.release(now, old);
        }
    }

    fn revive(&mut self, number: u32, record: Record, slot: u16, created: u32, last_seen: u32) {
        let sweep = self.sweep;
        let revived = self.table.change(number, |row| {
            (row.record, row.slot, row.created, row.last_seen, row.told) =
                (record, slot, created, last_seen, last_seen);
            (row.expiring, row.swept) = (false, sweep);
        });
        if revived.is_none() {
            return;
        }
        self.slots.retain(slot);
        self.tombstones.count -= 1;
    }

    /// Turns a live row into a tombstone of a flow whose last known packet was at tick `last_seen`.
    pub(crate) fn end(&mut self, now: u64, number: u32, mut record: Record, last_seen: u32, ended: u32) {
        record.lifecycle.state = STATE_DELETED;
        let slot = self.table.change(number, |row| {
            (row.record, row.created, row.last_seen, row.expiring) = (record, ended, last_seen, false);
            std::mem::take(&mut row.slot)
        });
        let Some(slot) = slot else { return };
        self.slots.release(now, slot);
        self.bury(now, number);
    }

    pub(crate) fn put(&mut self, number: u32, mode: PutMode) {
        let Some(row) = self.table.row_mut(number) else { return };
        row.swept = self.sweep;
        let entry = row.record.entry(row.slot, row.key.tag(), row.created, row.last_seen);
        self.outputs.push_back(Output::PutFlow { key: row.key, entry, mode });
    }

    /// Live records.
    pub(crate) fn live(&self) -> usize {
        self.table.len() - self.tombstones.count
    }
}

/// The record of a flow that has ended elsewhere, and has been seen here after its last packet there.
///
/// If it is the flow that both know, its next revision. If not, another flow has used the tuple while the members did not
/// hear each other: the living one's registers stay together, in a generation above the dead one's.
fn going_on(ended: &Record, alive: &Record) -> Record {
    let mut record = *alive;
    if ended.generation == alive.generation && ended.backend == alive.backend {
        record.owners = ended.owners.max(alive.owners);
        record.lifecycle.revision = next_count(ended.lifecycle.revision.max(alive.lifecycle.revision));
    } else {
        record.generation = next_count(ended.generation.max(alive.generation));
    }
    record
}

/// Whole seconds since tick `ended`.
pub(crate) fn ended_s(now: u64, ended: u32) -> u8 {
    u8::try_from(idle_ms(now, ended) / 1000).unwrap_or(u8::MAX)
}

/// Milliseconds since tick `last_seen`.
pub(crate) fn idle_ms(now: u64, last_seen: u32) -> u32 {
    let ms = lb_common::flow::ms_of_ticks(age(tick(now), last_seen));
    u32::try_from(ms).unwrap_or(u32::MAX)
}
