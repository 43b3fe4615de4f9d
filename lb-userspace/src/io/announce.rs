//! Announcing VIPs: a route for each that this member serves, which a routing daemon on this host exports.
//!
//! A blackhole route in a table of its own, which no rule uses: it says something and forwards nothing. As a local address,
//! or in the main table, a VIP would swallow the answers to health checks. The routes stay when the agent dies, for the
//! datapath goes on; a thread makes them as they are wanted, because the driver must not wait for the kernel's answers.

use std::{collections::BTreeSet, io, net::IpAddr, thread, time::Duration};

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::netlink::Netlink;

/// Somebody may have removed a route.
const HEAL_EVERY: Duration = Duration::from_secs(10);

/// What is announced.
pub type Vips = BTreeSet<IpAddr>;

/// The announcements of this member; dropped, they stay as they are.
#[derive(Debug)]
pub struct Announcer {
    wanted: watch::Sender<Option<Vips>>,
}

impl Announcer {
    /// Announces by routes in `table`; nothing is done before the first `announce`.
    pub fn start(table: u32) -> io::Result<Self> {
        let (wanted, orders) = watch::channel(None);
        let netlink = Netlink::open()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        thread::Builder::new().name("announce".into()).spawn(move || runtime.block_on(tend(netlink, table, orders)))?;
        Ok(Self { wanted })
    }

    /// From now on these are announced, and no others.
    pub fn announce(&self, vips: Vips) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted.as_ref() != Some(&vips);
            *wanted = Some(vips);
            is_new
        });
    }
}

async fn tend(mut netlink: Netlink, table: u32, mut orders: watch::Receiver<Option<Vips>>) {
    let mut said = None;
    loop {
        let wanted = orders.borrow_and_update().clone();
        if let Some(wanted) = wanted {
            match reconcile(&mut netlink, table, &wanted) {
                Ok(()) if said.as_ref() == Some(&wanted) => {}
                Ok(()) => {
                    info!(table, vips = wanted.len(), "announced");
                    said = Some(wanted);
                }
                Err(error) => error!(%error, table, "cannot announce VIPs; trying again"),
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(HEAL_EVERY, orders.changed()).await {
            return;
        }
    }
}

/// Makes the routes in `table` those to `wanted`.
fn reconcile(netlink: &mut Netlink, table: u32, wanted: &Vips) -> io::Result<()> {
    let found = netlink.blackholes(table)?;
    for vip in wanted.difference(&found) {
        netlink.add_blackhole(table, *vip)?;
    }
    for vip in found.difference(wanted) {
        if let Err(error) = netlink.remove_blackhole(table, *vip) {
            warn!(%error, %vip, table, "cannot withdraw");
            return Err(error);
        }
    }
    Ok(())
}
