//! The `virtual_server` blocks of a keepalived.conf.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Imported, Service, VirtualAddress, joined};

/// A statement: words, and what is in its braces.
#[derive(Debug, Default)]
struct Statement {
    line: usize,
    words: Vec<String>,
    block: Vec<Self>,
}

impl Statement {
    fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }
}

/// Reads a keepalived.conf.
pub fn read(text: &str) -> Imported {
    let mut imported = Imported::default();
    let statements = parse(text, &mut imported);
    let mut groups = BTreeMap::new();
    for group in statements.iter().filter(|statement| statement.word(0) == "virtual_server_group") {
        groups.insert(group.word(1).to_owned(), group);
    }
    for statement in &statements {
        match statement.word(0) {
            "virtual_server" => virtual_server(&mut imported, statement, &groups),
            "virtual_server_group" => {}
            "vrrp_instance" | "vrrp_sync_group" => imported.leave_out(
                statement.line,
                format!(
                    "{} {}: members announce VIPs to routers (docs/announcing.md) and are all in service, there is no VRRP",
                    statement.word(0),
                    statement.word(1)
                ),
            ),
            other => imported.leave_out(statement.line, format!("{other}: has no counterpart")),
        }
    }
    imported.services = joined(imported.services);
    imported.finish()
}

fn virtual_server(imported: &mut Imported, statement: &Statement, groups: &BTreeMap<String, &Statement>) {
    let of = |name: &str| statement.block.iter().find(|inner| inner.word(0) == name);
    let protocol = match of("protocol").map_or("TCP", |protocol| protocol.word(1)) {
        "UDP" => "udp",
        "SCTP" => "sctp",
        _ => "tcp",
    };
    let vips = addresses(imported, statement, groups, protocol);
    if vips.is_empty() {
        return;
    }
    let at = imported.services.len();
    imported.services.push(Service { vips, affinity: false, health: None, backends: Vec::new() });
    let (mut affinity, mut interval, mut way) = (false, None, ("DR", statement.line));
    let mut checks: Vec<(usize, Check)> = Vec::new();
    for inner in &statement.block {
        let value = inner.word(1);
        match inner.word(0) {
            "protocol" | "ip_family" => {}
            "lb_algo" | "lvs_sched" => affinity |= imported.note_scheduler(inner.line, value),
            "lb_kind" | "lvs_method" => {
                way = (["TUN", "NAT"].into_iter().find(|way| *way == value).unwrap_or("DR"), inner.line)
            }
            "persistence_timeout" => affinity = true,
            "delay_loop" => interval = seconds(value),
            "real_server" => real_server(imported, at, inner, &mut checks),
            other => imported.leave_out(inner.line, format!("{other} {value}: has no counterpart")),
        }
    }
    imported.note_forwarding(way.1, way.0);
    let health = one_check(imported, &checks);
    if let Some(service) = imported.services.get_mut(at) {
        service.affinity = affinity;
        service.health = health.map(|check| check.to_toml(interval));
    }
}

/// `ADDRESS [PORT]`, `fwmark N`, `group NAME`.
fn addresses(
    imported: &mut Imported,
    statement: &Statement,
    groups: &BTreeMap<String, &Statement>,
    protocol: &'static str,
) -> Vec<VirtualAddress> {
    let vip = |imported: &mut Imported, line: usize, address: &str, port: &str| {
        let parsed: Option<IpAddr> = address.parse().ok();
        let vip = parsed.zip(if port.is_empty() { Some(0) } else { port.parse().ok() });
        if vip.is_none() {
            let what =
                format!("{address} {port}: not one address and port; ranges, marks and names have no counterpart");
            imported.leave_out(line, what);
        }
        vip.map(|(address, port)| VirtualAddress { address, port, protocol })
    };
    if statement.word(1) != "group" {
        return vip(imported, statement.line, statement.word(1), statement.word(2)).into_iter().collect();
    }
    let Some(group) = groups.get(statement.word(2)) else {
        imported.leave_out(statement.line, format!("virtual_server_group {} is not in the file", statement.word(2)));
        return Vec::new();
    };
    group.block.iter().filter_map(|inner| vip(imported, inner.line, inner.word(0), inner.word(1))).collect()
}

fn real_server(imported: &mut Imported, service: usize, statement: &Statement, checks: &mut Vec<(usize, Check)>) {
    let (line, mut weight) = (statement.line, 1);
    let Ok(address) = statement.word(1).parse::<IpAddr>() else {
        return imported.leave_out(line, format!("real_server {}: not an address in numbers", statement.word(1)));
    };
    let port = statement.word(2).parse().unwrap_or(0);
    for inner in &statement.block {
        let value = inner.word(1);
        match inner.word(0) {
            "weight" => weight = value.parse().unwrap_or(1),
            "TCP_CHECK" | "HTTP_GET" | "SSL_GET" => {
                let check = Check::of(imported, inner);
                checks.push((inner.line, check));
            }
            "lb_kind" | "lvs_method" => {
                imported.note_forwarding(inner.line, if value == "TUN" { "TUN" } else { value })
            }
            other => {
                imported.leave_out(inner.line, format!("real_server {address}: {other} {value}: has no counterpart"))
            }
        }
    }
    imported.add_backend(line, service, address, port, weight);
}

/// How a server is checked.
#[derive(Clone, Debug, Default, PartialEq)]
struct Check {
    kind: &'static str,
    path: Option<String>,
    host: Option<String>,
    status: Option<String>,
    timeout: Option<f64>,
    fall: Option<u64>,
    port: Option<u16>,
}

impl Check {
    fn of(imported: &mut Imported, statement: &Statement) -> Self {
        let kind = match statement.word(0) {
            "HTTP_GET" => "http",
            "SSL_GET" => "https",
            _ => "tcp",
        };
        let mut check = Self { kind, ..Self::default() };
        let mut has_url = false;
        for inner in &statement.block {
            let value = inner.word(1).to_owned();
            match inner.word(0) {
                "url" if !has_url => {
                    has_url = true;
                    check.url(imported, inner);
                }
                "url" => imported.leave_out(inner.line, "a second url: a check asks for one"),
                "virtualhost" => check.host = Some(value),
                "connect_timeout" => check.timeout = seconds(&value),
                "connect_port" => check.port = value.parse().ok(),
                "retry" | "nb_get_retry" => {
                    check.fall = value.parse::<u64>().ok().map(|retries| (retries + 1).min(255))
                }
                "delay_before_retry" | "warmup" => {}
                other => imported
                    .leave_out(inner.line, format!("{}: {other} {value}: has no counterpart", statement.word(0))),
            }
        }
        check
    }

    fn url(&mut self, imported: &mut Imported, url: &Statement) {
        for inner in &url.block {
            let value = inner.word(1).to_owned();
            match inner.word(0) {
                "path" => self.path = Some(value),
                "status_code" if inner.words.len() == 2 => self.status = Some(value),
                "virtualhost" => self.host = Some(value),
                other => imported
                    .leave_out(inner.line, format!("url: {other}: has no counterpart (`body` looks for a text)")),
            }
        }
    }

    fn to_toml(&self, interval: Option<f64>) -> String {
        let mut keys = vec![format!("type = \"{}\"", self.kind)];
        let time = |seconds: f64| format!("\"{}ms\"", (seconds * 1000.0).round());
        if let Some(port) = self.port {
            keys.push(format!("port = {port}"));
        }
        if let Some(interval) = interval {
            keys.push(format!("interval = {}", time(interval)));
        }
        if let Some(timeout) = self.timeout {
            keys.push(format!("timeout = {}", time(timeout)));
        }
        if let Some(fall) = self.fall {
            keys.push(format!("fall = {fall}"));
        }
        for (key, value) in [("path", &self.path), ("host", &self.host)] {
            keys.extend(value.iter().map(|value| format!("{key} = {value:?}")));
        }
        match self.status.as_deref().map(|status| (status, status.parse::<u16>())) {
            Some((_, Ok(code))) => keys.push(format!("status = {code}")),
            Some((range, Err(_))) => keys.push(format!("status = {range:?}")),
            // Whatever is not an error, where the file asks for no code.
            None if self.kind != "tcp" => keys.push("status = \"200-299\"".into()),
            None => {}
        }
        format!("{{ {} }}", keys.join(", "))
    }
}

/// All servers of a service are checked alike here: the first check counts.
fn one_check(imported: &mut Imported, checks: &[(usize, Check)]) -> Option<Check> {
    let (_, first) = checks.first()?;
    for (line, _) in checks.iter().filter(|(_, check)| check != first) {
        imported
            .leave_out(*line, "another check than that of the service's first server: all are checked like that one");
    }
    Some(first.clone())
}

fn seconds(text: &str) -> Option<f64> {
    text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0)
}

/// Statements end with their line, or with a brace; `#` and `!` begin comments.
fn parse(text: &str, imported: &mut Imported) -> Vec<Statement> {
    let mut open: Vec<Statement> = vec![Statement::default()];
    for (line, content) in (1..).zip(text.lines()) {
        let mut words: Vec<String> = Vec::new();
        let end = |open: &mut Vec<Statement>, words: &mut Vec<String>| {
            if let Some(parent) = open.last_mut().filter(|_| !words.is_empty()) {
                parent.block.push(Statement { line, words: std::mem::take(words), block: Vec::new() });
            }
        };
        for word in split(content) {
            match word.as_str() {
                "{" => open.push(Statement { line, words: std::mem::take(&mut words), block: Vec::new() }),
                "}" => {
                    end(&mut open, &mut words);
                    match open.pop() {
                        Some(closed) if !open.is_empty() => {
                            if let Some(parent) = open.last_mut() {
                                parent.block.push(closed);
                            }
                        }
                        Some(root) => {
                            open.push(root);
                            imported.leave_out(line, "a } that closes nothing");
                        }
                        None => {}
                    }
                }
                _ => words.push(word),
            }
        }
        end(&mut open, &mut words);
    }
    // A block that is never closed ends with the file.
    while open.len() > 1 {
        if let (Some(closed), Some(parent)) = (open.pop(), open.last_mut()) {
            imported.left_out.push(super::LeftOut { line: closed.line, what: "a { that is never closed".into() });
            parent.block.push(closed);
        }
    }
    open.pop().map(|root| root.block).unwrap_or_default()
}

/// Words, texts in quotes, and braces.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_quotes = false;
    for character in line.chars() {
        match character {
            '"' => in_quotes = !in_quotes,
            _ if in_quotes => word.push(character),
            '#' | '!' => break,
            '{' | '}' => {
                words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
                words.push(character.to_string());
            }
            _ if character.is_whitespace() => {
                words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()))
            }
            _ => word.push(character),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}
