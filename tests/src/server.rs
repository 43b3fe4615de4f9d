//! A server: takes the outer header off with `tandem decap`, and answers.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    topology::{BALANCERS, BALANCERS_V6, Host, INTERFACE, VIP, VIP_V6},
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

    /// Answers on the VIPs what comes through the tunnel; returns once `tandem decap`, which logs to `log`, is attached.
    pub fn start(number: u32, host: Host, tandem: &Path, log: &Path) -> Result<Self> {
        let mut server = Self::bare(number, host)?;
        server.decap(tandem, log, &[])?;
        Ok(server)
    }

    /// Runs `tandem decap` with more options, in the place of the one that runs.
    pub fn decap(&mut self, tandem: &Path, log: &Path, more: &[&str]) -> Result<()> {
        self.end_decap();
        let mut command = self.host.namespace.command(tandem);
        command.args(["decap", "--interface", INTERFACE, "--from", BALANCERS, BALANCERS_V6]);
        command.args(["--vip", &VIP.to_string(), &VIP_V6.to_string()]).args(more);
        let stderr = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut decap = command.spawn().with_context(|| format!("cannot start {} decap", tandem.display()))?;
        let stdout = decap.stdout.take();
        self.decap = Some(decap);
        let mut line = String::new();
        BufReader::new(stdout.context("decap has no stdout")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("`tandem decap` on {} did not get ready; it said\n{line}{said}", self.host.name);
        }
        Ok(())
    }

    /// Ends `tandem decap` as an operator does, and waits for it: the programs are gone then.
    fn end_decap(&mut self) {
        let Some(mut decap) = self.decap.take() else { return };
        // SAFETY: a signal to a child that has not been waited for.
        let sent = unsafe { libc::kill(decap.id() as i32, libc::SIGTERM) };
        if sent != 0 {
            eprintln!("cannot end the decap of {}", self.host.name);
        }
        if let Err(error) = decap.wait() {
            eprintln!("cannot wait for the decap of {}: {error}", self.host.name);
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.host.name
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end_decap();
    }
}
