//! `tandem doctor`: each pitfall planted in a network namespace is found, with what mends it; what `--fix` says is mended, is.
//!
//! `docs/doctor.md` lists the checks.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::Value as Json;
use tests::{command, interrupt, member, netns::Namespace, passthrough, run::Run};

const VIP: &str = "203.0.113.10";
/// A full packet and the longest outer header.
const WIDE: u32 = 1560;

/// A host on a link to a network that holds a router, another member and a server.
struct Lab {
    // In the order in which they must go.
    host: Arc<Namespace>,
    network: Arc<Namespace>,
    run: Run,
}

/// What the doctor said.
struct Said {
    exit: i32,
    report: Json,
}

impl Lab {
    /// A balancer with nothing wrong.
    fn balancer() -> Self {
        let lab = Self::new("10.0.1.11/24");
        fs::create_dir(lab.file("state")).unwrap();
        fs::set_permissions(lab.file("state"), fs::Permissions::from_mode(0o700)).unwrap();
        let tandem =
            |arguments: &[&str]| command::run(Command::new(member::binary().unwrap()).args(arguments)).unwrap();
        tandem(&["cluster", "secret", lab.path("hash.key").as_str()]);
        let keys =
            ["state/member.key", "other.key"].map(|file| tandem(&["cluster", "keygen", lab.path(file).as_str()]));
        lab.write(&format!(
            "version = 1
[cluster]
name = \"doctor\"
hash_key_file = \"hash.key\"
[[cluster.member]]
id = 1
name = \"lb1\"
address = \"10.0.1.11\"
{}
[[cluster.member]]
id = 2
name = \"lb2\"
address = \"10.0.1.12\"
{}
[node]
name = \"lb1\"
interfaces = [\"eth0\"]
[[service]]
name = \"web\"
vip = [\"{VIP}:80/tcp\"]
backends = [{{ name = \"web-1\", address = \"10.0.1.21\" }}]
",
            keys[0], keys[1]
        ));
        lab
    }

    /// A server that has the VIP, and nothing that takes the outer header off.
    fn server() -> Self {
        let lab = Self::new("10.0.1.21/24");
        lab.host.ip(&[&format!("addr add {VIP}/32 dev lo")]).unwrap();
        lab.host.sysctl("ipv4/conf/all/arp_ignore", "1").unwrap();
        lab.host.sysctl("ipv4/conf/all/arp_announce", "2").unwrap();
        lab
    }

    fn new(address: &str) -> Self {
        let run = Run::new().unwrap();
        let (host, network) = (Namespace::new(&run, "host").unwrap(), Namespace::new(&run, "network").unwrap());
        let lab = Self { host, network, run };
        lab.connect("eth0", address);
        lab.host.ip(&["route add default via 10.0.1.1"]).unwrap();
        lab.host.sysctl("ipv4/ip_forward", "0").unwrap();
        let addresses = ["10.0.1.1/24", "10.0.1.12/24", "10.0.1.21/24"].into_iter().filter(|other| *other != address);
        let lines: Vec<String> = addresses.map(|address| format!("addr add {address} dev eth0")).collect();
        lab.network.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        lab
    }

    /// A link to the network, wide enough for the tunnel.
    fn connect(&self, interface: &str, address: &str) {
        let peer = self.network.name();
        self.host
            .ip(&[
                &format!("link add {interface} mtu {WIDE} type veth peer name {interface} mtu {WIDE} netns {peer}"),
                &format!("addr add {address} dev {interface}"),
                &format!("link set {interface} up"),
            ])
            .unwrap();
        self.network.ip(&[&format!("link set {interface} up")]).unwrap();
        self.on_host("ethtool", &["-K", interface, "tx", "off", "rx", "off"]);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.run.files().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn write(&self, config: &str) {
        fs::write(self.file("tandem.toml"), config).unwrap();
    }

    fn change(&self, from: &str, to: &str) {
        let config = fs::read_to_string(self.file("tandem.toml")).unwrap();
        assert!(config.contains(from), "{config}");
        self.write(&config.replacen(from, to, 1));
    }

    fn on_host(&self, program: &str, arguments: &[&str]) -> String {
        command::run(self.host.command(program).args(arguments)).unwrap()
    }

    /// As operators would type it, after `word`s of another command.
    fn doctor_under(&self, words: &[&str], more: &[&str]) -> Said {
        let tandem = member::binary().unwrap().display().to_string();
        let own = ["--config", &self.path("tandem.toml"), "--state-dir", &self.path("state")].map(str::to_owned);
        let pins = self.run.pins("lb1").display().to_string();
        let place = ["--pin-dir".to_owned(), pins].into_iter().chain(own);
        let place: Vec<String> = if more.contains(&"--server") { Vec::new() } else { place.collect() };
        let words: Vec<&str> = words.iter().copied().chain([tandem.as_str()]).collect();
        let mut command = self.host.command(words[0]);
        command.args(&words[1..]).args(["doctor", "-o", "json"]).args(place).args(more);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        Said { exit: output.status.code().unwrap(), report }
    }

    fn doctor(&self, more: &[&str]) -> Said {
        self.doctor_under(&[], more)
    }

    /// On a server; `tunnel-end` is a check of its own.
    fn server_doctor(&self, more: &[&str]) -> Said {
        let own = ["--server", "--vip", VIP, "--skip", "tunnel-end"];
        self.doctor(&own.into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
    }
}

impl Said {
    fn status(&self, id: &str) -> &str {
        let checks = self.report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["id"] == id);
        check.unwrap_or_else(|| panic!("there is no check {id}"))["status"].as_str().unwrap()
    }

    /// What was found by check `id`, of which there is one thing; and what mends it.
    #[track_caller]
    fn finding(&self, id: &str) -> (String, String) {
        let checks = self.report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["id"] == id).unwrap();
        let [finding] = check["findings"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            panic!("{id}: {}", self.report)
        };
        (finding["found"].as_str().unwrap().into(), finding["mend"].as_str().unwrap().into())
    }

    /// Nothing is wrong, and everything could be told.
    #[track_caller]
    fn is_well(&self) {
        assert_eq!((self.exit, &self.report["verdict"]), (0, &"ok".into()), "{:#}", self.report);
        let checks = self.report["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["status"] != "unknown"), "{:#}", self.report);
    }

    /// Check `id` found what holds these words.
    #[track_caller]
    fn finds(&self, id: &str, found: &str, mend: &str) {
        assert_eq!((self.exit, self.status(id)), (5, "found"), "{:#}", self.report);
        let said = self.finding(id);
        assert!(said.0.contains(found) && said.1.contains(mend), "{said:?}");
    }
}

/// Planted, found, not touched without `--fix`, mended with it, and well afterwards.
#[track_caller]
fn is_mended(doctor: impl Fn(&[&str]) -> Said, id: &str, found: &str, mend: &str) {
    doctor(&[]).finds(id, found, mend);
    doctor(&[]).finds(id, found, mend);
    let fixed = doctor(&["--fix"]);
    assert_eq!((fixed.exit, fixed.status(id)), (0, "mended"), "{:#}", fixed.report);
    doctor(&[]).is_well();
}

#[test]
fn a_host_with_nothing_wrong_is_well() {
    Lab::balancer().doctor(&[]).is_well();
    Lab::server().server_doctor(&[]).is_well();
}

#[test]
fn config_is_invalid() {
    let lab = Lab::balancer();
    lab.change("[node]", "[node]\nflow_max = 5");
    lab.doctor(&["--fix"]).finds("config", "unknown key `flow_max`", "tandem config check");
}

#[test]
fn key_file_is_missing() {
    let lab = Lab::balancer();
    fs::remove_file(lab.file("hash.key")).unwrap();
    let said = lab.doctor(&[]);
    said.finds("key-file", "hash.key does not exist", "tandem cluster secret");
    let (_, mend) = said.finding("key-file");
    let words = mend.split(" on one").next().unwrap().trim_start_matches("tandem ");
    command::run(Command::new(member::binary().unwrap()).args(words.split(' '))).unwrap();
    lab.doctor(&[]).is_well();
}

#[test]
fn secret_mode_lets_others_read() {
    let lab = Lab::balancer();
    fs::set_permissions(lab.file("hash.key"), fs::Permissions::from_mode(0o644)).unwrap();
    is_mended(|more| lab.doctor(more), "secret-mode", "mode 644", "chmod 600");
}

#[test]
fn state_directory_is_missing_or_no_directory() {
    let lab = Lab::balancer();
    lab.change("[node]", &format!("[node]\nkey_file = {:?}", lab.path("state/member.key")));
    fs::rename(lab.file("state/member.key"), lab.file("member.key")).unwrap();
    lab.change("state/member.key", "member.key");
    fs::remove_dir_all(lab.file("state")).unwrap();
    is_mended(|more| lab.doctor(more), "state-directory", "does not exist", "install -d");
    fs::remove_dir_all(lab.file("state")).unwrap();
    fs::write(lab.file("state"), "").unwrap();
    lab.doctor(&["--fix"]).finds("state-directory", "cannot be written to", "--state-dir");
}

/// In a mount namespace of its own, as `ip netns exec` makes one.
#[test]
fn bpffs_is_not_mounted() {
    let lab = Lab::balancer();
    let within = |script: &str, more: &[&str]| {
        let script = format!("umount --all-targets --lazy /sys/fs/bpf && {script}");
        lab.doctor_under(&["unshare", "--mount", "sh", "-c", &script, "sh"], more)
    };
    within("exec \"$@\"", &[]).finds("bpffs", "is not in a BPF file system", "mount -t bpf bpf /sys/fs/bpf");
    let fixed = within("exec \"$@\"", &["--fix"]);
    assert_eq!((fixed.exit, fixed.status("bpffs")), (0, "mended"), "{:#}", fixed.report);
    lab.doctor(&[]).is_well();
}

#[test]
fn interface_is_down() {
    let lab = Lab::balancer();
    lab.network.ip(&["link set eth0 down"]).unwrap();
    // The kernel tells of the other end with up to a second's delay.
    let is_told = || lab.doctor(&[]).status("interface") == "found";
    assert!(interrupt::wait_until(Duration::from_secs(3), Duration::from_millis(100), is_told).unwrap());
    lab.doctor(&["--fix"]).finds("interface", "eth0 is down", "look at its other end");
    lab.network.ip(&["link set eth0 up"]).unwrap();
    lab.host.ip(&["link set eth0 down"]).unwrap();
    lab.doctor(&["--fix"]).finds("interface", "eth0 is down", "ip link set dev eth0 up");
}

#[test]
fn xdp_driver_is_none() {
    let lab = Lab::balancer();
    lab.host.ip(&["link add br0 mtu 1560 type bridge", "link set br0 up"]).unwrap();
    lab.change("[\"eth0\"]", "[\"eth0\", \"br0\"]");
    lab.doctor(&[]).finds("xdp-driver", "br0 (bridge) does not run XDP", "--xdp-mode generic");
    assert_eq!(lab.doctor(&["--xdp-mode", "generic"]).status("xdp-driver"), "ok");
}

#[test]
fn xdp_mtu_needs_several_buffers() {
    let lab = Lab::balancer();
    lab.change("[node]", "[node]\nmulti_buffer = \"off\"");
    lab.host.ip(&["link set eth0 mtu 9000"]).unwrap();
    lab.doctor(&[]).finds("xdp-mtu", "MTU is 9000", "multi_buffer = \"auto\"");
    lab.change("\"off\"", "\"auto\"");
    lab.doctor(&[]).is_well();
}

#[test]
fn foreign_xdp_program_is_attached() {
    let lab = Lab::balancer();
    let link = passthrough::attach(&lab.host, "eth0").unwrap();
    let said = lab.doctor(&["--fix"]);
    said.finds("foreign-xdp", "eth0 runs another XDP program", "bpftool link detach id");
    drop(link);
    let well = || lab.doctor(&[]).status("foreign-xdp") == "ok";
    assert!(interrupt::wait_until(Duration::from_secs(3), Duration::from_millis(100), well).unwrap());
}

#[test]
fn veth_checksum_stays_unfinished() {
    let lab = Lab::balancer();
    lab.on_host("ethtool", &["-K", "eth0", "tx", "on", "rx", "on"]);
    is_mended(|more| lab.doctor(more), "veth-checksum", "eth0 is a veth", "ethtool -K eth0 tx off rx off");
}

#[test]
fn own_address_is_another_hosts() {
    let lab = Lab::balancer();
    lab.host.ip(&["addr del 10.0.1.11/24 dev eth0", "addr add 10.0.1.99/24 dev eth0"]).unwrap();
    lab.doctor(&[]).finds("own-address", "does not have 10.0.1.11", "ip addr add 10.0.1.11");
}

#[test]
fn vip_local_is_an_address_of_the_balancer() {
    let lab = Lab::balancer();
    lab.host.ip(&[&format!("addr add {VIP}/32 dev lo")]).unwrap();
    let said = lab.doctor(&["--fix"]);
    said.finds("vip-local", "has the VIP 203.0.113.10 as its own", "ip addr del 203.0.113.10/32 dev lo");
    let (_, mend) = said.finding("vip-local");
    lab.host.ip(&[mend.split(" (").next().unwrap().trim_start_matches("ip ")]).unwrap();
    lab.doctor(&[]).is_well();
}

#[test]
fn forwarding_sends_strays_round() {
    let lab = Lab::balancer();
    lab.host.sysctl("ipv4/ip_forward", "1").unwrap();
    lab.doctor(&["--fix"]).finds("forwarding", "net/ipv4/ip_forward", "other_traffic = \"drop\"");
    lab.change("[node]", "[node]\nother_traffic = \"drop\"");
    lab.doctor(&[]).is_well();
}

#[test]
fn rp_filter_drops_what_comes_from_the_vip() {
    let lab = Lab::balancer();
    lab.connect("eth1", "10.0.2.11/24");
    lab.network.ip(&["addr add 10.0.2.21/24 dev eth1"]).unwrap();
    lab.change("10.0.1.21", "10.0.2.21");
    lab.doctor(&[]).is_well();
    lab.host.sysctl("ipv4/conf/eth1/rp_filter", "1").unwrap();
    is_mended(|more| lab.doctor(more), "rp-filter", "eth1 drops", "sysctl -w net/ipv4/conf/eth1/rp_filter=2");
}

#[test]
fn route_to_a_server_is_missing() {
    let lab = Lab::balancer();
    lab.host.ip(&["route del default"]).unwrap();
    lab.change("10.0.1.21", "10.9.0.21");
    lab.doctor(&[]).finds("route", "no route to web-1 (10.9.0.21)", "ip route add 10.9.0.21");
}

#[test]
fn neighbour_does_not_answer() {
    let lab = Lab::balancer();
    lab.change("10.0.1.21", "10.0.1.77");
    lab.doctor(&[]).finds("neighbour", "10.0.1.77, the next hop to web-1", "ip neigh show 10.0.1.77");
}

#[test]
fn cluster_interface_is_not_the_way_to_a_peer() {
    let lab = Lab::balancer();
    lab.connect("eth1", "10.0.2.11/24");
    lab.network.sysctl("ipv4/conf/eth1/arp_ignore", "0").unwrap();
    lab.host.ip(&["route add 10.0.1.12/32 dev eth1"]).unwrap();
    lab.doctor(&[]).finds("cluster-interface", "the way to lb2 (10.0.1.12) is eth1", "cluster_interface = \"eth1\"");
}

#[test]
fn tunnel_mtu_has_no_room_for_the_outer_header() {
    let lab = Lab::balancer();
    lab.host.ip(&["link set eth0 mtu 1500"]).unwrap();
    let said = lab.doctor(&["--fix"]);
    said.finds("tunnel-mtu", "a packet of 1500 bytes is one of 1520", "ip link set dev eth0 mtu 1520");
    lab.doctor(&["--skip", "tunnel-mtu"]).is_well();
    lab.host.ip(&["link set eth0 mtu 1520"]).unwrap();
    lab.doctor(&[]).is_well();
}

#[test]
fn port_is_taken() {
    let lab = Lab::balancer();
    let taken = lab.host.within(|| TcpListener::bind("0.0.0.0:7400").unwrap());
    lab.doctor(&["--fix"]).finds("port", "TCP port 7400 of 10.0.1.11 is in use", "ss -lnup");
    drop(taken);
    lab.doctor(&[]).is_well();
}

#[test]
fn firewall_drops_sessions() {
    let lab = Lab::balancer();
    let rules = "table inet filter { chain input { type filter hook input priority 0; policy drop;\n\
                 ct state established,related accept\niif lo accept\ntcp dport 22 accept\nicmp type echo-request accept\n}\n}";
    command::run_with_input(lab.host.command("nft").args(["-f", "-"]), rules).unwrap();
    let said = lab.doctor(&["--fix"]);
    said.finds("firewall", "(inet filter input) drops sessions of peers", "nft insert rule inet filter input");
    let (_, mend) = said.finding("firewall");
    lab.on_host("nft", &mend.split(' ').skip(1).collect::<Vec<_>>());
    lab.doctor(&[]).is_well();
}

#[test]
fn tunnel_end_is_missing_on_a_server() {
    let lab = Lab::server();
    let doctor = || lab.doctor(&["--server", "--vip", VIP]);
    let said = doctor();
    said.finds("tunnel-end", "nothing takes the balancers' outer header off", "tandem decap --interface eth0");
    let (_, mend) = said.finding("tunnel-end");
    let mend = mend.replace("MEMBERS", "10.0.1.0/24");
    let mut decap = lab.host.command(member::binary().unwrap());
    let mut decap = decap.args(mend.split(' ').skip(1)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let well = interrupt::wait_until(Duration::from_secs(5), Duration::from_millis(100), || doctor().exit == 0);
    decap.kill().unwrap();
    decap.wait().unwrap();
    assert!(well.unwrap());
}

#[test]
fn tunnel_filtered_on_a_server() {
    let lab = Lab::server();
    let rules = "table ip filter { chain input { type filter hook input priority 0; policy accept; meta l4proto ipip drop\n}\n}";
    command::run_with_input(lab.host.command("nft").args(["-f", "-"]), rules).unwrap();
    let said = lab.server_doctor(&["--fix"]);
    said.finds("tunnel-filtered", "(ip filter input) drops what balancers send", "nft insert rule ip filter input");
    let (_, mend) = said.finding("tunnel-filtered");
    lab.on_host("nft", &mend.split(' ').skip(1).collect::<Vec<_>>());
    lab.server_doctor(&[]).is_well();
}

#[test]
fn vip_missing_on_a_server() {
    let lab = Lab::server();
    lab.host.ip(&[&format!("addr del {VIP}/32 dev lo")]).unwrap();
    is_mended(
        |more| lab.server_doctor(more),
        "vip-missing",
        "does not have 203.0.113.10",
        "ip addr add 203.0.113.10/32 dev lo",
    );
}

#[test]
fn arp_ignore_lets_a_server_answer_for_the_vip() {
    let lab = Lab::server();
    lab.host.sysctl("ipv4/conf/all/arp_ignore", "0").unwrap();
    is_mended(|more| lab.server_doctor(more), "arp-ignore", "answers ARP for its VIPs", "arp_ignore=1");
}

#[test]
fn rp_filter_drops_clients_packets_on_a_server() {
    let lab = Lab::server();
    lab.connect("eth1", "10.0.2.21/24");
    lab.host.sysctl("ipv4/conf/eth1/rp_filter", "1").unwrap();
    let doctor = |more: &[&str]| {
        lab.server_doctor(&["--interface", "eth1"].into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
    };
    doctor(&[]).finds("rp-filter", "eth1 drops clients' packets", "rp_filter=2");
    is_mended(doctor, "rp-filter", "eth1 drops clients' packets", "rp_filter=2");
}

/// What is documented is what there is, and every check but those that no namespace can be given is planted here.
#[test]
fn every_check_is_documented() {
    let documentation = include_str!("../../docs/doctor.md");
    let own: String = include_str!("doctor.rs").split_whitespace().collect();
    for id in lb_userspace::doctor::ids() {
        assert!(documentation.contains(&format!("| `{id}` |")), "{id} is not documented");
        let is_planted = ["finds(", "more),", "doctor,"].iter().any(|call| own.contains(&format!("{call}\"{id}\"")));
        let is_left_out = ["kernel", "lro", "memory"].contains(&id);
        assert_ne!(is_planted, is_left_out, "{id}");
    }
}
