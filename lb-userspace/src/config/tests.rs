//! One test per thing that can be wrong, with the message exactly as the operator sees it.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use super::*;

const VALID: &str = r#"version = 1

[cluster]
name = "edge-1"
hash_key_file = "hash.key"

[[cluster.member]]
id = 1
name = "lb1"
address = "10.0.1.11"

[[cluster.member]]
id = 2
name = "lb2"
address = "10.0.1.12"

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

/// A directory with a good key file in it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tandem-config-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir_all(&path).unwrap();
        let directory = Self(path);
        directory.key_file("00112233445566778899aabbccddeeff\n", 0o600);
        directory
    }

    fn key_file(&self, text: &str, mode: u32) {
        let path = self.0.join("hash.key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn parse_on(&self, text: &str, host: &Host<'_>) -> Result<Config, String> {
        Config::parse(text, &self.0.join("tandem.toml"), host)
            .map_err(|error| error.to_string().replace(&format!("{}/", self.0.display()), ""))
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

fn host() -> Host<'static> {
    Host {
        node: None,
        interfaces: &[],
        interface_exists: &|name| name == "eth0",
        host_name: &|| "lb2.example.net".into(),
    }
}

#[test]
fn a_valid_file_becomes_a_configuration() {
    let directory = Directory::new("valid");
    let config = directory.parse(VALID).unwrap();
    assert_eq!(config.this_member().name.as_str(), "lb1");
    assert_eq!(config.services[0].backends[0].weight, Weight::DEFAULT);
}
