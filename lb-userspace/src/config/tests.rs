//! What is valid, what is refused, and that nothing else happens.
//!
//! `tests/broken/` holds a file for each thing that can be wrong, and beside it what the operator sees, to the
//! letter. `UPDATE=1` writes the latter anew; read the difference before you commit it.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use proptest::prelude::*;

use super::*;

mod shown;

const VALID: &str = r#"version = 1

[cluster]
name = "edge-1"
hash_key_file = "hash.key"

[[cluster.member]]
id = 1
name = "lb1"
address = "10.0.1.11"
public_key = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="

[[cluster.member]]
id = 2
name = "lb2"
address = "10.0.1.12"
public_key = "gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5Q="

[node]
name = "lb1"
interfaces = ["eth0"]

[[service]]
name = "web"
vip = ["203.0.113.10:80/tcp"]
backends = [
  { name = "web-1", address = "10.0.2.11" },
  { name = "web-2", address = "10.0.2.12", weight = 50, drain = true },
]
"#;

/// A directory with key files in it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tandem-config-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Self(std::env::temp_dir().join(name));
        std::fs::create_dir(&directory.0).unwrap();
        directory.write("hash.key", "00112233445566778899aabbccddeeff\n", 0o600);
        directory.write("other.key", "ffeeddccbbaa99887766554433221100\n", 0o400);
        directory.write("open.key", "00112233445566778899aabbccddeeff\n", 0o640);
        directory.write("short.key", "00112233445566778899aabbccddeef\n", 0o600);
        for (name, seed) in [("member.key", 1), ("lb2.key", 2), ("second.key", 3), ("strangers.key", 9)] {
            MemberKey::from_seed(&[seed; 32]).write(&directory.0.join(name), false).unwrap();
        }
        directory.write("text.key", "a key of thirty-two characters..\n", 0o600);
        directory
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn parse_on(&self, text: &str, host: &Host<'_>) -> Result<Config, String> {
        let host = &Host { state: &self.0, ..*host };
        Config::parse(text, &self.0.join("tandem.toml"), host).map_err(|error| {
            let rendered = error.to_string().replace(&format!("{}/", self.0.display()), "");
            rendered.lines().map(|line| format!("{}\n", line.trim_end())).collect()
        })
    }

    fn parse(&self, text: &str) -> Result<Config, String> {
        self.parse_on(text, &host())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Has one interface.
fn host() -> Host<'static> {
    let host_name = &|| "lb2.example.net".into();
    let state = Path::new("/nonexistent");
    Host { node: None, interfaces: &[], state, interface_exists: &|name| name == "eth0", host_name }
}

fn hash(text: &str) -> u64 {
    Directory::new().parse(text).unwrap().cluster_hash()
}

#[test]
fn every_broken_file_is_refused_with_its_message() {
    let directory = Directory::new();
    let mut wrong = Vec::new();
    let mut files = 0;
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let said = directory.parse(&text).expect_err(&format!("{} is valid", path.display()));
            let expected = path.with_extension("stderr");
            assert!(said.contains("--> tandem.toml:"), "{} is not told where: {said}", path.display());
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&expected, &said).unwrap();
            } else if std::fs::read_to_string(&expected).unwrap_or_default() != said {
                wrong.push(format!("{}:\n{said}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files >= 40, "{files} files");
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = Directory::new().parse(VALID).unwrap();
    let cluster = &config.cluster;
    assert_eq!((cluster.generation, cluster.port), (0, 7400));
    assert_eq!((cluster.probe_interval, cluster.probe_misses), (Duration::from_millis(20), 5));
    assert_eq!((cluster.handoff, cluster.replicate), (Handoff::Owner, Replicate::Plausible));
    assert_eq!(cluster.timeouts, Timeouts::DEFAULT);
    assert_eq!(
        (config.node.on_stop, config.node.flows_max, config.node.flows_v6_max),
        (OnStop::Keep, 1 << 20, 1 << 18)
    );
    assert_eq!(config.node.multi_buffer, MultiBuffer::Auto);
    assert_eq!((config.node.other_traffic, config.node.too_big), (OtherTraffic::Pass, TooBig::Answer));
    let service = &config.services[0];
    assert_eq!((service.affinity, service.echo, service.idle_timeout), (Affinity::Flow, true, None));
    assert_eq!(config.node.budgets, Budgets::DEFAULT);
    let backends: Vec<_> =
        config.services[0].backends.iter().map(|backend| (backend.weight.get(), backend.drain)).collect();
    assert_eq!(backends, [(100, false), (50, true)]);
}

#[test]
fn the_example_is_valid_and_what_it_comments_out_is_the_default() {
    let directory = Directory::new();
    let example = include_str!("../../../etc/tandem.toml");
    let installed = |text: &str| {
        let text = text.replace("/etc/tandem/", "").replace("/var/lib/tandem/", "");
        let text = (1..=3_u8).fold(text, |text, id| {
            let key = MemberKey::from_seed(&[id; 32]).public().to_string();
            text.replace(&format!("run `tandem cluster keygen` on lb{id}"), &key)
        });
        directory.parse_on(&text, &Host { node: Some("lb1"), ..host() }).unwrap()
    };
    let uncommented: String =
        example.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line))).skip(2).collect();
    assert_ne!(uncommented, example);
    assert_eq!(installed(&uncommented), installed(example));
}

#[test]
fn every_key_is_documented() {
    let documentation = include_str!("../../../docs/configuration.md");
    let directory = Directory::new();
    let inner = ["probe", "timeouts"].map(|table| format!("{table} = {{ zz = 1 }}\n")).concat();
    let text = VALID
        .replace("[cluster]\n", &format!("zz = 1\n[cluster]\nzz = 1\n{inner}"))
        .replace("id = 1\n", "id = 1\nzz = 1\n")
        .replace("[node]\n", "[node]\nzz = 1\nbudgets = { zz = 1 }\n")
        .replace("[[service]]\n", "[[service]]\nzz = 1\nhealth = { type = \"tcp\", zz = 1 }\n")
        .replace("weight = 50", "zz = 1, weight = 50");
    let said = directory.parse(&text).unwrap_err();
    let keys: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split_once("keys of ")?.1.split_once(": "))
        .flat_map(|(_, keys)| keys.split(", "))
        .collect();
    assert!(keys.len() > 35, "{keys:?}");
    for key in keys {
        let is_there = [
            format!("| `{key}` |"),
            format!(" {key},"),
            format!(" {key} }}"),
            format!("## `[{key}]`"),
            format!("## `[[{key}]]`"),
        ];
        assert!(is_there.iter().any(|pattern| documentation.contains(pattern)), "{key} is not documented");
    }
}

#[test]
fn the_core_has_the_same_defaults() {
    let (here, core) = (Timeouts::DEFAULT, crate::core::view::Timeouts::default());
    assert_eq!([here.young, here.tcp, here.closing], [core.young, core.established, core.closing]);
    assert_eq!([here.reset, here.udp], [core.reset, core.udp]);
    assert_eq!([here.sctp, here.sctp_closing], [core.sctp, core.sctp_closing]);
    let probing = crate::core::view::Probing::default();
    let cluster = Directory::new().parse(VALID).unwrap().cluster;
    assert_eq!((cluster.probe_interval, u32::from(cluster.probe_misses)), (probing.interval, probing.misses));
}

/// A file that leaves nothing to defaults.
fn everything() -> String {
    VALID
        .replace(
            "hash_key_file",
            r#"generation = 7
port = 7401
probe = { interval = "10ms", misses = 3 }
handoff = "direct"
replicate = "first-packet"
timeouts = { young = "45s", tcp = "1h", closing = "40s", reset = "31s", udp = "1m 30s", sctp = "2m", sctp_closing = "35s" }
delivery_source = ["10.99.0.0/24", "2001:db8:99::/96"]
hash_key_file"#,
        )
        .replace(
            "interfaces",
            r#"on_stop = "detach"
flows_max = 4096
flows_v6_max = 512
multi_buffer = "on"
other_traffic = "drop"
too_big = "drop"
budgets = { tcp = 1, udp = 2, derived = 0, sctp = 3, answers = 4 }
interfaces"#,
        )
        .replace("name = \"web\"", "name = \"web\"\naffinity = \"source\"\necho = false\nidle_timeout = \"20s\"")
        .replace("80/tcp\"]", "80/tcp\", \"203.0.113.10:any/udp\", \"[2001:db8::10]:443/sctp\"]")
        .replace("name = \"lb1\"\naddress", "name = \"lb1\"\nsecond_address = \"2001:db8:1::11\"\nhand_off_source = \"10.98.1.0/24\"\naddress")
}

#[test]
fn everything_can_be_written() {
    let config = Directory::new().parse(&everything()).unwrap();
    let cluster = &config.cluster;
    assert_eq!((cluster.generation, cluster.port), (7, 7401));
    assert_eq!((cluster.probe_interval, cluster.probe_misses), (Duration::from_millis(10), 3));
    assert_eq!(cluster.replicate, Replicate::FirstPacket);
    let timeouts = &cluster.timeouts;
    let seconds = [timeouts.young, timeouts.tcp, timeouts.closing, timeouts.reset, timeouts.udp].map(|t| t.as_secs());
    assert_eq!(seconds, [45, 3600, 40, 31, 90]);
    assert_eq!([timeouts.sctp, timeouts.sctp_closing].map(|t| t.as_secs()), [120, 35]);
    assert_eq!(cluster.handoff, Handoff::Direct);
    let sources: Vec<String> = cluster.delivery_source.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["10.99.0.0/24", "2001:db8:99::/96"]);
    let member = &cluster.members[0];
    assert_eq!(member.second_address, Some("2001:db8:1::11".parse().unwrap()));
    assert_eq!(member.hand_off_source.unwrap().to_string(), "10.98.1.0/24");
    let service = &config.services[0];
    assert_eq!((service.affinity, service.echo), (Affinity::Source, false));
    assert_eq!(service.idle_timeout, Some(Duration::from_secs(20)));
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["203.0.113.10:80/tcp", "203.0.113.10:any/udp", "[2001:db8::10]:443/sctp"]);
    let node = &config.node;
    assert_eq!((node.flows_v6_max, node.multi_buffer), (512, MultiBuffer::On));
    assert_eq!((node.other_traffic, node.too_big), (OtherTraffic::Drop, TooBig::Drop));
    assert_eq!((config.node.on_stop, config.node.flows_max), (OnStop::Detach, 4096));
    assert_eq!(config.node.budgets, Budgets { tcp: 1, udp: 2, derived: 0, sctp: 3, answers: 4 });
}

#[test]
fn the_command_line_goes_before_the_file_and_the_file_before_the_host_name() {
    let directory = Directory::new();
    let this = |text: &str, host: &Host<'_>| {
        directory.parse_on(text, host).map(|config| config.this_member().name.to_string())
    };
    let nameless = VALID.replace("[node]\nname = \"lb1\"", "[node]");
    assert_eq!(this(VALID, &host()).unwrap(), "lb1");
    let with_key = nameless.replace("[node]", "[node]\nkey_file = \"lb2.key\"");
    assert_eq!(this(&with_key, &host()).unwrap(), "lb2", "the first label of the host name");
    assert_eq!(this(&nameless, &Host { node: Some("lb1"), ..host() }).unwrap(), "lb1");
    assert_eq!(
        this(VALID, &Host { node: Some("lb3"), ..host() }).unwrap_err(),
        "error: no member of the cluster has the name \"lb3\" (from --node)
--> tandem.toml
 = help: members: lb1, lb2; choose one with --node or node.name
"
    );

    let bare = VALID.replace("interfaces = [\"eth0\"]", "");
    let given = ["eth0".to_owned(), "eth0".to_owned()];
    let config = directory.parse_on(&bare, &Host { interfaces: &given, ..host() }).unwrap();
    assert_eq!(config.node.interfaces, ["eth0".parse().unwrap()]);
    let given = ["eth9".to_owned()];
    assert_eq!(
        directory.parse_on(VALID, &Host { interfaces: &given, ..host() }).unwrap_err(),
        "error: this host has no interface eth9 (from --interface)
--> tandem.toml
 = help: `ip -br link` lists them
"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nonexistent/tandem.toml"), None, &[], Path::new("/nonexistent")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "error: cannot read the configuration /nonexistent/tandem.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn the_loopback_interface_exists_on_this_host() {
    let host = Host::default();
    assert!((host.interface_exists)("lo"));
    assert!(!(host.interface_exists)("no-such-if"));
    assert!(!(host.interface_exists)("nul\0byte"));
}

#[test]
fn a_written_key_reads_the_same_and_is_not_replaced_unasked() {
    let directory = Directory::new();
    let path = directory.0.join("new.key");
    let key = Key::generate().unwrap();
    assert_ne!(key.words(), Key::generate().unwrap().words());
    key.write(&path, false).unwrap();
    assert_eq!(Key::read(&path).unwrap(), key);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let other = Key::generate().unwrap();
    assert_eq!(other.write(&path, false).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(Key::read(&path).unwrap(), key);
    other.write(&path, true).unwrap();
    assert_eq!(Key::read(&path).unwrap(), other);
}

#[test]
fn a_key_is_taken_as_little_endian_words_and_never_printed() {
    let config = Directory::new().parse(VALID).unwrap();
    assert_eq!(config.cluster.hash_key.words(), [0x7766_5544_3322_1100, 0xffee_ddcc_bbaa_9988]);
    assert!(format!("{config:?}").contains("Key(..)"));
}

#[test]
fn equal_meaning_has_an_equal_hash() {
    let other = r#"
version = 1
node = { name = "lb2", interfaces = ["eth0"], flows_max = 77 }
cluster.name = "edge-1"
cluster.generation = 12
cluster.hash_key_file = "hash.key"
cluster.port = 7_400
cluster.probe.interval = "0s 20ms"
cluster.member = [
  { address = "10.0.1.12", id = 2, name = "balancer-2", public_key = ["gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5Q="] },
  { address = "10.0.1.11", id = 1, name = "lb2", public_key = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=" },
]
[[service]]
backends = [
  { address = "10.0.2.12", name = "b", drain = true, weight = 50 },
  { address = "10.0.2.11", name = "a", weight = 100 },
]
vip = ["203.0.113.10:80/tcp"]
name = "www"
"#;
    assert_eq!(hash(VALID), hash(other));
    assert_eq!(
        hash(VALID),
        17_278_936_234_929_699_624,
        "changed: members of different builds would call their equal configurations different"
    );
}

#[test]
fn different_meaning_has_a_different_hash() {
    let changes = [
        ("hash.key", "other.key"),
        ("edge-1", "edge-2"),
        ("id = 2", "id = 3"),
        ("10.0.1.12", "10.0.1.13"),
        ("10.0.2.12", "10.0.2.13"),
        ("weight = 50", "weight = 51"),
        ("drain = true", "drain = false"),
        (":80/tcp", ":81/tcp"),
        (":80/tcp", ":80/udp"),
        ("hash_key_file", "port = 7401\nhash_key_file"),
        ("hash_key_file", "replicate = \"first-packet\"\nhash_key_file"),
        ("hash_key_file", "probe = { interval = \"30ms\" }\nhash_key_file"),
        ("hash_key_file", "probe = { misses = 6 }\nhash_key_file"),
        ("hash_key_file", "timeouts = { udp = \"1m\" }\nhash_key_file"),
        ("hash_key_file", "timeouts = { sctp = \"1m\" }\nhash_key_file"),
        ("hash_key_file", "handoff = \"direct\"\nhash_key_file"),
        ("hash_key_file", "delivery_source = [\"10.99.0.0/24\"]\nhash_key_file"),
        ("address = \"10.0.1.12\"", "address = \"10.0.1.12\"\nsecond_address = \"2001:db8::12\""),
        ("address = \"10.0.1.12\"", "address = \"10.0.1.12\"\nhand_off_source = \"10.98.0.0/24\""),
        ("name = \"web\"", "name = \"web\"\naffinity = \"source\""),
        ("name = \"web\"", "name = \"web\"\necho = false"),
        (":80/tcp", ":any/tcp"),
    ];
    for (from, to) in changes {
        let changed = VALID.replace(from, to);
        assert_ne!(changed, VALID);
        assert_ne!(hash(VALID), hash(&changed), "{from} to {to}");
    }
}

#[test]
fn names_come_even_from_a_file_with_problems() {
    let names = Names::parse(&VALID.replace("weight = 50", "weight = 5000").replace("eth0", "eth7"));
    let vip: Vip = "203.0.113.10:80/tcp".parse().unwrap();
    assert_eq!(names.cluster(), Some("edge-1"));
    assert_eq!((names.member(2), names.member(3)), (Some("lb2"), None));
    assert_eq!(names.service(vip), Some("web"));
    assert_eq!(names.backend(vip, "10.0.2.12".parse().unwrap()), Some("web-2"));
    assert_eq!(Names::load(Path::new("/nonexistent")), Names::default());
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(edits in prop::collection::vec((0..VALID.len(), 0..40_usize, ".{0,8}"), 1..6)) {
        let mut text = VALID.to_owned();
        for (at, length, new) in edits {
            let start = text.floor_char_boundary(at.min(text.len()));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &new);
        }
        let error = Config::parse(&text, Path::new("tandem.toml"), &host()).unwrap_err();
        prop_assert!(error.render(true).contains("tandem.toml"));
    }

    #[test]
    fn tokens_in_any_order_do_not_make_the_reader_panic(
        tokens in prop::collection::vec(prop::sample::select(VALID.split_inclusive([' ', '\n']).collect::<Vec<_>>()), 0..60)
    ) {
        Config::parse(&tokens.concat(), Path::new("tandem.toml"), &host()).map_err(|error| error.to_string()).ok();
    }
}

/// One slip of an editor's "replace all" in a large file: shown line by line, without reading the file anew for each.
#[test]
fn ten_thousand_problems_are_said_in_seconds() {
    let backend =
        |number: u32| format!("  {{ name = \"b{number}\", adress = \"10.1.{}.{}\" }},\n", number >> 8, number & 255);
    let backends: String = (0..10_000).map(backend).collect();
    let text = VALID.replace("  { name = \"web-2\"", &format!("{backends}  {{ name = \"web-2\""));
    let began = std::time::Instant::now();
    let said = Config::check_text(&text, Path::new("tandem.toml")).unwrap_err().to_string();
    let last = text[..text.find("\"b9999\"").unwrap()].lines().count();
    assert!(said.contains(&format!("--> tandem.toml:{last}:21\n")), "line {last}");
    assert!(said.ends_with("\n\n10000 problems in tandem.toml"));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Inputs that once made the reader panic, as the fuzzer left them.
#[test]
fn what_the_fuzzer_found_makes_no_reader_panic() {
    let found = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzzed"));
    for file in found.into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        Config::check_text(&text, Path::new("tandem.toml")).map_err(|error| error.render(true)).ok();
        Config::parse(&text, Path::new("tandem.toml"), &host()).map_err(|error| error.render(true)).ok();
    }
}

#[test]
fn the_clusters_interface_comes_first() {
    let directory = Directory::new();
    let both = r#"interfaces = ["eth0", "eth1"]"#;
    let interfaces = |lines: &str| {
        let host = Host { interface_exists: &|_| true, ..host() };
        let config = directory.parse_on(&VALID.replace(r#"interfaces = ["eth0"]"#, lines), &host).unwrap();
        config.node.interfaces.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(interfaces(both), ["eth0", "eth1"]);
    assert_eq!(interfaces(&format!("{both}\ncluster_interface = \"eth1\"")), ["eth1", "eth0"]);
}

#[test]
fn a_member_needs_its_key_as_soon_as_it_has_a_peer() {
    let directory = Directory::new();
    let nowhere = Path::new("/nonexistent");
    let parse = |text: &str| Config::parse(text, &directory.0.join("tandem.toml"), &Host { state: nowhere, ..host() });
    let said = parse(VALID).unwrap_err().to_string().replace(&format!("{}/", directory.0.display()), "");
    assert_eq!(
        said,
        "error: this member's key file /nonexistent/member.key does not exist
--> tandem.toml
 = help: `tandem cluster keygen /nonexistent/member.key` on this host makes it, and prints the public key for the cluster's file"
    );
    let (before, rest) = VALID.split_once("[[cluster.member]]\nid = 2").unwrap();
    let alone = format!("{before}{}", &rest[rest.find("[node]").unwrap()..]);
    let line = format!("public_key = \"{}\"\n", MemberKey::from_seed(&[1; 32]).public());
    let config = parse(&alone.replace(&line, "")).unwrap();
    assert_eq!((config.node.key, config.cluster.members.len()), (None, 1));
}

#[test]
fn one_of_two_keys_is_enough() {
    let directory = Directory::new();
    let of = |seed: u8| MemberKey::from_seed(&[seed; 32]).public();
    let both = format!("[\"{}\", \"{}\"]", of(3), of(1));
    let text = VALID.replace(&format!("\"{}\"", of(1)), &both);
    let config = directory.parse(&text).unwrap();
    assert_eq!(config.this_member().public_keys, [of(3), of(1)]);
    assert_eq!(config.node.key, Some(MemberKey::from_seed(&[1; 32])));
    let second = directory.parse(&text.replace("[node]", "[node]\nkey_file = \"second.key\"")).unwrap();
    assert_eq!(second.node.key.map(|key| key.public()), Some(of(3)));
    assert_eq!(config.cluster_hash(), directory.parse(&text.replace("[node]", "[node]\n")).unwrap().cluster_hash());
    assert_ne!(config.cluster_hash(), hash(VALID));
}
