//! Whatever happens, and in whatever order: once everybody hears everybody again, all tables are equal.

use lb_common::flow::{STATE_CLOSING, STATE_RESET, STATE_YOUNG};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A packet of a client is delivered at a host; its first one makes an entry there, whatever others know.
    Packet(u8, u16, u8),
    /// The client closes, as a host sees it.
    Close(u8, u16, u8),
    Kill(u8),
    Start(u8),
    /// The host loses its maps as well.
    Reboot(u8),
    Cut(u8, u8),
    Heal,
    Sweep(u8),
    Run(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (host, client) = (1..=3_u8, 0..6_u16);
    prop_oneof![
        6 => (host.clone(), client.clone(), STATE_YOUNG..=STATE_ESTABLISHED).prop_map(|(h, c, s)| Step::Packet(h, c, s)),
        3 => (host.clone(), client, STATE_CLOSING..=STATE_RESET).prop_map(|(h, c, s)| Step::Close(h, c, s)),
        1 => host.clone().prop_map(Step::Kill),
        2 => host.clone().prop_map(Step::Start),
        1 => host.clone().prop_map(Step::Reboot),
        2 => (host.clone(), 1..=3_u8).prop_map(|(a, b)| Step::Cut(a, b)),
        2 => Just(Step::Heal),
        3 => host.prop_map(Step::Sweep),
        4 => (0..300_u64).prop_map(|ms| Step::Run(ms * MS)),
        2 => (0..60_u64).prop_map(|s| Step::Run(s * S)),
    ]
}

/// A case takes a tenth of a second: few in every run, as many as `PROPTEST_CASES` says in a long one.
fn config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() };
    ProptestConfig { cases: if asked { default.cases } else { 32 }, ..default }
}

/// Three members that probe ten times a second: hours pass quickly.
fn slow_net() -> Net {
    let mut net = Net::idle();
    for id in 1..=3 {
        let probing = Probing { interval: Duration::from_millis(100), misses: 5 };
        net.add(View { probing, ..view(id, 3) });
        net.start(id);
    }
    net.run(2 * S);
    net
}

impl Net {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet(host, client, state) if self.hosts[&host].flows.contains_key(&key(client)) => {
                let _ = state;
                self.packet(host, client);
            }
            Step::Packet(host, client, state) => self.begin_at(host, client, state),
            Step::Close(host, client, state) => {
                let now = tick(self.now);
                if let Some(entry) = self.host(host).flows.get_mut(&key(client)) {
                    (entry.state, entry.last_seen) = (entry.state.max(state), now);
                    let entry = *entry;
                    self.input(host, Input::Observed { key: key(client), entry });
                }
            }
            Step::Kill(host) => self.kill(host),
            Step::Start(host) => {
                if self.hosts[&host].core.is_none() {
                    self.start(host);
                }
            }
            Step::Reboot(host) => {
                self.kill(host);
                self.host(host).flows.clear();
                self.host(host).tables = None;
                self.start(host);
            }
            Step::Cut(from, to) => {
                self.cut.insert((from, to));
            }
            Step::Heal => self.cut.clear(),
            Step::Sweep(host) => self.sweep(host),
            Step::Run(duration) => self.run(duration),
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn all_tables_are_equal_in_the_end(steps in prop::collection::vec(step(), 1..60)) {
        let mut net = slow_net();
        steps.iter().for_each(|step| net.step(step));
        net.cut.clear();
        for id in 1..=3 {
            net.step(&Step::Start(id));
        }
        // Long enough for all that is closing to end, wherever it was heard of last: members let go at different times.
        for _ in 0..75 {
            net.run(4 * S);
            net.sweep_all();
        }
        net.run(S);
        net.check_digests();
        for client in 0..6 {
            let key = key(client);
            let alive = |id: u8| net.core(id).record(&key).filter(|record| !record.is_tombstone());
            let known = alive(1);
            for id in 2..=3 {
                prop_assert_eq!(alive(id), known, "client {} at member {}", client, id);
            }
            for id in 1..=3 {
                let entry = net.hosts[&id].flows.get(&key);
                let address = |entry: &FlowEntry| server(entry.backend as u8);
                let said = entry.map(|entry| records::Record::of(entry, address(entry)));
                prop_assert_eq!(said, known, "the map of member {}, client {}", id, client);
            }
        }
    }
}
