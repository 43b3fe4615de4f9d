//! A server: takes the outer header off with `tandem decap`, and answers.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    topology::{BALANCERS, Host, INTERFACE, VIP},
    traffic::service::Service,
};

/// A server with its services running.
#[derive(Debug)]
pub struct Server {
    /// Its number, which it answers with.
    pub number: u32,
    /// Its place in the network.
    pub host: Host,
    _service: Service,
    decap: Option<Child>,
}

impl Server {
    /// Answers on the VIP, but takes no tunnelled packets.
    pub fn bare(number: u32, host: Host) -> Result<Self> {
        let service = Service::start(&host.namespace, number)?;
        Ok(Self { number, host, _service: service, decap: None })
    }

    /// Answers on the VIP what comes through the tunnel; returns once `tandem decap`, which logs to `log`, is attached.
    pub fn start(number: u32, host: Host, tandem: &Path, log: &Path) -> Result<Self> {
        let mut server = Self::bare(number, host)?;
        let mut command = server.host.namespace.command(tandem);
        command.args(["decap", "--interface", INTERFACE, "--from", BALANCERS, "--vip", &VIP.to_string()]);
        let stderr = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut decap = command.spawn().with_context(|| format!("cannot start {} decap", tandem.display()))?;
        let stdout = decap.stdout.take();
        server.decap = Some(decap);
        let mut line = String::new();
        BufReader::new(stdout.context("decap has no stdout")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("`tandem decap` on {} did not get ready; it said\n{line}{said}", server.host.name);
        }
        Ok(server)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.host.name
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut decap) = self.decap.take() else { return };
        if let Err(error) = decap.kill().and_then(|()| decap.wait().map(drop)) {
            eprintln!("cannot end the decap of {}: {error}", self.host.name);
        }
    }
}
