//! A balancer: the place in the network where a real `tandem run` works, and what can happen to it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use lb_userspace::identity::{KEY_FILE, MemberKey};

use crate::{
    command, interrupt,
    run::Run,
    tables::{self, Tables},
    topology::{Host, INTERFACE},
};

/// A member and its agent, if one runs.
#[derive(Debug)]
pub struct Member {
    /// Its id in the cluster.
    pub id: u8,
    /// Its place in the network.
    pub host: Host,
    tandem: PathBuf,
    config: PathBuf,
    pins: PathBuf,
    state: PathBuf,
    log: PathBuf,
    agent: Option<Child>,
    /// The lease in the maps when the agent was started: a dead predecessor's.
    stale_lease: u64,
}

impl Member {
    /// A member whose agent does not run yet, with directories of its own.
    pub fn new(run: &Run, id: u8, host: Host, config: PathBuf) -> Result<Self> {
        let file = |kind: &str| run.files().join(format!("{}.{kind}", host.name));
        let (state, log) = (file("state"), file("log"));
        let pins = run.pins(&host.name);
        for directory in [&state, &pins] {
            fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let member = Self { id, host, tandem: binary()?, config, pins, state, log, agent: None, stale_lease: 0 };
        member.make_key(KEY_FILE)?;
        Ok(member)
    }

    /// Makes a key in its state directory, as an operator would; answers its public half.
    pub fn make_key(&self, file: &str) -> Result<String> {
        let said = command::run(Command::new(&self.tandem).args(["cluster", "keygen"]).arg(self.state.join(file)))?;
        let key = said.trim().strip_prefix("public_key = \"").and_then(|rest| rest.strip_suffix('"'));
        key.map(str::to_owned).with_context(|| format!("`tandem cluster keygen` printed {said:?}"))
    }

    /// The public half of its key.
    pub fn public_key(&self) -> Result<String> {
        let key = MemberKey::read(&self.state.join(KEY_FILE));
        key.map(|key| key.public().to_string()).map_err(|error| anyhow!("the key of {} {error}", self.name()))
    }

    /// What its agent reads.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Gives it a file of its own, with the same content.
    pub fn keep_own_config(&mut self) -> Result<()> {
        let own = self.state.join("tandem.toml");
        fs::copy(&self.config, &own).with_context(|| format!("cannot copy {}", self.config.display()))?;
        self.config = own;
        Ok(())
    }

    /// Where its agent keeps its state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// Its pinned maps.
    pub fn tables(&self) -> Tables {
        Tables::new(&self.pins)
    }

    /// Where its maps, program and link are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Its agent's control socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// Its agent's process id.
    pub fn pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Starts the agent.
    pub fn start(&mut self) -> Result<()> {
        if self.agent.is_some() {
            bail!("the agent of {} runs already", self.name());
        }
        self.stale_lease = self.tables().liveness().map_or(0, |liveness| liveness.lease_until_ns);
        let log = File::options().create(true).append(true).open(&self.log).context("cannot open a log")?;
        let mut command = self.host.namespace.command(&self.tandem);
        command.arg("run").arg("--config").arg(&self.config).arg("--node").arg(self.name());
        command.arg("--pin-dir").arg(&self.pins).arg("--state-dir").arg(&self.state);
        command.arg("--socket").arg(self.socket());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let agent = command.spawn().with_context(|| format!("cannot start {}", self.tandem.display()))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Waits until it may own flows.
    ///
    /// # Errors
    /// When the agent ends before that, or `limit` passes; with the end of its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            if let Some(agent) = &mut self.agent
                && let Some(status) = agent.try_wait()?
            {
                self.agent = None;
                bail!("the agent of {} ended ({status}); its log ends with\n{}", self.name(), self.log_tail());
            }
            if Instant::now() > end {
                let last = self.log_tail();
                bail!("{} is not ready after {limit:?}; its agent's log ends with\n{last}", self.name());
            }
            interrupt::pause(Duration::from_millis(2))?;
        }
    }

    /// Whether this agent (not a predecessor) says that it may own flows.
    pub fn is_ready(&self) -> bool {
        let fresh = |liveness: &_| tables::is_ready(liveness, self.id);
        self.tables().liveness().is_ok_and(|now| fresh(&now) && now.lease_until_ns != self.stale_lease)
    }

    /// Kills the agent with SIGKILL; the datapath stays.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { bail!("{} has no agent to kill", self.name()) };
        agent.kill().context("cannot kill an agent")?;
        agent.wait().context("cannot wait for an agent")?;
        Ok(())
    }

    /// Has the agent stand still, as an overloaded host would.
    pub fn suspend(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Has it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Takes the datapath off the interface; nothing is left that would forward.
    pub fn detach(&self) -> Result<()> {
        let link = self.pins.join(format!("link_{INTERFACE}"));
        // With the agent dead the pin was the link's last reference.
        fs::remove_file(&link).with_context(|| format!("cannot unpin {}", link.display()))
    }

    /// Forgets its pinned maps and programs, as a host that loses power does. Its agent does not run.
    pub fn lose_memory(&self) -> Result<()> {
        for pin in fs::read_dir(&self.pins).context("cannot list pins")? {
            let path = pin?.path();
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.with_context(|| format!("cannot unpin {}", path.display()))?;
        }
        Ok(())
    }

    /// Has the agent read its configuration again.
    pub fn reload(&self) -> Result<()> {
        self.signal(libc::SIGHUP)
    }

    /// Stops the agent as an operator would, and waits for its end.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.signal(libc::SIGTERM)?;
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        let mut ended = Ok(None);
        interrupt::wait_until(limit, Duration::from_millis(5), || {
            ended = agent.try_wait();
            !matches!(ended, Ok(None))
        })?;
        match ended? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the agent of {} ended with {status}\n{}", self.name(), self.log_tail()),
            None => {
                agent.kill()?;
                agent.wait()?;
                bail!("the agent of {} did not stop within {limit:?}\n{}", self.name(), self.log_tail());
            }
        }
    }

    /// The agent's log as a whole.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(|error| error.to_string(), |log| String::from_utf8_lossy(&log).into_owned())
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        let Some(agent) = &self.agent else { bail!("{} has no agent", self.name()) };
        // SAFETY: sends a signal to a child that has not been waited for, so its id is its own.
        if unsafe { libc::kill(agent.id() as libc::pid_t, signal) } != 0 {
            return Err(io::Error::last_os_error()).context("cannot signal an agent");
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.agent.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("{error:#}");
        }
    }
}

/// The `tandem` binary: `TANDEM_BIN`, else the one built beside this executable.
///
/// # Errors
/// When there is none, with the command that builds it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TANDEM_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("cannot find this executable")?;
    // Tests are in `deps`, one directory further down.
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join("tandem")).find(|path| path.is_file());
    found.with_context(|| {
        format!("there is no `tandem` beside {} (cargo build --bin tandem, or set TANDEM_BIN)", own.display())
    })
}
