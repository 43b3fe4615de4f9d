//! What `ipvsadm -Sn` saves: a line of options for each service and each server, as they would be given to it again.

use std::net::{IpAddr, SocketAddr};

use super::{Imported, Service, VirtualAddress, joined};

/// Reads what `ipvsadm -Sn` printed.
pub fn read(text: &str) -> Imported {
    let mut imported = Imported::default();
    // By what the lines call them.
    let mut known: Vec<(String, usize)> = Vec::new();
    for (line, words) in (1..).zip(text.lines()) {
        let words: Vec<&str> = words.split_whitespace().collect();
        let Some((&command, options)) = words.split_first().filter(|(first, _)| !first.starts_with('#')) else {
            continue;
        };
        let rule = Rule::of(options);
        match command {
            "-A" | "--add-service" => service(&mut imported, &mut known, line, &rule),
            "-a" | "--add-server" => server(&mut imported, &known, line, &rule),
            "--set" | "--start-daemon" | "-C" | "--clear" => {
                imported.leave_out(line, format!("{command}: has no counterpart"))
            }
            _ => imported.leave_out(line, format!("{command}: not a line of `ipvsadm -Sn`")),
        }
    }
    imported.services = joined(imported.services);
    imported.finish()
}

/// Options and their values.
struct Rule<'a> {
    options: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Rule<'a> {
    fn of(words: &[&'a str]) -> Self {
        let mut options: Vec<(&str, Option<&str>)> = Vec::new();
        for word in words {
            match options.last_mut() {
                Some((_, value @ None)) if !word.starts_with('-') => *value = Some(word),
                _ => match word.split_once('=').filter(|_| word.starts_with("--")) {
                    Some((option, value)) => options.push((option, Some(value))),
                    None => options.push((word, None)),
                },
            }
        }
        Self { options }
    }

    /// The protocol and the name of the service that the line is about.
    fn service(&self) -> Option<(&'static str, &'a str)> {
        self.options.iter().find_map(|(option, value)| {
            let protocol = match *option {
                "-t" | "--tcp-service" => "tcp",
                "-u" | "--udp-service" => "udp",
                "--sctp-service" => "sctp",
                "-f" | "--fwmark-service" => "fwmark",
                _ => return None,
            };
            Some((protocol, (*value)?))
        })
    }

    fn key(&self) -> Option<String> {
        self.service().map(|(protocol, name)| format!("{protocol} {name}"))
    }
}

fn service(imported: &mut Imported, known: &mut Vec<(String, usize)>, line: usize, rule: &Rule<'_>) {
    let (Some((protocol, name)), Some(key)) = (rule.service(), rule.key()) else {
        return imported.leave_out(line, "a service without an address");
    };
    if protocol == "fwmark" {
        return imported.leave_out(
            line,
            format!("fwmark {name}: services have addresses here, and no marks of a firewall; its servers too"),
        );
    }
    let Some((address, port)) = address(name) else {
        return imported.leave_out(line, format!("{name}: not an address and a port in numbers; save with -n"));
    };
    let mut affinity = false;
    // Without a word IPVS chooses by weighted least connections.
    let scheduler = rule.options.iter().find(|(option, _)| matches!(*option, "-s" | "--scheduler"));
    affinity |= imported.note_scheduler(line, scheduler.and_then(|(_, value)| *value).unwrap_or("wlc"));
    for (option, value) in &rule.options {
        match *option {
            "-t" | "-u" | "--tcp-service" | "--udp-service" | "--sctp-service" | "-s" | "--scheduler" => {}
            "-p" | "--persistent" => affinity = true,
            // Of the hashing schedulers: fall back to another server, hash the port too.
            "-b" | "--sched-flags" if value.is_some_and(|flags| !flags.contains("port")) => {}
            "-o" | "--ops" => {
                imported.leave_out(line, format!("{name}: one-packet scheduling: packets of a flow stay together here"))
            }
            _ => imported.leave_out(line, format!("{name}: {option} {} has no counterpart", value.unwrap_or_default())),
        }
    }
    let vips = vec![VirtualAddress { address, port, protocol }];
    known.push((key, imported.services.len()));
    imported.services.push(Service { vips, affinity, health: None, backends: Vec::new() });
}

fn server(imported: &mut Imported, known: &[(String, usize)], line: usize, rule: &Rule<'_>) {
    let key = rule.key();
    let Some((_, service)) = known.iter().find(|(name, _)| Some(name) == key.as_ref()) else {
        // Of a service that was named already.
        if !key.is_some_and(|key| key.starts_with("fwmark")) {
            imported.leave_out(line, "a server of a service that is not there");
        }
        return;
    };
    let (mut found, mut weight, mut way) = (None, 1, "DR");
    for (option, value) in &rule.options {
        match *option {
            "-t" | "-u" | "--tcp-service" | "--udp-service" | "--sctp-service" => {}
            "-r" | "--real-server" => found = value.and_then(address),
            "-w" | "--weight" => weight = value.and_then(|weight| weight.parse().ok()).unwrap_or(1),
            "-i" | "--ipip" => way = "TUN",
            "-g" | "--gatewaying" => way = "DR",
            "-m" | "--masquerading" => way = "NAT",
            "-x" | "--u-threshold" | "-y" | "--l-threshold" if value.is_some_and(|limit| limit == "0") => {}
            "--tun-type" if value.is_some_and(|kind| kind == "ipip") => {}
            _ => imported.leave_out(line, format!("{option} {} has no counterpart", value.unwrap_or_default())),
        }
    }
    let Some((address, port)) = found else {
        return imported.leave_out(line, "a server without an address in numbers");
    };
    imported.note_forwarding(line, way);
    imported.add_backend(line, *service, address, port, weight);
}

/// `ADDRESS:PORT`, or an address for every port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let socket = text.parse::<SocketAddr>().map(|socket| (socket.ip(), socket.port()));
    socket.ok().or_else(|| Some((text.trim_matches(['[', ']']).parse().ok()?, 0)))
}
