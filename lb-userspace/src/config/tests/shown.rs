//! What `tandem config show`, `schema` and `init` print: it comes from the readers, and means what they say.

use serde_json::Value as Json;

use super::*;

const SHOWN: &str = r#"version = 1

[cluster]
name = "edge-1"
hash_key_file = "hash.key"
generation = 0
port = 7400
probe = { interval = "20ms", misses = 5 }
handoff = "owner"
replicate = "plausible"
grace = "1m"
takeover_after = "30s"
timeouts = { young = "15s", tcp = "2h 4m", closing = "2m", reset = "30s", udp = "1m 30s", sctp = "3m 30s", sctp_closing = "1m" }

[[cluster.member]]
id = 1
name = "lb1"
address = "10.0.1.11"
drain = false
public_key = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="
"#;

/// A document that an editor would hold against the schema.
fn document(text: &str) -> Json {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

fn effective(directory: &Directory, text: &str) -> Effective {
    let host = Host { state: &directory.0, ..host() };
    Config::effective(text, &directory.0.join("tandem.toml"), &host).unwrap()
}

#[test]
fn what_is_shown_means_the_same_and_hides_no_default() {
    let directory = Directory::new();
    let shown = effective(&directory, VALID).to_toml();
    assert!(shown.starts_with(SHOWN), "{shown}");
    for text in [VALID, &everything()] {
        let shown = effective(&directory, text);
        assert_eq!(directory.parse(&shown.to_toml()), directory.parse(text));
        assert_eq!(shown.to_json(), document(&shown.to_toml()));
        assert_eq!(effective(&directory, &shown.to_toml()).to_toml(), shown.to_toml());
    }
}

#[test]
fn what_the_host_decides_is_shown() {
    let directory = Directory::new();
    let text = VALID.replace("[node]\nname = \"lb1\"", "[node]\nkey_file = \"lb2.key\"");
    let node = effective(&directory, &text).to_json()["node"].take();
    assert_eq!((&node["name"], &node["cluster_interface"]), (&"lb2".into(), &"eth0".into()));
    assert_eq!(node["key_file"], "lb2.key");
    let node = effective(&directory, VALID).to_json()["node"].take();
    assert_eq!(node["key_file"], directory.0.join("member.key").to_str().unwrap());
}

/// Where the readers have a default, the schema has it: the empty file is read by the same code.
#[test]
fn the_schema_has_every_default_and_every_required_key() {
    let schema = Config::schema();
    let of = |table: &str, key: &str| schema.pointer(table).unwrap()["properties"][key]["default"].clone();
    assert_eq!(of("/properties/cluster/properties/probe", "interval"), "20ms");
    assert_eq!(of("/properties/node", "flows_v6_max"), 1 << 18);
    assert_eq!(of("/properties/node/properties/budgets", "answers"), 10_000);
    assert_eq!(of("/properties/service/items/properties/backends/items", "weight"), 100);
    let required = |pointer: &str| schema.pointer(pointer).unwrap()["required"].clone();
    assert_eq!(required(""), serde_json::json!(["version", "cluster"]));
    assert_eq!(required("/properties/cluster"), serde_json::json!(["member", "name", "hash_key_file"]));
    assert_eq!(required("/properties/cluster/properties/member/items"), serde_json::json!(["id", "name", "address"]));
    assert_eq!(required("/properties/service/items"), serde_json::json!(["name", "vip", "backends"]));
}

#[test]
fn the_schema_takes_what_the_readers_take_and_refuses_a_good_part_of_the_rest() {
    let schema = validator(Config::schema());
    for text in [VALID, &everything(), &effective(&Directory::new(), VALID).to_toml()] {
        schema(&document(text)).unwrap();
    }
    let broken = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let texts = std::fs::read_dir(broken).unwrap().map(|file| file.unwrap().path());
    let texts = texts.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let (refused, taken): (Vec<_>, Vec<_>) = texts
        .filter_map(|path| Some((toml::from_str::<toml::Table>(&std::fs::read_to_string(&path).ok()?).ok()?, path)))
        .partition(|(table, _)| schema(&serde_json::to_value(table).unwrap()).is_err());
    // The rest is between keys, or in other files.
    let taken: Vec<_> = taken.iter().filter_map(|(_, path)| path.file_stem()).collect();
    assert!(refused.len() > 35, "{} refused; taken: {taken:?}", refused.len());
}

/// Holds documents against `schema`.
fn validator(schema: Json) -> impl Fn(&Json) -> Result<(), String> {
    let mut compiler = boon::Compiler::new();
    compiler.enable_format_assertions();
    compiler.add_resource("tandem.json", schema).unwrap();
    let mut schemas = boon::Schemas::new();
    let index = compiler.compile("tandem.json", &mut schemas).unwrap();
    move |document| schemas.validate(document, index).map_err(|error| error.to_string())
}

/// But for the secret, which is in a file of its own.
#[test]
fn the_file_to_begin_with_is_valid_on_its_host() {
    let directory = Directory::new();
    for (address, interface) in [("10.0.1.11", "eth0"), ("2001:db8:1::11", "eth0")] {
        let own = OwnMember { name: "lb7", address: address.parse().unwrap(), interface };
        let text = Example::of(&own).replace("/etc/tandem/", "");
        Config::check_text(&text, Path::new("tandem.toml")).unwrap();
        let host_name = &|| "lb7".to_owned();
        let config = directory.parse_on(&text, &Host { host_name, ..host() }).unwrap();
        assert_eq!((config.this_member().address.to_string(), config.services.len()), (address.to_owned(), 1));
        assert!(!text.contains("lb1"), "{text}");
        let uncommented = text.replace("# name = ", "name = ");
        assert_eq!(directory.parse(&uncommented).unwrap(), config);
    }
}

#[test]
fn what_a_file_says_by_itself_can_be_checked_anywhere() {
    let path = Path::new("/nonexistent/tandem.toml");
    Config::check_text(VALID, path).unwrap();
    Config::check_text(&VALID.replace("eth0", "eth7").replace("name = \"lb1\"\ninterfaces", "interfaces"), path)
        .unwrap();
    let said = Config::check_text(&VALID.replace("80/tcp", "80"), path).unwrap_err().to_string();
    assert!(said.contains("--> /nonexistent/tandem.toml:"), "{said}");
}
