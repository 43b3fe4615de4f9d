//! What is asked over the control socket, answered.

use lb_common::rank::bit;

use super::Agent;
use crate::{
    config,
    control::{
        Order,
        api::{Backend, Backends, Matched, Node},
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
            Order::Reload(answer) => _ = answer.send(self.read_again()),
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
