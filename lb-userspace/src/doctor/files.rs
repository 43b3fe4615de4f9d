//! What lies on disk, and the port.

use std::{
    fs, io,
    net::{TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
};

use super::{Balancer, Examined, Finding, Mend, Unknown};
use crate::io::state::lock_holder;

/// Bits that let others than the owner in.
const OTHERS: u32 = 0o077;

pub(super) fn config(balancer: &Balancer) -> Examined {
    let Some((first, count)) = (balancer.problems)() else { return Ok(Vec::new()) };
    let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
    let found = format!("{} is invalid: {first}{more}", balancer.config.display());
    Ok(vec![Finding::new(found, Mend::Say(format!("tandem config check {}", balancer.config.display())))])
}

pub(super) fn keys_exist(balancer: &Balancer) -> Examined {
    let missing = balancer.outline.secrets.iter().filter(|secret| !secret.path.exists());
    Ok(missing
        .map(|secret| {
            let file = secret.path.display();
            let same = if secret.made_by.ends_with("secret") { " on one member; copy it to the others" } else { "" };
            Finding::new(format!("{file} does not exist"), Mend::Say(format!("{} {file}{same}", secret.made_by)))
        })
        .collect())
}

pub(super) fn modes(balancer: &Balancer) -> Examined {
    let mut findings = Vec::new();
    for secret in &balancer.outline.secrets {
        let Ok(metadata) = fs::metadata(&secret.path) else { continue };
        let mode = metadata.mode() & 0o7777;
        if metadata.is_file() && mode & OTHERS != 0 {
            let found = format!("{} is open to others than its owner (mode {mode:03o})", secret.path.display());
            findings.push(Finding::new(found, Mend::Mode(secret.path.clone(), 0o600)));
        }
    }
    Ok(findings)
}

/// Written to, because permission bits do not tell of file systems that are read-only.
pub(super) fn state_directory(balancer: &Balancer) -> Examined {
    let directory = &balancer.state;
    let show = directory.display();
    if !directory.exists() {
        let found = format!("the state directory {show} does not exist");
        return Ok(vec![Finding::new(found, Mend::Directory(directory.clone()))]);
    }
    let trial = directory.join(".doctor");
    match fs::write(&trial, "").and_then(|()| fs::remove_file(&trial)) {
        Ok(()) => Ok(Vec::new()),
        Err(error) => {
            let found = format!("the state directory {show} cannot be written to: {error}");
            let mend = format!(
                "make {show} a directory on a file system that can be written to, or choose another: --state-dir"
            );
            Ok(vec![Finding::new(found, Mend::Say(mend))])
        }
    }
}

/// Another program would keep the agent from its peers.
pub(super) fn port(balancer: &Balancer) -> Examined {
    if let Ok(Some(agent)) = lock_holder(&balancer.pins) {
        return Err(Unknown::because(format!("the agent runs (process {agent}) and has it")));
    }
    let port = balancer.outline.port;
    let mut findings = Vec::new();
    for address in balancer.outline.own.iter().take(1) {
        let tries = [
            ("TCP", TcpListener::bind((*address, port)).map(drop)),
            ("UDP", UdpSocket::bind((*address, port)).map(drop)),
        ];
        for (protocol, bound) in tries {
            if bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
                let found = format!("{protocol} port {port} of {address} is in use by another program");
                let who = format!(
                    "stop it (`ss -lnup -lntp sport = :{port}` names it), or choose another cluster.port on all members"
                );
                findings.push(Finding::new(found, Mend::Say(who)));
            }
        }
    }
    Ok(findings)
}
