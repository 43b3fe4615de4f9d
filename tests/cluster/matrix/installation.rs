//! D and F: what is attached and pinned, and who may touch it.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use lb_common::maps;
use tests::{
    cluster::READY_LIMIT,
    interrupt,
    member::{self, Member},
    passthrough,
    topology::INTERFACE,
};

use super::Scene;

/// What was attached there was loaded for another kind of attachment, so the kernel lets none of our programs take its place:
/// that is said, and what is attached stays.
#[test]
fn d37_a_link_of_another_attach_type_is_refused_and_left_alone() {
    let mut scene = Scene::of(3);
    let member = scene.cluster.member(2).unwrap();
    member.kill().unwrap();
    member.detach().unwrap();
    for name in ["prog", "prog_old"] {
        let _absent = fs::remove_file(member.pins().join(name));
    }
    let program = passthrough::load().unwrap();
    let mut link: Option<OwnedFd> = None;
    // The kernel detaches in the background.
    let attach = || {
        link = passthrough::attach_program(&member.host.namespace, INTERFACE, program.as_fd()).ok();
        link.is_some()
    };
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(5), attach).unwrap());
    let link = link.unwrap();
    passthrough::pin(link.as_fd(), &member.pins().join(format!("link_{INTERFACE}"))).unwrap();
    passthrough::pin(program.as_fd(), &member.pins().join("prog")).unwrap();
    drop(link);
    let before = attached(member);
    member.start().unwrap();
    let refused = member.wait_ready(READY_LIMIT).unwrap_err().to_string();
    assert!(refused.contains("loaded for another kind of attachment"), "{refused}");
    assert_eq!(attached(scene.cluster.member(2).unwrap()), before);
    // What the error says helps.
    let member = scene.cluster.member(2).unwrap();
    let detached = tandem(member, &["datapath", "detach"]);
    assert!(detached.status.success(), "{detached:?}");
    member.start().unwrap();
    scene.ready(2);
    scene.nothing_broke();
}

/// The number of the program on the member's interface.
fn attached(member: &Member) -> String {
    let output = member.host.namespace.command("ip").args(["link", "show", INTERFACE]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.split("prog/xdp id ").nth(1).map_or_else(String::new, |rest| rest.split(' ').next().unwrap_or("").to_owned())
}

#[test]
fn d40_pins_of_maps_are_deleted_and_the_next_agent_goes_on_without_them() {
    let mut scene = Scene::of_long_ones(3);
    let member = scene.cluster.member(2).unwrap();
    member.kill().unwrap();
    for name in [maps::FLOWS, maps::SERVICES, maps::MEMBERS] {
        fs::remove_file(member.pins().join(name)).unwrap();
    }
    // The datapath holds the maps themselves, and goes on.
    let status = tandem(member, &["datapath", "status"]);
    let said = String::from_utf8(status.stdout).unwrap();
    assert_eq!(status.status.code(), Some(5), "{said}");
    assert!(said.contains("pins of maps are missing: flows, services, members"), "{said}");
    scene.pause(500);
    scene.cluster.member(2).unwrap().start().unwrap();
    scene.ready(2);
    scene.tables_agree();
    scene.nothing_broke();
}

/// Unpinned, the links are detached: no packet is treated until an agent starts.
#[test]
fn d40_every_pin_is_deleted_under_a_running_agent() {
    let mut scene = Scene::of_long_ones(3);
    scene.cluster.members[1].lose_memory().unwrap();
    scene.pause(300);
    scene.cluster.member(2).unwrap().kill().unwrap();
    scene.cluster.member(2).unwrap().start().unwrap();
    scene.ready(2);
    scene.tables_agree();
    scene.nothing_broke();
}

/// The link that is pinned for the interface was on one that has gone since.
#[test]
fn d40_a_pinned_link_is_stale() {
    let mut scene = Scene::of_long_ones(3);
    let member = scene.cluster.member(2).unwrap();
    member.kill().unwrap();
    member.detach().unwrap();
    let namespace = &member.host.namespace;
    namespace.ip(&["link add gone type veth peer name away"]).unwrap();
    let program = passthrough::load().unwrap();
    let link = passthrough::attach_program(namespace, "gone", program.as_fd()).unwrap();
    passthrough::pin(link.as_fd(), &member.pins().join(format!("link_{INTERFACE}"))).unwrap();
    namespace.ip(&["link del gone"]).unwrap();
    drop(link);
    let status = tandem(member, &["datapath", "status"]);
    let said = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.code() == Some(5) && said.contains("of a pinned link has gone"), "{said}");
    member.start().unwrap();
    scene.ready(2);
    let status = tandem(&scene.cluster.members[1], &["datapath", "status"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    scene.tables_agree();
    scene.nothing_broke();
}

/// Whoever is not root and has no capability changes nothing, whatever he tries with what is on the host.
#[test]
fn f62_a_process_without_privileges_can_neither_read_nor_change_a_datapath() {
    let mut scene = Scene::of(3);
    let own = Copied::new();
    let member = scene.cluster.member(2).unwrap();
    let before = attached(member);
    let link = member.pins().join(format!("link_{INTERFACE}"));
    let key = member.state().join("member.key");
    let pid = member.pid().unwrap().to_string();
    let (pins, link, key) =
        (member.pins().display().to_string(), link.display().to_string(), key.display().to_string());
    let tandem = own.0.display().to_string();
    for words in [
        vec![tandem.as_str(), "datapath", "detach", "--pin-dir", &pins],
        vec![&tandem, "datapath", "upgrade", "--pin-dir", &pins],
        vec![&tandem, "datapath", "upgrade", "--flows-max", "4096", "--pin-dir", &pins],
        vec![&tandem, "datapath", "rollback", "--pin-dir", &pins],
        vec![&tandem, "datapath", "status", "--pin-dir", &pins],
        vec![&tandem, "status", "--pin-dir", &pins],
        vec!["ls", &pins],
        vec!["rm", "-f", &link],
        vec!["cat", &key],
        vec!["kill", "-TERM", &pid],
        vec!["ip", "link", "set", "dev", INTERFACE, "xdp", "off"],
    ] {
        let output = unprivileged(member, &words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
    }
    assert_eq!(attached(member), before);
    scene.ready(2);
    scene.nothing_broke();
}

fn tandem(member: &Member, words: &[&str]) -> Output {
    let mut command = member.host.namespace.command(member::binary().unwrap());
    command.args(words).arg("--pin-dir").arg(member.pins()).output().unwrap()
}

/// As nobody, without a capability and without a way to one.
fn unprivileged(member: &Member, words: &[&str]) -> Output {
    let mut command = member.host.namespace.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]);
    command.args(["--inh-caps=-all", "--"]).args(words).output().unwrap()
}

/// The program where everybody may run it.
struct Copied(PathBuf);

impl Copied {
    fn new() -> Self {
        let path = Path::new("/tmp").join(format!("tandem-of-nobody-{}", std::process::id()));
        fs::copy(member::binary().unwrap(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}
