//! The interfaces that packets for VIPs come in by.

use super::{Balancer, Examined, Finding, Mend, Unknown, ethtool, features, links};
use crate::{
    config::MultiBuffer,
    io::{
        attach::{AttachError, Interface, Mode},
        netlink::{Link, Netlink},
    },
};

/// The largest MTU at which every driver takes a program that wants a frame in one buffer: a page less what the kernel keeps of it.
const ONE_BUFFER: u32 = 3000;

pub(super) fn up(balancer: &Balancer) -> Examined {
    let links = links::all()?;
    let mut findings = Vec::new();
    for name in &balancer.outline.interfaces {
        match links.iter().find(|link| link.name == *name) {
            None => {
                let mend = "name an existing one in node.interfaces: `ip -br link` lists them";
                findings.push(Finding::new(format!("there is no interface {name}"), Mend::Say(mend.into())));
            }
            Some(link) if !link.is_up() => {
                let mend = format!("ip link set dev {name} up, and look at its other end");
                findings.push(Finding::new(format!("{name} is down"), Mend::Say(mend)));
            }
            Some(_) => {}
        }
    }
    Ok(findings)
}

pub(super) fn driver(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    if balancer.mode == Mode::Generic {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for link in present(&balancer.outline.interfaces, netlink)? {
        let features = features::xdp(link.ifindex)?;
        let features = features.ok_or_else(|| Unknown::because("this kernel does not tell (Linux 6.3 does)"))?;
        if features & features::BASIC == 0 {
            let driver = ethtool::driver(&link.name).unwrap_or_else(|_| "unknown".into());
            let found = format!("the driver of {} ({driver}) does not run XDP programs", link.name);
            let mend = "choose the network card itself in node.interfaces (not a bridge, bond or tunnel over it), or run `tandem run \
                        --xdp-mode generic`, slower by an order of magnitude";
            findings.push(Finding::new(found, Mend::Say(mend.into())));
        }
    }
    Ok(findings)
}

pub(super) fn mtu(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    if balancer.outline.multi_buffer != MultiBuffer::Off || balancer.mode == Mode::Generic {
        return Ok(Vec::new());
    }
    let wide = present(&balancer.outline.interfaces, netlink)?.into_iter().filter(|link| link.mtu > ONE_BUFFER);
    Ok(wide
        .map(|link| {
            let found = format!(
                "frames of {}, whose MTU is {}, need several buffers, and node.multi_buffer is off",
                link.name, link.mtu
            );
            Finding::new(
                found,
                Mend::Say(format!("multi_buffer = \"auto\" in [node], or ip link set dev {} mtu 1500", link.name)),
            )
        })
        .collect())
}

pub(super) fn foreign(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let mut findings = Vec::new();
    for link in present(&balancer.outline.interfaces, netlink)? {
        match Interface::inspect(netlink, &link.name, &balancer.pins, balancer.mode) {
            Err(AttachError::Occupied { interface, program }) => {
                let found = format!("{interface} runs another XDP program: {program}");
                findings.push(Finding::new(found, Mend::Say(program.removal(&interface))));
            }
            Err(error) => return Err(Unknown::because(error.to_string())),
            Ok(_ours_or_none) => {}
        }
    }
    Ok(findings)
}

/// What was merged is larger than any link takes, and most drivers refuse XDP with it.
pub(super) fn lro(balancer: &Balancer) -> Examined {
    let merges = balancer.outline.interfaces.iter().filter(|name| ethtool::has_lro(name).unwrap_or(false));
    Ok(merges
        .map(|name| {
            Finding::new(
                format!("{name} merges received segments (LRO), which XDP cannot have"),
                Mend::Lro(name.clone()),
            )
        })
        .collect())
}

/// On a veth a checksum stays unfinished until a network card finishes it; inside a tunnel none does.
pub(super) fn veth_checksum(interfaces: &[String]) -> Examined {
    let is_veth = |name: &&String| ethtool::driver(name).is_ok_and(|driver| driver == "veth");
    let unfinished = interfaces.iter().filter(is_veth).filter(|name| ethtool::has_checksums(name).unwrap_or(false));
    Ok(unfinished
        .map(|name| {
            let found =
                format!("{name} is a veth that leaves checksums unfinished: inside a tunnel nobody finishes them");
            Finding::new(found, Mend::Checksums(name.clone()))
        })
        .collect())
}

/// Those of the interfaces that exist; that the others do not is another check's business.
fn present(names: &[String], netlink: &mut Netlink) -> std::io::Result<Vec<Link>> {
    names.iter().filter_map(|name| netlink.link_by_name(name).transpose()).collect()
}
