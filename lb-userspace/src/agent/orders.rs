//! What is asked over the control socket, answered.

use std::time::Duration;

use lb_common::rank::bit;

use super::{Agent, Wish};
use crate::{
    config,
    control::{
        Change, Order,
        api::{Apply, Backend, Backends, ConfigState, ConfigText, Matched, MemberConfig, Node},
    },
    core::Input,
    inspect::words,
    io::clock::now_ns,
};

impl Agent<'_> {
    /// Does what is asked. Who asked may be gone by now.
    pub(super) fn answer(&mut self, order: Order) {
        match order {
            Order::Node(answer) => _ = answer.send(self.node()),
            Order::Backends(answer) => _ = answer.send(self.backends()),
            Order::DrainNode(drain, answer) => {
                self.core.handle(now_ns(), Input::Drain(drain));
                _ = answer.send(self.node());
            }
            Order::DrainBackend(wanted, answer) => {
                let matched = self.core.backends_named(&wanted.backend, wanted.service.as_deref());
                let (backend, service, drain) = (wanted.backend, wanted.service, wanted.drain);
                self.core.handle(now_ns(), Input::DrainBackend { backend, service, drain });
                _ = answer.send(Matched { matched });
            }
            Order::Config(answer) => _ = answer.send(self.config()),
            Order::ConfigText(answer) => _ = answer.send(ConfigText { text: self.text.to_string() }),
            Order::Change(change, answer) => {
                let wish = match change {
                    Change::Reload => Wish::Reload,
                    Change::Apply(Apply { text, confirm_s, force }) => {
                        Wish::Apply { text, trial: confirm_s.map(Duration::from_secs), is_forced: force }
                    }
                    Change::Confirm => Wish::Confirm,
                    Change::Undo => Wish::Undo { why: "rolled back by hand".into() },
                };
                self.wish(wish, Some(answer));
            }
        }
    }

    fn node(&self) -> Node {
        let (status, me) = (self.core.status(), self.edges.fixed().id);
        let drain = status.drain;
        Node {
            id: me.get(),
            name: self.core.name().to_owned(),
            ready: status.ready && status.eligible & bit(me.get()) != 0,
            incarnation: status.incarnation,
            records: status.records,
            epoch: status.epoch.number,
            pending: status.epoch.is_pending,
            draining: drain.is_some(),
            flows_left: drain.and_then(|drain| drain.left),
        }
    }

    fn config(&self) -> ConfigState {
        let (status, id) = (self.core.status(), self.core.configuration());
        let hex = |hash: u64| format!("{hash:016x}");
        let member = |peer: crate::core::PeerStatus| MemberConfig {
            id: peer.id,
            name: self.core.label(peer.id),
            generation: peer.configuration.map(|(generation, _)| generation),
            hash: peer.configuration.map(|(_, hash)| hex(hash)),
            same: peer.configuration == Some((id.generation, id.hash)),
            refuses: peer.refusal,
        };
        ConfigState {
            generation: id.generation,
            hash: hex(id.hash),
            trial_left_ms: self.trial_ns.map(|end| end.saturating_sub(now_ns()) / 1_000_000),
            pending: status.epoch.is_pending || self.reload.is_some(),
            members: status.peers.into_iter().map(member).collect(),
        }
    }

    fn backends(&self) -> Backends {
        let backend = |backend: crate::core::conditions::BackendStatus| Backend {
            service: backend.service,
            vip: words::vip(&backend.vip).map(|vip| vip.to_string()).unwrap_or_default(),
            name: backend.name,
            address: config::ip(backend.address),
            drained_by_file: backend.drained_by_file,
            drained: backend.drained,
            down: backend.down,
            answers: backend.answers,
            flows: backend.flows,
        };
        Backends { backends: self.core.backends().into_iter().map(backend).collect() }
    }
}
