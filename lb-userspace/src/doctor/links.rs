//! What `ip` says of interfaces beyond what the agent asks the kernel for.

use std::{io, process::Command};

use serde::Deserialize;

/// An interface.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    #[serde(rename = "ifname")]
    pub(super) name: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default, rename = "linkinfo")]
    info: Info,
}

#[derive(Debug, Default, Deserialize)]
struct Info {
    #[serde(default, rename = "info_kind")]
    kind: String,
}

impl Link {
    /// Whether it is up, and its other end too.
    pub(super) fn is_up(&self) -> bool {
        let has = |flag: &str| self.flags.iter().any(|set| set == flag);
        has("UP") && !has("NO-CARRIER")
    }

    /// Whether it takes the outer header off packets in IP.
    pub(super) fn is_tunnel(&self) -> bool {
        matches!(self.info.kind.as_str(), "ipip" | "sit" | "ip6tnl")
    }
}

/// All interfaces of this network namespace.
pub(super) fn all() -> io::Result<Vec<Link>> {
    let output = Command::new("ip").args(["-json", "-details", "link", "show"]).output();
    let output =
        output.map_err(|error| io::Error::new(error.kind(), format!("`ip` (apt-get install iproute2): {error}")))?;
    serde_json::from_slice(&output.stdout).map_err(io::Error::from)
}
