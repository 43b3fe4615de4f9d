//! The members' configuration file, as values that tests change and write again.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::topology::{Family, Host, INTERFACE, VIP, VIP_V6};

/// A configuration file: equal on all members, who are told their names on the command line.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds the cluster's hash key.
    pub key_file: PathBuf,
    /// `cluster.handoff`.
    pub handoff: &'static str,
    /// `cluster.replicate`.
    pub replicate: &'static str,
    /// `cluster.timeouts`, if not the default.
    pub timeouts: Option<&'static str>,
    /// `cluster.takeover_after`, if not the default.
    pub takeover_after: Option<&'static str>,
    /// `cluster.probe`: milliseconds between probes, and how many may be missed.
    pub probe: (u32, u32),
    /// `node.interfaces`.
    pub interfaces: Vec<&'static str>,
    /// `node.on_stop`, if not the default.
    pub on_stop: Option<&'static str>,
    /// `node.announce_table`, if VIPs are announced.
    pub announce_table: Option<u32>,
    /// `node.metrics_listen`, if the agent answers Prometheus.
    pub metrics_listen: Option<&'static str>,
    /// `node.flows_max`, if not the default.
    pub flows_max: Option<u32>,
    /// The family of the members' addresses.
    pub underlay: Family,
    /// The family of the backends' addresses.
    pub behind: Family,
    /// The members.
    pub members: Vec<Member>,
    /// The services.
    pub services: Vec<Service>,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Its tunnel and agent address.
    pub address: IpAddr,
    /// Where its deliveries to backends of the other family come from.
    pub second_address: Option<IpAddr>,
    /// Its public keys; the one that its agent has is among them.
    pub public_keys: Vec<String>,
    /// Whether it gives its flows to others.
    pub drain: bool,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What it answers on, as `ADDRESS:PORT/PROTOCOL`.
    pub vip: Vec<String>,
    /// `affinity`, if not the default.
    pub affinity: Option<&'static str>,
    /// `health`, if it is checked.
    pub health: Option<&'static str>,
    /// The servers behind it.
    pub backends: Vec<Backend>,
}

/// A server of a service.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// Whether it keeps its connections and gets no new ones.
    pub drain: bool,
}

impl Config {
    /// The lab's default: what an operator would write, with one service on TCP port 80 and UDP port 53.
    pub fn new(key_file: PathBuf) -> Self {
        let vip = vec![format!("{VIP}:80/tcp"), format!("{VIP}:53/udp")];
        Self {
            key_file,
            handoff: "owner",
            replicate: "plausible",
            timeouts: None,
            takeover_after: None,
            probe: (20, 5),
            interfaces: vec![INTERFACE],
            on_stop: None,
            announce_table: None,
            metrics_listen: None,
            // A preallocated table for the default million flows costs 123 MB a member, for nothing in a lab.
            flows_max: Some(1 << 17),
            underlay: Family::V4,
            behind: Family::V4,
            members: Vec::new(),
            services: vec![Service { name: "web".to_owned(), vip, affinity: None, health: None, backends: Vec::new() }],
        }
    }

    /// Adds a member.
    pub fn add_member(&mut self, id: u8, host: &Host, public_key: String) {
        let second_address = (self.behind != self.underlay).then(|| host.address_of(self.behind));
        let address = host.address_of(self.underlay);
        let public_keys = vec![public_key];
        self.members.push(Member { id, name: host.name.clone(), address, second_address, public_keys, drain: false });
    }

    /// Has the lab's service answer on its IPv6 address too.
    pub fn add_vip_v6(&mut self) {
        self.services[0].vip.extend([format!("[{VIP_V6}]:80/tcp"), format!("[{VIP_V6}]:53/udp")]);
    }

    /// Adds a server to the lab's service.
    pub fn add_backend(&mut self, host: &Host) {
        let backend = Backend { name: host.name.clone(), address: host.address_of(self.behind), drain: false };
        self.services[0].backends.push(backend);
    }

    /// Drains a server of the lab's service.
    pub fn drain(&mut self, name: &str) {
        for backend in self.services[0].backends.iter_mut().filter(|backend| backend.name == name) {
            backend.drain = true;
        }
    }

    /// The same, with only member `id`: it shares its key and its ring with the others and knows none of them.
    pub fn alone(&self, id: u8) -> Self {
        let members = self.members.iter().filter(|member| member.id == id).cloned().collect();
        Self { members, ..self.clone() }
    }

    /// Replaces the file at `path` as a whole, so that no reader finds half of it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let fresh = path.with_extension("new");
        fs::write(&fresh, self.render())
            .and_then(|()| fs::rename(&fresh, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        self.render_into(&mut text).expect("a String takes all that is written to it");
        text
    }

    fn render_into(&self, out: &mut String) -> std::fmt::Result {
        let (interval, misses) = self.probe;
        writeln!(out, "version = 1\n\n[cluster]\nname = \"lab\"")?;
        writeln!(out, "hash_key_file = \"{}\"", self.key_file.display())?;
        writeln!(out, "probe = {{ interval = \"{interval}ms\", misses = {misses} }}")?;
        writeln!(out, "handoff = \"{}\"\nreplicate = \"{}\"", self.handoff, self.replicate)?;
        if let Some(timeouts) = self.timeouts {
            writeln!(out, "timeouts = {timeouts}")?;
        }
        if let Some(after) = self.takeover_after {
            writeln!(out, "takeover_after = \"{after}\"")?;
        }
        for Member { id, name, address, second_address, public_keys, drain } in &self.members {
            writeln!(out, "\n[[cluster.member]]\nid = {id}\nname = \"{name}\"\naddress = \"{address}\"")?;
            writeln!(out, "public_key = {public_keys:?}")?;
            if let Some(address) = second_address {
                writeln!(out, "second_address = \"{address}\"")?;
            }
            if *drain {
                writeln!(out, "drain = true")?;
            }
        }
        writeln!(out, "\n[node]\ninterfaces = {:?}", self.interfaces)?;
        if let Some(on_stop) = self.on_stop {
            writeln!(out, "on_stop = \"{on_stop}\"")?;
        }
        if let Some(table) = self.announce_table {
            writeln!(out, "announce_table = {table}")?;
        }
        if let Some(address) = self.metrics_listen {
            writeln!(out, "metrics_listen = \"{address}\"")?;
        }
        if let Some(flows_max) = self.flows_max {
            writeln!(out, "flows_max = {flows_max}")?;
        }
        for service in &self.services {
            writeln!(out, "\n[[service]]\nname = \"{}\"\nvip = {:?}", service.name, service.vip)?;
            if let Some(affinity) = service.affinity {
                writeln!(out, "affinity = \"{affinity}\"")?;
            }
            if let Some(health) = service.health {
                writeln!(out, "health = {health}")?;
            }
            writeln!(out, "backends = [")?;
            for Backend { name, address, drain } in &service.backends {
                let drain = if *drain { ", drain = true" } else { "" };
                writeln!(out, "    {{ name = \"{name}\", address = \"{address}\"{drain} }},")?;
            }
            writeln!(out, "]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::Ipv4Addr, os::unix::fs::OpenOptionsExt};

    use lb_userspace::{
        config::Host as OnHost,
        identity::{KEY_FILE, MemberKey},
    };

    use super::*;

    fn member(id: u8) -> Member {
        let address = Ipv4Addr::new(10, 0, 1, 10 + id).into();
        let public_keys = vec![MemberKey::from_seed(&[id; 32]).public().to_string()];
        Member { id, name: format!("lb{id}"), address, second_address: None, public_keys, drain: false }
    }

    fn key_file() -> PathBuf {
        let path = std::env::temp_dir().join(format!("lab-config-test-{}.key", std::process::id()));
        let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path).unwrap();
        writeln!(file, "000102030405060708090a0b0c0d0e0f").unwrap();
        path
    }

    #[test]
    fn what_is_written_is_what_the_agent_reads() {
        let mut config = Config::new(key_file());
        config.members = vec![member(1), member(2), member(3)];
        config.members[2].drain = true;
        config.takeover_after = Some("5s");
        for last in 11..=13 {
            let (name, address) = (format!("web-{last}"), Ipv4Addr::new(10, 0, 2, last).into());
            config.services[0].backends.push(Backend { name, address, drain: false });
        }
        config.drain("web-12");
        let state = std::env::temp_dir().join(format!("lab-config-test-{}", std::process::id()));
        fs::create_dir(&state).unwrap();
        MemberKey::from_seed(&[2; 32]).write(&state.join(KEY_FILE), false).unwrap();
        let read = |config: &Config, node| {
            let host = OnHost { node: Some(node), state: &state, interface_exists: &|_| true, ..OnHost::default() };
            lb_userspace::config::Config::parse(&config.render(), Path::new("lab.toml"), &host).unwrap()
        };
        let all = read(&config, "lb2");
        assert_eq!(all.cluster.members.iter().map(|member| member.drain).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(all.cluster.takeover_after, std::time::Duration::from_secs(5));
        assert_eq!(all.this_member().address.to_string(), member(2).address.to_string());
        assert_eq!(all.node.flows_max, 1 << 17);
        assert_eq!(all.services[0].vips.len(), 2);
        let drained: Vec<bool> = all.services[0].backends.iter().map(|backend| backend.drain).collect();
        assert_eq!(drained, [false, true, false]);

        let alone = read(&config.alone(2), "lb2");
        assert_eq!(alone.cluster.members.len(), 1);
        assert!(alone.cluster.hash_key == all.cluster.hash_key, "the same key, so the same ring");
        assert_eq!(alone.services, all.services);
        fs::remove_file(&config.key_file).unwrap();
        fs::remove_dir_all(&state).unwrap();
    }
}
