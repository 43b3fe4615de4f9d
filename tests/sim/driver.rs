//! The driver around the core, as `tandem run` has it: inputs from the edges, outputs to them.

use std::collections::VecDeque;

use lb_common::{flow::FlowEntry, liveness::Liveness, rank::bit, steer::Inserted};
use lb_userspace::core::{
    Input, Key, Output, PutMode,
    records::{amend, restore},
};

use crate::{
    agenda::Happening,
    invariants::Invariant,
    mutation::Mutation,
    owners::Owned,
    time::{MS, Ns, US},
    traitor::is_forged,
    world::World,
};

/// Entries that the sweep reads at a time.
const SWEEP_CHUNK: usize = 8;
/// Rounds in which the core may ask for a tick at once.
const TICKS_AT_ONCE: usize = 100;

impl World {
    /// Hands an input to a member's agent, now.
    pub(crate) fn input(&mut self, member: u8, input: Input) {
        self.input_at(self.now, member, input);
    }

    /// Hands an input to a member's agent, which looks at it not before `at`.
    pub(crate) fn input_at(&mut self, at: Ns, member: u8, input: Input) {
        let Some(agent) = self.hosts.get_mut(&member).and_then(|host| host.agent.as_mut()) else { return };
        agent.inbox.push_back(input);
        let at = at + self.rng.below(50 * US);
        self.wake_at(member, at);
    }

    /// The agent of a member runs at `at`, unless it runs before.
    pub(crate) fn wake_at(&mut self, member: u8, at: Ns) {
        let Some(agent) = self.hosts.get_mut(&member).and_then(|host| host.agent.as_mut()) else { return };
        let at = at.max(agent.paused_until).max(self.now);
        if agent.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            agent.wakes_at = Some(at);
            let run = agent.run;
            self.agenda.plan(at, Happening::Wake { member, run });
        }
    }

    /// The agent's thread runs: inputs, a tick if one is due, outputs.
    pub(crate) fn wake(&mut self, member: u8, run: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let local = host.local(now);
        let (Some(agent), Some(datapath)) = (&mut host.agent, &mut host.datapath) else { return };
        if agent.run != run || agent.wakes_at != Some(now) {
            return;
        }
        agent.wakes_at = None;
        if now < agent.paused_until {
            let until = agent.paused_until;
            self.wake_at(member, until);
            return;
        }
        let mut inputs: VecDeque<Input> =
            datapath.events.take().into_iter().map(|(key, entry)| Input::Observed { key, entry }).collect();
        inputs.append(&mut agent.inbox);
        for input in inputs {
            let dropped = self.mutation == Mutation::ObservesNothing && matches!(input, Input::Observed { .. });
            if !dropped {
                match &input {
                    // What a packet made may be told to peers before it is written again.
                    Input::Observed { key, entry } if agent.ownership.see(*key, Owned::of(entry)) => {
                        self.owned.insert((*key, Owned::of(entry)));
                    }
                    Input::Deleted { key } => agent.ownership.forget(key),
                    _ => {}
                }
                agent.core.handle(local, input);
            }
        }
        for _ in 0..TICKS_AT_ONCE {
            let is_due = agent.core.next_deadline().is_some_and(|deadline| deadline <= local);
            let looks = agent.core.next_look() <= local;
            if !is_due && !looks {
                break;
            }
            if looks {
                for (&member, &heard) in &datapath.heard {
                    agent.core.handle(local, Input::Heard { member, heard });
                }
            }
            agent.core.handle(local, Input::Tick);
        }
        self.carry_out(member, run);
        self.note_status(member);
        self.sleep(member);
    }

    /// Carries out what the core has to say.
    fn carry_out(&mut self, member: u8, run: u64) {
        while let Some(output) =
            self.hosts.get_mut(&member).and_then(|host| host.agent.as_mut()).and_then(|agent| agent.core.poll_output())
        {
            match output {
                Output::Install(tables) => self.on_datapath(member, |datapath| datapath.install(*tables)),
                Output::SetLiveness(liveness) => self.set_liveness(member, liveness),
                Output::SendProbe { to, probe } => {
                    let at = self.network.carry(self.now, member, to);
                    self.record_probe(at, member, to, &probe);
                    self.arrive(at, Happening::Probe { to, from: member, probe });
                }
                Output::PutFlow { key, entry, mode } => self.put_flow(member, run, key, entry, mode),
                Output::DeleteFlow { key, unless_seen_since } => self.delete_flow(member, key, unless_seen_since),
                Output::Dial { peer } => self.dial(member, run, peer),
                Output::Send { session, bytes } => {
                    if self.dies_in_flush(member, session, &bytes) {
                        return;
                    }
                    self.send(session, &bytes);
                }
                Output::Defer { session } => self.mark_bulk(session),
                Output::Close { session } => self.close(session),
                Output::RaiseIncarnation(incarnation) => self.raise_incarnation(member, incarnation),
                // Nothing is published here: nobody asks.
                Output::Judge(_) => {}
                Output::Report(event) => {
                    self.trace(|| format!("member {member}: {event}"));
                    self.note_epoch(member, &event);
                    self.note_server(&event);
                }
                Output::Stopped => {
                    self.kill_agent(member);
                    return;
                }
            }
        }
    }

    /// Notes what the core says of itself, and whether it keeps within its bounds.
    fn note_status(&mut self, member: u8) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let Some(agent) = &mut host.agent else { return };
        let (status, queued) = (agent.core.own_status(), agent.core.longest_queue());
        host.overfull += u64::from(status.records >= self.plan.limits.flows);
        agent.epochs.take(now, &status);
        agent.draining_since = status.drain.map(|_| agent.draining_since.unwrap_or(now));
        let is_ready = status.ready;
        if is_ready != agent.ready_since.is_some() {
            host.vouched_until = now;
            agent.ready_since = is_ready.then_some(now);
        }
        self.check_core(member, &status, queued);
    }

    /// Plans the next time the agent runs; a busy host is late.
    fn sleep(&mut self, member: u8) {
        let Some(host) = self.hosts.get(&member) else { return };
        let Some(agent) = &host.agent else { return };
        let Some(deadline) = agent.core.next_deadline() else { return };
        let at = host.global(deadline.min(agent.core.next_look())).max(self.now);
        let late = if self.rng.chance(5) { self.rng.below(8 * MS) } else { self.rng.below(100 * US) };
        self.wake_at(member, at + late);
    }

    fn on_datapath(&mut self, member: u8, act: impl FnOnce(&mut crate::datapath::Datapath)) {
        if let Some(datapath) = self.hosts.get_mut(&member).and_then(|host| host.datapath.as_mut()) {
            act(datapath);
        }
    }

    fn set_liveness(&mut self, member: u8, mut liveness: Liveness) {
        let is_eligible = liveness.eligible & bit(member) != 0;
        self.note_forwarding(member, liveness.forwarding);
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let announces = is_eligible && !host.announced;
        host.announced |= is_eligible;
        match self.mutation {
            Mutation::AllEligible => liveness.eligible = host_mask(host.datapath.as_ref()),
            Mutation::AllForwarding => liveness.forwarding = host_mask(host.datapath.as_ref()),
            Mutation::EternalLease => liveness.lease_until_ns = u64::MAX,
            Mutation::ForgetsGrace => liveness.grace_until_ns = 0,
            Mutation::DrainsInWordsOnly => liveness.eligible |= bit(member),
            _ => {}
        }
        if let Some(datapath) = &mut host.datapath {
            let lost = datapath.liveness.forwarding & !liveness.forwarding;
            datapath.liveness = liveness;
            self.judge_suspicion(member, lost);
        }
        if announces {
            self.trace(|| format!("member {member}: ready"));
            self.tell_router(member, true, 50 * MS);
        }
    }

    fn put_flow(&mut self, member: u8, run: u64, key: Key, wanted: FlowEntry, mode: PutMode) {
        if is_forged(wanted.term) {
            self.violate(Invariant::NoForgery, || format!("member {member} believes {wanted:?}"));
        }
        self.judge_owners(member, &key, &wanted);
        let mutation = self.mutation;
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let Some(datapath) = &host.datapath else { return };
        let mut flows = datapath.flows.borrow_mut();
        flows.write_waiting(&key);
        let found = match (flows.get(&key), mode) {
            (Some(found), PutMode::Insert) => Some(found),
            (Some(found), PutMode::Amend | PutMode::Restore) => {
                let keeps = mutation == Mutation::KeepsTerms && member == 1 && wanted.term > found.term;
                let wanted = FlowEntry { term: if keeps { found.term } else { wanted.term }, ..wanted };
                let mended = if mode == PutMode::Restore { restore } else { amend }(&found, &wanted);
                flows.wait_to_write(key, mended);
                let wait = if self.rng.chance(100) { 50 * MS } else { 200 * US };
                let at = self.now + self.rng.below(wait);
                self.agenda.plan(at, Happening::Write { member, run, key });
                None
            }
            (None, _) => {
                if mutation != Mutation::ForgetsPeersRecords && flows.insert(&key, &wanted) == Inserted::Full {
                    host.overfull += 1;
                }
                None
            }
        };
        drop(flows);
        if let Some(entry) = found {
            self.input(member, Input::Observed { key, entry });
        }
    }

    /// The write half of `Amend`.
    pub(crate) fn write(&mut self, member: u8, run: u64, key: &Key) {
        if self.is_running(member, run) {
            self.on_datapath(member, |datapath| datapath.flows.borrow_mut().write_waiting(key));
        }
    }

    fn delete_flow(&mut self, member: u8, key: Key, unless_seen_since: u32) {
        let Some(datapath) = self.hosts.get_mut(&member).and_then(|host| host.datapath.as_mut()) else { return };
        let mut flows = datapath.flows.borrow_mut();
        flows.write_waiting(&key);
        let found = flows.get(&key);
        let asks = self.mutation != Mutation::ExpiresUnasked;
        let spared = found.filter(|entry| asks && (entry.last_seen.wrapping_sub(unless_seen_since) as i32) > 0);
        if spared.is_none() {
            flows.remove(&key);
        }
        drop(flows);
        match spared {
            Some(entry) => self.input(member, Input::Observed { key, entry }),
            None => {
                if let Some(entry) = found {
                    self.judge_expiry(member, &key, &entry);
                }
                self.input(member, Input::Deleted { key });
            }
        }
    }

    fn raise_incarnation(&mut self, member: u8, incarnation: u32) {
        if let Some(host) = self.hosts.get_mut(&member) {
            host.keep_incarnation(incarnation);
        }
    }

    /// The sweep reads its next chunk; packets come between two chunks.
    pub(crate) fn sweep(&mut self, member: u8, run: u64) {
        if !self.is_running(member, run) {
            return;
        }
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let (Some(agent), Some(datapath)) = (&mut host.agent, &host.datapath) else { return };
        let mut flows = datapath.flows.borrow_mut();
        if agent.sweep.is_empty() {
            agent.sweep = flows.iter().map(|(key, _)| key).collect();
        }
        for _ in 0..SWEEP_CHUNK {
            let Some(key) = agent.sweep.pop_front() else { break };
            flows.write_waiting(&key);
            if let Some(mut entry) = flows.get(&key) {
                if self.mutation == Mutation::HidesTraffic {
                    entry.last_seen = entry.created;
                }
                agent.inbox.push_back(Input::Observed { key, entry });
            }
        }
        let is_over = agent.sweep.is_empty();
        if is_over {
            agent.inbox.push_back(Input::Swept);
        }
        let victim = if is_over && self.mutation == Mutation::ExpiresEarly { flows.iter().next() } else { None };
        drop(flows);
        if let Some((key, entry)) = victim {
            self.delete_flow(member, key, entry.last_seen);
        }
        let pause = if is_over { self.plan.sweep_interval } else { MS };
        self.wake_at(member, now);
        if is_over && self.mutation == Mutation::NeverSweeps {
            return;
        }
        self.agenda.plan(now + pause, Happening::Sweep { member, run });
    }
}

fn host_mask(datapath: Option<&crate::datapath::Datapath>) -> u64 {
    datapath.map_or(0, |datapath| datapath.installed.node.configured)
}
