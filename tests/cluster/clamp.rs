//! Links with no room for the outer header, behind a firewall that swallows what would tell the client so.

use lb_common::reason::Reason;
use tests::{command, member, traffic::caller::Caller};

use crate::{built, counted, said};

/// Drops "fragmentation needed" on its way to the client, as many firewalls do.
const SWALLOW: &str = "\
table ip swallow {
    chain forward {
        type filter hook forward priority 0;
        icmp type destination-unreachable icmp code frag-needed counter drop
    }
}
";

#[test]
fn an_upload_stalls_without_the_clamp_and_works_with_it() {
    let mut cluster = built(2, |_| ());
    let members = cluster.members.iter().map(|member| member.host.clone());
    let hosts: Vec<_> = members.chain(cluster.servers.iter().map(|server| server.host.clone())).collect();
    hosts.iter().for_each(|host| cluster.topology.set_mtu(host, 1500).unwrap());
    let router = &cluster.topology.router;
    command::run_with_input(router.command("nft").args(["-f", "-"]), SWALLOW).unwrap();
    cluster.start_members().unwrap();

    let mut stalled = Caller::open(&cluster.topology.client, 47_000).unwrap();
    // What is small fits.
    stalled.ask().unwrap();
    let error = stalled.upload().expect_err("full-size segments do not fit").to_string();
    println!("without the clamp: {error}");
    let answered = counted(&cluster, Reason::TooBigAnswered);
    assert!(answered > 0);

    let tandem = member::binary().unwrap();
    let log = std::env::temp_dir().join(format!("clamp-{}.log", std::process::id()));
    for server in &mut cluster.servers {
        server.decap(&tandem, &log, &["--mss", "auto"]).unwrap();
    }
    std::fs::remove_file(&log).unwrap();
    for port in 47_001..47_007 {
        let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
        caller.upload().unwrap();
        caller.echo().unwrap();
        let socket = said(&cluster.topology.client, "ss", &["-tinH", "sport", "=", &port.to_string()]);
        // 1500 less 40 of an outer IPv6 header, which `--from` allows, 20 of IPv4, 20 of TCP and 12 of its timestamps.
        assert!(socket.contains(" mss:1408 "), "{socket}");
    }
    drop(stalled);
    assert_eq!(counted(&cluster, Reason::TooBigAnswered), answered, "every segment fits");
}
