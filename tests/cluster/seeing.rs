//! What members show of themselves: metrics, and that they add up.

use std::{collections::BTreeMap, thread, time::Duration};

use tests::{cluster::Cluster, interrupt, member::Member};

use crate::{health::open, said, started};

/// In each member's own network namespace.
const METRICS: &str = "127.0.0.1:9477";
const LIMIT: Duration = Duration::from_secs(5);

/// Samples by name and labels, as Prometheus would read them.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn of(text: &str) -> Self {
        assert!(text.ends_with("# EOF\n"), "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
                .collect(),
        )
    }

    /// From the member's agent, over TCP.
    fn scraped(member: &Member) -> Self {
        let url = format!("http://{METRICS}/metrics");
        Self::of(&said(&member.host.namespace, "curl", &["--silent", "--fail", "--max-time", "5", &url]))
    }

    /// The sum of `name` over all samples whose labels contain `part`.
    fn sum(&self, name: &str, part: &str) -> u64 {
        let start = format!("{name}{{");
        let of = self.0.iter().filter(|(sample, _)| sample.starts_with(&start) && sample.contains(part));
        of.map(|(_, value)| *value as u64).sum()
    }

    /// What XDP made of every packet that it received.
    fn received(&self) -> u64 {
        ["pass", "deliver", "hand_off", "answer", "consume", "drop"].iter().map(|action| self.action(action)).sum()
    }

    fn action(&self, action: &str) -> u64 {
        self.sum("tandem_packets_total", &format!("action=\"{action}\""))
    }
}

/// Packets that the driver gave to the member's XDP program.
fn given(member: &Member) -> u64 {
    let statistics = said(&member.host.namespace, "ethtool", &["-S", "eth0"]);
    let of_queues = statistics.lines().filter_map(|line| line.trim().split_once(": "));
    of_queues
        .filter(|(name, _)| name.starts_with("rx_queue_") && name.ends_with("_xdp_packets"))
        .map(|(_, count)| count.parse::<u64>().unwrap())
        .sum()
}

#[test]
fn metrics_grow_by_what_was_sent_and_add_up() {
    let cluster: Cluster = started(3, |config| config.metrics_listen = Some(METRICS));
    let before: Vec<Samples> = cluster.members.iter().map(Samples::scraped).collect();
    let mut callers = open(&cluster, 42_000..42_050);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());

    // A SYN, the ACK of the answer to it, and the request, of each: at the least.
    let sent = callers.len() as u64 * 3;
    let mut grown = BTreeMap::new();
    for (member, before) in cluster.members.iter().zip(&before) {
        let now = Samples::scraped(member);
        for (sample, value) in before.0.iter().filter(|(sample, _)| sample.contains("_total{")) {
            assert!(now.0[sample] >= *value, "{}: {sample} fell", member.name());
        }
        for action in ["deliver", "hand_off", "drop"] {
            *grown.entry(action).or_insert(0) += now.action(action) - before.action(action);
            let of_services = now.sum("tandem_service_packets_total", &format!("action=\"{action}\""));
            assert!(of_services <= now.action(action), "{}: {action}", member.name());
        }
        assert_eq!(now.sum("tandem_backend_packets_total", ""), now.action("deliver"), "{}", member.name());
        assert_eq!(now.sum("tandem_peer_handed_off_packets_total", ""), now.action("hand_off"), "{}", member.name());
        let text = said(
            &member.host.namespace,
            "curl",
            &["--silent", "--fail", "--unix-socket", member.socket().to_str().unwrap(), "http://tandem/metrics"],
        );
        assert!(Samples::of(&text).action("deliver") >= now.action("deliver"));
    }
    assert!(grown["deliver"] >= sent, "{grown:?}, of at least {sent} sent");
    let known: u64 =
        cluster.members.iter().map(|member| Samples::scraped(member).sum("tandem_flows", "family=\"ipv4\"")).sum();
    assert!(known >= callers.len() as u64, "{known} flows");

    // The driver and the program count at different moments of a packet's way: between two equal counts of the driver there
    // was none on its way. Probes go on all the time, so that this takes some tries.
    for member in &cluster.members {
        let mut last = None;
        let adds_up = || {
            let (first, samples, second) = (given(member), Samples::scraped(member), given(member));
            last = Some((first, samples.received(), second));
            first <= samples.received() && samples.received() <= second
        };
        assert!(
            interrupt::wait_until(LIMIT, Duration::from_millis(20), adds_up).unwrap(),
            "{}: {last:?}",
            member.name()
        );
    }

    let printed = |member: &Member| {
        let program = tests::member::binary().unwrap();
        let (pins, config) = (member.pins().to_str().unwrap(), member.config().to_str().unwrap());
        said(&member.host.namespace, program.to_str().unwrap(), &["metrics", "--pin-dir", pins, "--config", config])
    };
    let mut cluster = cluster;
    cluster.member(1).unwrap().kill().unwrap();
    thread::sleep(Duration::from_millis(500));
    let of_the_dead = Samples::of(&printed(&cluster.members[0]));
    assert_eq!(of_the_dead.0["tandem_agent_alive{}"], 0.0);
    assert_eq!(of_the_dead.sum("tandem_problems", "degraded"), 1);
}
