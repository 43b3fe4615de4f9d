//! The kernel's verdicts, packet by packet: `BPF_PROG_TEST_RUN` over the real programs and real maps.
//!
//! Every outcome is checked with its exact bytes, exactly one counter, and the state left behind. Expected bytes are
//! built with etherparse, which shares no code with the datapath. Needs root.

mod counts;
mod wire;
mod world;

mod checks;
mod rig;

mod chance;
mod clamp;
mod counters;
mod decap;
mod differential;
mod families;
mod fragments;
mod golden;
mod grace;
mod handshake;
mod icmp;
mod lifecycle;
mod limits;
mod link;
mod malformed;
mod owners;
mod passing;
mod probes;
mod rewriting;
mod sctp;
mod services;
mod sources;
mod too_big;
mod tunnel;
