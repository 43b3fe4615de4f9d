//! Names for what the maps only know by address.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use super::{Config, Vip, draft::Draft, problem::Problems};

/// What members, services and backends are called, as far as a file says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    cluster: Option<String>,
    members: BTreeMap<u8, String>,
    services: BTreeMap<Vip, String>,
    backends: BTreeMap<(Vip, IpAddr), String>,
}

impl Names {
    /// The names in the file at `path`; none from a file that cannot be read, fewer from one that is wrong.
    pub fn load(path: &Path) -> Self {
        std::fs::read_to_string(path).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// As [`Self::load`], from the text of a file.
    pub fn parse(text: &str) -> Self {
        let Some(draft) = Draft::read(text, &Problems::default()) else { return Self::default() };
        let mut names = Self { cluster: draft.cluster.name.map(|name| name.to_string()), ..Self::default() };
        for member in draft.cluster.members {
            if let (Some(id), Some(name)) = (member.id, member.name) {
                names.members.insert(id.get_ref().get(), name.get_ref().to_string());
            }
        }
        for service in draft.services {
            for vip in service.vips {
                if let Some(name) = &service.name {
                    names.services.insert(*vip.get_ref(), name.get_ref().to_string());
                }
                for backend in &service.backends {
                    if let (Some(name), Some(address)) = (&backend.name, &backend.address) {
                        names.backends.insert((*vip.get_ref(), *address.get_ref()), name.get_ref().to_string());
                    }
                }
            }
        }
        names
    }

    /// The names of a configuration.
    pub fn of(config: &Config) -> Self {
        let mut names = Self { cluster: Some(config.cluster.name.to_string()), ..Self::default() };
        for member in &config.cluster.members {
            names.members.insert(member.id.get(), member.name.to_string());
        }
        for (service, vip) in
            config.services.iter().flat_map(|service| service.vips.iter().map(move |vip| (service, *vip)))
        {
            names.services.insert(vip, service.name.to_string());
            for backend in &service.backends {
                names.backends.insert((vip, backend.address), backend.name.to_string());
            }
        }
        names
    }

    /// The cluster's name.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// The name of member `id`.
    pub fn member(&self, id: u8) -> Option<&str> {
        self.members.get(&id).map(String::as_str)
    }

    /// The name of the service at `vip`.
    pub fn service(&self, vip: Vip) -> Option<&str> {
        self.services.get(&vip).or_else(|| self.services.get(&vip.any_port())).map(String::as_str)
    }

    /// The name of the backend at `address` of the service at `vip`.
    pub fn backend(&self, vip: Vip, address: IpAddr) -> Option<&str> {
        let named = |vip| self.backends.get(&(vip, address));
        named(vip).or_else(|| named(vip.any_port())).map(String::as_str)
    }
}
