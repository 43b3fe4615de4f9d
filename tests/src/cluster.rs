//! A whole lab: network, servers, members and the configuration they share.

use std::{
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lb_common::{
    flow::{FlowKeyV4, TCP},
    rank::bit,
};

use crate::{
    command,
    config::Config,
    interrupt,
    member::{self, Member},
    run::Run,
    server::Server,
    topology::{CLIENT, Host, Topology, VIP},
};

/// How long a member may take to get ready: a cold start waits a second for peers.
pub const READY_LIMIT: Duration = Duration::from_secs(15);

/// What a lab begins with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Balancers, with the ids 1, 2, ...
    pub balancers: u8,
    /// Servers behind them.
    pub servers: u8,
    /// Every member is a cluster of its own: same key, same ring, nothing shared.
    pub naive: bool,
}

/// A lab. Dropped, it ends its processes and removes its namespaces, pins and files.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they must go: processes, then namespaces, then directories.
    /// The balancers, by position; ids are 1, 2, ...
    pub members: Vec<Member>,
    /// The servers that exist; those in `config` are balanced to.
    pub servers: Vec<Server>,
    /// The network.
    pub topology: Topology,
    /// What is written for the members by `reconfigure`.
    pub config: Config,
    naive: bool,
    run: Arc<Run>,
}

impl Cluster {
    /// Builds the network, starts the servers, and writes the configuration; no agent runs yet.
    pub fn build(shape: Shape, tune: impl FnOnce(&mut Config)) -> Result<Self> {
        let tandem = member::binary()?;
        let run = Arc::new(Run::new()?);
        let key_file = run.files().join("hash.key");
        command::run(Command::new(&tandem).args(["cluster", "secret"]).arg(&key_file))?;
        let mut config = Config::new(key_file);
        tune(&mut config);
        let topology = Topology::new(Arc::clone(&run))?;
        let mut cluster = Self { members: Vec::new(), servers: Vec::new(), topology, config, naive: shape.naive, run };
        for number in 1..=shape.servers {
            let at = cluster.add_server(number)?;
            cluster.config.add_backend(&cluster.servers[at].host);
        }
        for id in 1..=shape.balancers {
            cluster.add_balancer(id)?;
        }
        cluster.write_config()?;
        Ok(cluster)
    }

    /// A lab whose members are ready and announced.
    pub fn start(shape: Shape, tune: impl FnOnce(&mut Config)) -> Result<Self> {
        let mut cluster = Self::build(shape, tune)?;
        cluster.start_members()?;
        Ok(cluster)
    }

    /// Starts every agent, waits until all are ready, and announces them to the router.
    pub fn start_members(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::start)?;
        self.members.iter_mut().try_for_each(|member| member.wait_ready(READY_LIMIT))?;
        self.wait_agreed()?;
        self.members.iter().try_for_each(|member| self.topology.announce(&member.host))
    }

    /// Waits until all members with an agent take each other for owners of new flows.
    pub fn wait_agreed(&self) -> Result<()> {
        let running = || self.members.iter().filter(|member| member.pid().is_some());
        let all = running().fold(0, |mask, member| mask | bit(member.id));
        let agrees = |member: &Member| {
            let expected = if self.naive { bit(member.id) } else { all };
            member.tables().liveness().is_ok_and(|liveness| liveness.eligible == expected)
        };
        if !interrupt::wait_until(READY_LIMIT, Duration::from_millis(2), || running().all(agrees))? {
            let views = running().map(|member| (member.name(), member.tables().liveness()));
            bail!("the members do not agree on who is eligible: {:?}", views.collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Member `id`.
    pub fn member(&mut self, id: u8) -> Result<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id).with_context(|| format!("there is no member {id}"))
    }

    /// The members other than `id`.
    pub fn others(&self, id: u8) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.id != id)
    }

    /// A balancer in the network and in the configuration; its agent does not run yet.
    pub fn add_balancer(&mut self, id: u8) -> Result<()> {
        let host = self.topology.add_balancer(id)?;
        let config = self.config_file(&host.name);
        let member = Member::new(&self.run, id, host.clone(), config)?;
        self.config.add_member(id, &host, member.public_key()?);
        self.members.push(member);
        Ok(())
    }

    /// A running server in the network, not yet in the configuration; answers its position.
    pub fn add_server(&mut self, number: u8) -> Result<usize> {
        let host = self.topology.add_server(number)?;
        self.start_server(number, host)
    }

    fn start_server(&mut self, number: u8, host: Host) -> Result<usize> {
        let log = self.run.files().join(&host.name).with_extension("log");
        self.servers.push(Server::start(u32::from(number), host, &member::binary()?, &log)?);
        Ok(self.servers.len() - 1)
    }

    /// A server behind a link of this MTU, not yet in the configuration; answers its position.
    pub fn add_jumbo_server(&mut self, number: u8, mtu: u32) -> Result<usize> {
        let host = self.topology.add_server(number)?;
        self.topology.set_mtu(&host, mtu)?;
        self.start_server(number, host)
    }

    /// Writes the configuration for all members; nobody reads it yet.
    pub fn write_config(&self) -> Result<()> {
        if !self.naive {
            return self.config.write(&self.config_file(""));
        }
        let alone = |member: &Member| self.config.alone(member.id).write(&self.config_file(member.name()));
        self.members.iter().try_for_each(alone)
    }

    /// Writes the configuration and has every running agent read it.
    pub fn reconfigure(&self) -> Result<()> {
        self.write_config()?;
        self.members.iter().filter(|member| member.pid().is_some()).try_for_each(Member::reload)
    }

    /// A balancer's end: agent killed, datapath gone, link dark. Answers when it began.
    pub fn cut(&mut self, id: u8) -> Result<Instant> {
        let began = Instant::now();
        let member = self.member(id)?;
        member.kill()?;
        member.detach()?;
        let host = member.host.clone();
        self.topology.cut_link(&host)?;
        Ok(began)
    }

    /// Brings a balancer back that was cut: its link and its agent. The router's route comes with [`Self::announce`].
    pub fn revive(&mut self, id: u8) -> Result<()> {
        let host = self.member(id)?.host.clone();
        self.topology.restore_link(&host)?;
        self.member(id)?.start()
    }

    /// Routes the VIP to member `id` too, as its routing daemon would once it is ready.
    pub fn announce(&mut self, id: u8) -> Result<()> {
        let host = self.member(id)?.host.clone();
        self.topology.announce(&host)
    }

    /// Has the router send all packets to these members and to no others.
    pub fn receive_at(&mut self, ids: &[u8]) -> Result<()> {
        // First the new, then the old: there is a route at every moment.
        ids.iter().try_for_each(|id| self.announce(*id))?;
        for member in self.members.iter().filter(|member| !ids.contains(&member.id)) {
            self.topology.withdraw(&member.host)?;
        }
        Ok(())
    }

    fn config_file(&self, member: &str) -> PathBuf {
        let name = if self.naive { member } else { "tandem" };
        self.run.files().join(name).with_extension("toml")
    }
}

/// The key of the client's TCP connection from `port` to the lab's service.
pub fn tcp_flow(port: u16) -> FlowKeyV4 {
    flow(port, crate::traffic::service::TCP_PORT, TCP)
}

/// The key of a client's flow to `service_port` on the VIP.
pub fn flow(port: u16, service_port: u16, protocol: u8) -> FlowKeyV4 {
    FlowKeyV4 {
        source: CLIENT.octets(),
        destination: VIP.octets(),
        source_port: port.to_be_bytes(),
        destination_port: service_port.to_be_bytes(),
        protocol,
        padding: [0; 3],
    }
}
