//! The acceptance rows that are too long, or too dependent on time, for a test run.

mod apply;
mod differential;
pub mod floods;
mod joiner;
mod kernel;
mod liveness;
mod machine;
mod package;
mod page;
mod replication;
mod seeing;
mod shows;
mod survival;

use anyhow::Result;

use crate::check::Check;

/// A row: a question with figures for an answer.
pub struct Row {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it asks.
    pub what: &'static str,
    /// Measures.
    pub run: fn() -> Result<Vec<Check>>,
}

/// Every row.
pub const ROWS: &[Row] = &[
    Row { name: "demo", what: "200 connections lose their primary while the servers change", run: shows::demo },
    Row { name: "naive", what: "the same schedule breaks connections when nothing is shared", run: shows::naive },
    Row {
        name: "agent-kill",
        what: "kill -9 of an agent at 5,000 datagrams a second, against control runs",
        run: survival::kill,
    },
    Row { name: "agent-stop", what: "the same with a planned stop and a restart of the agent", run: survival::stop },
    Row {
        name: "upgrade",
        what: "the same with another program under the running agent, then another agent with its program",
        run: survival::upgrade,
    },
    Row {
        name: "detection",
        what: "30 crashes: how soon each survivor notices, with the default probes",
        run: liveness::detection,
    },
    Row {
        name: "detection-fast",
        what: "the same with probes every 10 ms, three missed",
        run: liveness::fast_detection,
    },
    Row {
        name: "false-alarms",
        what: "10 minutes with 32 busy processes a CPU and 1 % loss between members",
        run: liveness::false_alarms,
    },
    Row {
        name: "package",
        what: "the Debian package on three hosts with systemd under 1,000 connections: installed, upgraded, restarted, removed",
        run: package::run,
    },
    Row {
        name: "getting-started",
        what: "the getting-started page, followed to the letter on five empty hosts",
        run: page::run,
    },
    Row {
        name: "rest",
        what: "three agents at rest: 100 services of 3 backends, each checked every 2 s, for a minute",
        run: seeing::rest,
    },
    Row { name: "status", what: "`status` and metrics of a member with 1,000,000 flows", run: seeing::status },
    Row { name: "joiner", what: "a member joins a cluster that holds 100,000 flows", run: joiner::run },
    Row {
        name: "apply",
        what: "a change to 1,000 services with 10,000 backends at three members, under load",
        run: apply::run,
    },
    Row {
        name: "replication",
        what: "10,000 new flows a second for 10 s: how soon both owners of each have a record of it",
        run: replication::run,
    },
    Row {
        name: "flood-syn",
        what: "30 s of SYNs from random sources, 100,000 flows, 1,000 connections",
        run: floods::syn,
    },
    Row {
        name: "flood-handshake",
        what: "the same with SYNs and the ACKs that would end their handshakes",
        run: floods::handshake,
    },
    Row { name: "flood-udp", what: "the same with datagrams from random sources", run: floods::udp },
    Row {
        name: "differential",
        what: "1,000,000 random packets over random tables, in the kernel and in the model",
        run: differential::run,
    },
    Row { name: "verifier", what: "instructions that the verifier walks to load `balancer`", run: kernel::verifier },
    Row {
        name: "second-demo",
        what: "the wall time of `cargo xtask demo` where everything is built",
        run: machine::second,
    },
    Row {
        name: "first-run",
        what: "`cargo xtask demo` from a clone of this commit with nothing built",
        run: machine::first,
    },
    Row { name: "memory", what: "kernel memory of a flow, as memlock / max_entries", run: kernel::memory },
];
