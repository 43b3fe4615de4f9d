//! A: faults of members.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use lb_common::flow::FlowKeyV4;
use tests::{
    cluster::{READY_LIMIT, tcp_flow},
    hogs::Hogs,
    interrupt, population,
};

use super::Scene;

fn owners_of_first(scene: &Scene) -> (u8, u8) {
    let key: FlowKeyV4 = tcp_flow(scene.load.ledger().long()[0].facts().port);
    let entry = scene.cluster.members[0].tables().flow(&key).unwrap().expect("it is protected");
    (entry.primary, entry.backup)
}

/// A member's end, of which it remembers nothing when it comes back.
fn power_loss(scene: &mut Scene, id: u8) {
    scene.cluster.cut(id).unwrap();
    scene.cluster.member(id).unwrap().lose_memory().unwrap();
}

#[test]
fn a1_an_agent_is_killed() {
    let mut scene = Scene::of(3);
    scene.cluster.member(2).unwrap().kill().unwrap();
    scene.pause(2000);
    scene.cluster.member(2).unwrap().start().unwrap();
    scene.ready(2);
    scene.nothing_broke();
}

#[test]
fn a2_an_agent_stands_still_for_ten_seconds() {
    let mut scene = Scene::of_long_ones(3);
    let member = scene.cluster.member(2).unwrap();
    member.suspend().unwrap();
    thread::sleep(Duration::from_secs(10));
    scene.cluster.member(2).unwrap().resume().unwrap();
    scene.ready(2);
    scene.tables_agree();
    scene.nothing_broke();
}

#[test]
fn a3_a_member_loses_power() {
    let mut scene = Scene::of(3);
    scene.cluster.cut(2).unwrap();
    scene.pause(1500);
    scene.nothing_broke();
}

#[test]
fn a4_all_members_but_one_die_50_ms_apart() {
    let mut scene = Scene::of_long_ones(4);
    for id in [4, 2, 1] {
        scene.cluster.cut(id).unwrap();
        scene.pause(50);
    }
    scene.pause(1000);
    scene.nothing_broke();
}

#[test]
fn a4_two_of_four_members_die_at_once() {
    let mut scene = Scene::of_long_ones(4);
    scene.cluster.cut(1).unwrap();
    scene.cluster.cut(3).unwrap();
    scene.pause(1000);
    scene.nothing_broke();
}

#[test]
fn a5_the_backup_dies_before_the_primarys_death_is_noticed() {
    let mut scene = Scene::of_long_ones(4);
    let (primary, backup) = owners_of_first(&scene);
    scene.cluster.cut(primary).unwrap();
    scene.pause(30);
    scene.cluster.cut(backup).unwrap();
    scene.pause(1000);
    scene.nothing_broke();
}

#[test]
fn a7_the_sender_and_the_receiver_of_a_bulk_transfer_die() {
    let mut scene = Scene::of_long_ones(3);
    let flows = 100_000;
    population::fill(&scene.cluster.members[0], flows).unwrap();
    scene.cluster.members.iter().try_for_each(|member| population::wait(member, flows)).unwrap();
    power_loss(&mut scene, 3);
    scene.pause(300);
    // The receiver dies in the middle of what it is sent, then one of its senders.
    scene.cluster.revive(3).unwrap();
    has_begun_to_hear(&scene);
    power_loss(&mut scene, 3);
    scene.pause(200);
    scene.cluster.revive(3).unwrap();
    has_begun_to_hear(&scene);
    scene.cluster.cut(1).unwrap();
    scene.ready(3);
    scene.cluster.announce(3).unwrap();
    assert_eq!(population::missing(&scene.cluster.members[2], flows).unwrap(), 0);
    scene.nothing_broke();
}

/// Waits until member 3 has been told of some flows.
fn has_begun_to_hear(scene: &Scene) {
    let some = || population::flows_of(&scene.cluster.members[2]).is_ok_and(|flows| flows > 0);
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(1), some).unwrap());
}

fn comes_back(mut scene: Scene, id: u8) {
    scene.pause(500);
    scene.cluster.revive(id).unwrap();
    scene.ready(id);
    scene.cluster.announce(id).unwrap();
    scene.pause(1000);
    scene.nothing_broke();
}

#[test]
fn a8_a_member_returns_with_empty_tables_under_its_old_id() {
    let mut scene = Scene::of(3);
    power_loss(&mut scene, 1);
    comes_back(scene, 1);
}

#[test]
fn a8_a_member_returns_with_its_tables_of_before() {
    let mut scene = Scene::of(3);
    scene.cluster.cut(1).unwrap();
    comes_back(scene, 1);
}

#[test]
fn a9_all_agents_restart_at_once() {
    let mut scene = Scene::of(3);
    scene.cluster.members.iter_mut().for_each(|member| member.kill().unwrap());
    scene.cluster.members.iter_mut().for_each(|member| member.start().unwrap());
    (1..=3).for_each(|id| scene.ready(id));
    scene.pause(1000);
    scene.nothing_broke();
}

/// The router loses the way at once, and gets it back; neighbours are forgotten each time.
#[test]
fn a10_a_members_link_goes_down_and_up_ten_times_a_second() {
    let mut scene = Scene::of_long_ones(3);
    let host = scene.cluster.members[1].host.clone();
    for _ in 0..30 {
        scene.cluster.topology.cut_link(&host).unwrap();
        scene.pause(50);
        scene.cluster.topology.restore_link(&host).unwrap();
        scene.cluster.announce(2).unwrap();
        scene.pause(50);
    }
    scene.ready(2);
    scene.tables_agree();
    scene.nothing_broke();
}

/// The kernel ends it wherever it needs a page.
#[test]
fn a12_an_agent_runs_out_of_memory() {
    let mut scene = Scene::of(3);
    let group = MemoryGroup::new(scene.cluster.members[1].name());
    let pid = scene.cluster.members[1].pid().unwrap();
    group.squeeze(pid);
    // For what it is told now it needs memory.
    population::fill(&scene.cluster.members[0], 100_000).unwrap();
    let is_dead = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(5), is_dead).unwrap(), "it lives on");
    scene.cluster.member(2).unwrap().kill().unwrap();
    scene.pause(2000);
    scene.cluster.member(2).unwrap().start().unwrap();
    scene.ready(2);
    scene.nothing_broke();
}

/// A control group of version 1 or 2 with a bound for memory; goes when it is dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(name: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let parent = if root.join("memory").is_dir() { root.join("memory") } else { root.to_owned() };
        let path = parent.join(format!("tandem-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Leaves the process little more than it has.
    fn squeeze(&self, pid: u32) {
        let limit = ["memory.limit_in_bytes", "memory.max"].map(|file| self.0.join(file));
        let limit = limit.iter().find(|file| file.exists()).expect("a memory controller");
        fs::write(limit, (1 << 20).to_string()).unwrap();
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[test]
fn a11_a_member_has_32_busy_processes_for_each_cpu() {
    let scene = Scene::of_long_ones(3);
    let hogs = Hogs::start().unwrap();
    thread::sleep(Duration::from_secs(5));
    drop(hogs);
    scene.pause(500);
    scene.nothing_broke();
}
