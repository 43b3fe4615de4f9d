//! `tandem-demo`: shows on this host that a cluster survives what breaks connections elsewhere.

use std::process::ExitCode;

use clap::Parser;
use tests::{
    demo::{self, Kill, Options, Screen},
    interrupt, run,
};

/// Shows a cluster of balancers that loses a member under real TCP traffic.
///
/// Builds a network of namespaces on this host (client, router with ECMP, 3 balancers that each run
/// a real `tandem run`, 4 servers), opens long-lived connections whose every byte is checked and
/// keeps opening short ones. Then, within the same second, the member that owns most connections is
/// killed, one server joins and another is drained; later the member comes back. Needs root; removes
/// all it made, also on Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "tandem-demo", version, after_help = EXAMPLES)]
struct Arguments {
    /// What is killed.
    #[arg(long, value_enum, default_value_t = Kill::Primary)]
    kill: Kill,
    /// Long-lived connections; a fifth are idle, a fifth upload full-size segments.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Seconds of traffic once all connections are open.
    #[arg(long, value_name = "S", default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=3600))]
    seconds: u32,
    /// The receipt as one JSON object on stdout; everything else goes to stderr.
    #[arg(long)]
    json: bool,
    /// Members that share nothing: the same schedule, as a hash-only cluster lives it.
    #[arg(long)]
    naive: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                     the whole show
  cargo xtask demo --naive             the same with nothing shared: connections break
  cargo xtask demo --kill agent        kill -9 of an agent: the datapath outlives it
  cargo xtask demo --connections 1000 --seconds 30
  cargo xtask demo --json | tail -1 | jq .broken

A connection is `protected` when, just before the cut, at least one survivor's flow table has it
(with --naive: any member's, as there each has its own and no other).
`Longest stall` is the longest time that a surviving connection waited for an answer without
progress. The client's route has rto_min 20 ms, so that it shows what the cluster took and not
the 200 ms that TCP waits by default.

Exit status: 0 no protected connection broke; 1 one did (with --naive: any did);
2 the demo could not run; 130 interrupted.";

fn main() -> ExitCode {
    let Arguments { kill, connections, seconds, json, naive } = Arguments::parse();
    interrupt::catch();
    if let Err(error) = run::require_root() {
        eprintln!("tandem-demo: {error:#}");
        return ExitCode::from(2);
    }
    let mut screen = Screen::new(json);
    let options = Options { kill, connections: connections as usize, seconds, naive };
    let receipt = match demo::run(options, &mut screen) {
        Ok(receipt) => receipt,
        Err(error) => {
            drop(screen);
            eprintln!("tandem-demo: {error:#}");
            return ExitCode::from(if interrupt::happened() { 130 } else { 2 });
        }
    };
    screen.print(&receipt.render(screen.style()));
    if json {
        println!("{}", serde_json::to_string(&receipt).expect("a receipt is plain values"));
    }
    ExitCode::from(u8::from(!receipt.is_clean()))
}
