//! Sockets whose packets leave through the tunnel, to one backend.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{HashMap, MapData};
use lb_common::{address::Address, check::CheckWay};
use socket2::SockRef;

use crate::{config, io::netlink::Netlink};

/// The sockets of checks, as the program `check` knows them.
#[derive(Clone)]
pub struct Tunnel(Arc<Mutex<Ways>>);

struct Ways {
    map: HashMap<MapData, u64, CheckWay>,
    netlink: Netlink,
}

/// The addresses of a check's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Of the inner header, and where the backend answers to; the kernel's choice, if none.
    pub inner: Option<IpAddr>,
    /// Of the outer header, as of deliveries.
    pub outer: Address,
}

/// Keeps a socket in the tunnel; dropped, it is an ordinary one again.
pub(super) struct InTunnel {
    tunnel: Tunnel,
    cookie: u64,
}

impl Tunnel {
    /// Fills `map`, the program's.
    pub fn new(map: HashMap<MapData, u64, CheckWay>) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Ways { map, netlink: Netlink::open()? }))))
    }

    /// From now on what `socket` sends goes to `backend`. Binds it, so it must not be connected yet.
    pub(super) fn enter(&self, socket: &impl AsFd, sources: &Sources, backend: IpAddr) -> io::Result<InTunnel> {
        let socket = SockRef::from(socket);
        if let Some(inner) = sources.inner {
            socket.bind(&SocketAddr::new(inner, 0).into())?;
        }
        let cookie = socket.cookie()?;
        let mut ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let route = ways.netlink.route(backend)?.filter(|route| !route.local);
        let route = route.ok_or_else(|| io::Error::new(io::ErrorKind::HostUnreachable, "no route to the backend"))?;
        let way = CheckWay { source: sources.outer, target: config::address(backend), ifindex: route.ifindex };
        ways.map.insert(cookie, way, 0).map_err(io::Error::other)?;
        Ok(InTunnel { tunnel: self.clone(), cookie })
    }
}

impl Drop for InTunnel {
    fn drop(&mut self) {
        let mut ways = self.tunnel.0.lock().unwrap_or_else(PoisonError::into_inner);
        // There is no other way out of the map.
        _ = ways.map.remove(&self.cookie);
    }
}
