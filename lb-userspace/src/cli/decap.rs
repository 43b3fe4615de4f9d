//! `tandem decap`: the servers' side.

use clap::Args;

use super::{
    Exit, Failure, print,
    run::{XdpMode, start_log},
    table::Table,
};
use crate::decap::{self, Count, Mss, Prefix, Vip};

/// On a server without a tunnel device: take the balancers' outer header off
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem decap --interface eth0 --from 10.0.1.0/24 --vip 203.0.113.10
  tandem decap --interface eth0 --from 10.0.1.11 10.0.1.12 10.0.1.13 --vip 203.0.113.10 203.0.113.11
  tandem decap --interface eth0 --from 10.0.1.0/24 2001:db8:1::/64 --vip 203.0.113.10 2001:db8::10 --mss auto

The server needs the VIP on its loopback interface (`ip addr add 203.0.113.10/32 dev lo`). Takes the outer header off packets that come from the
balancers and hold a packet for a VIP, either family in either; everything else passes untouched. VLAN tags stay.

--mss is for links that carry no more than the clients' own: SYNs and SYN-ACKs from the VIPs then name a segment size that leaves room for the
outer header. `auto`: the interface's MTU less the outer header (of the longest that --from allows), the IP and the TCP header.

In the foreground until SIGTERM or SIGINT; prints `ready` once it is attached, and at SIGUSR1 and in the end what became of the packets.
")]
pub(super) struct Arguments {
    /// The interface that the balancers' packets come in by
    #[arg(long, value_name = "IF")]
    interface: String,
    /// Where the balancers are
    #[arg(long, value_name = "PREFIX", required = true, num_args = 1..)]
    from: Vec<Prefix>,
    /// The VIPs of this server
    #[arg(long, value_name = "ADDR", required = true, num_args = 1..)]
    vip: Vec<Vip>,
    /// The largest segment size that SYNs and SYN-ACKs from the VIPs may name: a number, or `auto`
    #[arg(long, value_name = "BYTES")]
    mss: Option<Mss>,
    /// The interface that answers leave by, for --mss [default: that of --interface]
    #[arg(long, value_name = "IF", requires = "mss")]
    egress: Option<String>,
    /// Who runs the XDP program
    #[arg(long, value_enum, default_value_t = XdpMode::Native)]
    xdp_mode: XdpMode,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let options = decap::Options {
        interface: arguments.interface.clone(),
        from: arguments.from.clone(),
        vips: arguments.vip.clone(),
        mss: arguments.mss,
        egress: arguments.egress.clone(),
        mode: arguments.xdp_mode.into(),
    };
    start_log();
    // That nobody reads is no reason to leave the packets alone.
    let report = |counts: &[Count]| {
        if let Err(failure) = print(&table(counts)) {
            failure.report();
        }
    };
    decap::run(&options, report).map_err(|error| Failure::new(Exit::Failed, format!("{error:#}")))?;
    Ok(Exit::Ok)
}

fn table(counts: &[Count]) -> String {
    let mut table = Table::new(&["PROGRAM", "OUTCOME", "PACKETS", "BYTES"], &[2, 3]);
    for Count { program, outcome, counter } in counts {
        table.row([(*program).into(), (*outcome).into(), counter.packets.to_string(), counter.bytes.to_string()]);
    }
    table.render(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::reason::Counter;

    #[test]
    fn what_became_of_the_packets_is_a_table() {
        let count =
            |program, outcome, packets| Count { program, outcome, counter: Counter { packets, bytes: 60 * packets } };
        let text = table(&[count("decap", "stripped", 12), count("clamp", "lowered", 1)]);
        assert_eq!(
            text,
            "PROGRAM  OUTCOME   PACKETS  BYTES\n\
             decap    stripped       12    720\n\
             clamp    lowered         1     60\n"
        );
    }
}
