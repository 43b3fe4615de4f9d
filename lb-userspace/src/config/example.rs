//! The example in `etc/`, for a host: what `tandem config init` prints.

use std::net::IpAddr;

/// The example that is installed; its members are made up.
const INSTALLED: &str = include_str!("../../../etc/tandem.toml");

/// The member that a new file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMember<'a> {
    /// What it is called: the host's name.
    pub name: &'a str,
    /// Its address in the cluster.
    pub address: IpAddr,
    /// Where packets for VIPs come in.
    pub interface: &'a str,
}

/// A commented file to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Example;

impl Example {
    /// Of a cluster whose only member is `own`: complete but for the secret, which is in a file of its own.
    pub fn of(own: &OwnMember<'_>) -> String {
        let OwnMember { name, address, interface } = own;
        let (before, rest) = INSTALLED.split_once("[[cluster.member]]").unwrap_or((INSTALLED, ""));
        let (_made_up, after) = rest.split_once("\n[node]\n").unwrap_or(("", ""));
        let after = after.replace("# name = \"lb1\"   ", &format!("# name = {name:?}   "));
        let after = after.replace("[\"eth0\"]", &format!("[{interface:?}]"));
        let (vip, server) = documentation(*address);
        let after = after.replace("203.0.113.10", vip).replace("10.0.2.", server);
        format!(
            "{before}[[cluster.member]]
id = 1                                        # 1 to 64, for ever
name = {name:?}
address = \"{address}\"
# public_key = \"...\"                          # needed as soon as there is a second member: `tandem cluster keygen`,
#                                             # on each of them, prints the line for its own

[node]
{after}"
        )
    }
}

/// Addresses of a VIP and of the example's servers (but for their last digits), of the member's family.
fn documentation(address: IpAddr) -> (&'static str, &'static str) {
    if address.is_ipv4() { ("203.0.113.10", "10.0.2.") } else { ("[2001:db8::10]", "2001:db8:2::") }
}
