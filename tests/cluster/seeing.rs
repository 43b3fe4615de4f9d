//! What members show of themselves: metrics, and that they add up.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value as Json;
use tests::{
    cluster::Cluster,
    interrupt,
    member::Member,
    traffic::datagrams::{Pace, Stream},
};

use crate::{cluster, health::open, said, started};

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

/// `tandem`, told where the member is.
fn tandem(member: &Member, arguments: &[&str]) -> Command {
    let mut command = member.host.namespace.command(tests::member::binary().unwrap());
    command.args(arguments).arg("--pin-dir").arg(member.pins()).arg("--config").arg(member.config());
    command
}

fn json(member: &Member, arguments: &[&str]) -> Json {
    let output = tandem(member, arguments).args(["-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn top_says_what_happens_a_second() {
    const PER_SECOND: u32 = 400;
    let cluster = cluster(2);
    let stream =
        Stream::start(&cluster.topology.client, Pace { flows: 16, per_second: PER_SECOND, bytes: 64 }).unwrap();
    thread::sleep(Duration::from_millis(500));
    // Both at the same time: what one hands off the other delivers.
    let looks: Vec<_> = cluster
        .members
        .iter()
        .map(|member| {
            tandem(member, &["top", "--once", "--interval", "2s", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let tops: Vec<Json> = looks
        .into_iter()
        .map(|look| serde_json::from_slice(&look.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let text = tandem(&cluster.members[0], &["top", "--once", "--interval", "200ms"]).output().unwrap();
    stream.finish().unwrap();
    let sum = |list: &str| -> f64 {
        let rows = tops.iter().flat_map(|top| top[list].as_array().unwrap());
        rows.map(|row| row["delivered"]["packets_per_s"].as_f64().unwrap()).sum()
    };
    let wanted = f64::from(PER_SECOND);
    for list in ["services", "backends"] {
        assert!(sum(list) > wanted * 0.5 && sum(list) < wanted * 1.5, "{list}: {} a second\n{tops:#?}", sum(list));
    }
    let text = String::from_utf8(text.stdout).unwrap();
    for header in ["SERVICE", "BACKEND", "MEMBER"] {
        assert!(text.lines().any(|line| line.starts_with(header)), "{text}");
    }
    let piped = tandem(&cluster.members[0], &["top"]).output().unwrap();
    assert_eq!(piped.status.code(), Some(2), "{piped:?}");
}

#[test]
fn lists_are_watched_and_what_is_dropped_says_what_to_do() {
    let cluster = cluster(2);
    let member = &cluster.members[0];
    let watching = |arguments: &[&str]| tandem(member, arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut watch = watching(&["get", "members", "-w", "-o", "json", "--interval", "50ms"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Json { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!((next()["id"].as_u64(), next()["id"].as_u64()), (Some(1), Some(2)));
    let drained = Command::new(tests::member::binary().unwrap())
        .args(["node", "drain", "--socket"])
        .arg(cluster.members[1].socket())
        .status()
        .unwrap();
    assert!(drained.success());
    // The peer's round trip makes no line; that it owns no new flows does.
    let mut changes = std::iter::from_fn(|| Some(next())).take(10);
    assert!(changes.any(|changed| changed["id"] == 2 && changed["eligible"] == false), "the drain was not seen");
    watch.kill().unwrap();
    watch.wait().unwrap();

    let nonsense = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..3).for_each(|_| assert_eq!(socket.send_to(b"nonsense", (member.host.address, 7400)).unwrap(), 8));
    };
    cluster.topology.client.within(nonsense);
    let drops = json(member, &["get", "drops"]);
    let probes = drops.as_array().unwrap().iter().find(|drop| drop["reason"] == "drop_probe");
    let probes = probes.unwrap_or_else(|| panic!("{drops:#}"));
    assert!(probes["packets"] == 3 && probes["cure"].as_str().unwrap().contains("filter `cluster.port`"), "{probes}");

    let events = tandem_events(member, &[]);
    assert!(!events.is_empty(), "no events");
    for event in &events {
        assert!(event["time"].as_str().is_some_and(|time| time.ends_with('Z')) && event["text"].is_string(), "{event}");
    }
    let services = tandem(member, &["get", "services", "-o", "name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&services.stdout), "203.0.113.10:53/udp\n203.0.113.10:80/tcp\n");
}

fn tandem_events(member: &Member, arguments: &[&str]) -> Vec<Json> {
    let mut command = Command::new(tests::member::binary().unwrap());
    let output = command
        .args(["get", "events", "-o", "json"])
        .args(arguments)
        .arg("--socket")
        .arg(member.socket())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
