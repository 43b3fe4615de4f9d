//! VIPs announced through a real routing daemon: BIRD on every balancer and on the router, BGP between them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tests::{
    cluster::{Cluster, READY_LIMIT, Shape},
    command,
    interrupt::wait_until,
    member::binary,
    netns::Namespace,
    topology::VIP,
    traffic::load::{Load, Plan},
};

const TABLE: u32 = 7411;
/// BGP opens a session within a few seconds; a withdrawal takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// A routing daemon that ends with the test.
struct Bird {
    child: Child,
    directory: PathBuf,
}

impl Bird {
    fn start(namespace: &Namespace, name: &str, config: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("tandem-bird-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("bird.conf");
        fs::write(&file, config).unwrap();
        let mut command = namespace.command(Path::new("bird"));
        command
            .arg("-f")
            .arg("-c")
            .arg(&file)
            .arg("-s")
            .arg(directory.join("ctl"))
            .arg("-P")
            .arg(directory.join("pid"));
        let log = fs::File::create(directory.join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { child, directory }
    }

    fn said(&self) -> String {
        let mut birdc = Command::new("birdc");
        let protocols = birdc.arg("-s").arg(self.directory.join("ctl")).args(["show", "protocols"]).output().unwrap();
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        format!("{}{log}", String::from_utf8_lossy(&protocols.stdout))
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// The router's side: one session with each balancer, and all ways that are equally good in its kernel's table.
fn router_config(cluster: &Cluster) -> String {
    let mut text = String::from(
        "router id 10.0.1.1;\nprotocol device { scan time 1; }\n\
         protocol kernel { merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }\n",
    );
    for member in &cluster.members {
        let (name, address) = (member.name(), member.host.address);
        text += &format!(
            "protocol static {{ ipv4; route {address}/32 via \"{name}\"; }}\n\
             protocol bgp {name} {{ local 10.0.1.1 as 65000; neighbor {address} as 65001; multihop 2; connect retry time 1; \
             connect delay time 1; ipv4 {{ import all; export none; gateway recursive; }}; }}\n"
        );
    }
    text
}

/// What an operator makes of `tandem announce render bird`.
fn member_config(cluster: &Cluster, address: &str) -> String {
    let render = Command::new(binary().unwrap())
        .args(["announce", "render", "bird", "--config"])
        .arg(cluster.members[0].config())
        .output()
        .unwrap();
    assert!(render.status.success(), "{}", String::from_utf8_lossy(&render.stderr));
    let rendered = String::from_utf8(render.stdout).unwrap();
    // Of an IPv4 lab; a session that carries both families needs addresses of both.
    let rendered = rendered.replace("    ipv6 { table tandem6; import none; export all; next hop self; };\n", "");
    let rendered = rendered.replace(
        "local as OWN_AS;",
        &format!("local {address} as 65001; multihop 2; connect retry time 1; connect delay time 1;"),
    );
    let rendered = rendered.replace("ROUTER as ROUTER_AS", "10.0.1.1 as 65000");
    format!("router id {address};\nprotocol device {{ scan time 1; }}\n{rendered}")
}

/// The balancers that the router sends the VIP's packets to.
fn next_hops(cluster: &Cluster) -> Vec<String> {
    let mut ask = cluster.topology.router.command(Path::new("ip"));
    let said = command::run(ask.args(["-json", "route", "show", "exact", &format!("{VIP}/32")])).unwrap();
    let routes: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
    let route = &routes[0];
    let hops = route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
    let mut names: Vec<String> = hops.iter().filter_map(|hop| Some(hop["dev"].as_str()?.to_owned())).collect();
    names.sort();
    names
}

fn wait_hops(cluster: &Cluster, birds: &[Bird], wanted: &[&str]) {
    let came = wait_until(LIMIT, Duration::from_millis(20), || next_hops(cluster) == wanted).unwrap();
    let said: Vec<String> = birds.iter().map(Bird::said).collect();
    assert!(came, "the router sends to {:?}, not to {wanted:?}:\n{}", next_hops(cluster), said.join("\n"));
}

#[test]
fn bird_announces_who_is_ready_and_nobody_who_drains_or_stops() {
    let shape = Shape { balancers: 3, servers: 3, naive: false };
    let mut cluster = Cluster::build(shape, |config| config.announce_table = Some(TABLE)).unwrap();
    cluster.members.iter_mut().try_for_each(tests::member::Member::start).unwrap();
    cluster.members.iter_mut().try_for_each(|member| member.wait_ready(READY_LIMIT)).unwrap();
    cluster.wait_agreed().unwrap();
    let mut birds = vec![Bird::start(&cluster.topology.router, "router", &router_config(&cluster))];
    for member in &cluster.members {
        let config = member_config(&cluster, &member.host.address.to_string());
        birds.push(Bird::start(&member.host.namespace, member.name(), &config));
    }
    wait_hops(&cluster, &birds, &["lb1", "lb2", "lb3"]);

    let load = Load::start(&cluster.topology.client, Plan { shorts_per_second: 50, ..Plan::mixed(60) }).unwrap();
    load.wait_open(Duration::from_secs(15)).unwrap();
    let tandem = |member: usize, arguments: &[&str]| {
        let member = &cluster.members[member];
        let mut command = member.host.namespace.command(binary().unwrap());
        command::run(command.args(arguments).arg("--socket").arg(member.socket())).unwrap();
    };
    tandem(0, &["node", "drain", "--wait", "--timeout", "30s"]);
    wait_hops(&cluster, &birds, &["lb2", "lb3"]);
    tandem(0, &["node", "undrain"]);
    wait_hops(&cluster, &birds, &["lb1", "lb2", "lb3"]);

    // A dead agent's datapath goes on, and so does its announcement; the next agent flaps nothing.
    cluster.members[1].kill().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(next_hops(&cluster), ["lb1", "lb2", "lb3"]);
    cluster.members[1].start().unwrap();
    cluster.members[1].wait_ready(READY_LIMIT).unwrap();
    assert_eq!(next_hops(&cluster), ["lb1", "lb2", "lb3"]);

    cluster.members[2].stop(Duration::from_secs(10)).unwrap();
    wait_hops(&cluster, &birds, &["lb1", "lb2"]);
    load.wake_idle();
    std::thread::sleep(Duration::from_secs(1));
    let ledger = load.finish();
    assert!(ledger.broken().is_empty(), "{:#?}", ledger.broken());
    assert_eq!(ledger.shorts().handshakes_failed, 0);
}
