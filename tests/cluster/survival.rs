//! What outlives the agent, and how it is looked after: `tandem datapath`.

mod tables;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Output,
    time::Duration,
};

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use lb_common::reason::Reason;
use serde_json::Value;
use tests::{
    cluster::{Cluster, READY_LIMIT},
    interrupt::wait_until,
    member::{self, Member},
    topology::INTERFACE,
    traffic::{
        caller::Caller,
        datagrams::{Pace, Stream},
    },
    variant::Variant,
};

use crate::{cluster, said};

/// A goodbye takes a fraction of it.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How a `tandem datapath` command ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// `tandem datapath ARGUMENTS` on the member's host.
fn datapath(member: &Member, arguments: &[&str]) -> Ended {
    let mut command = member.host.namespace.command(member::binary().unwrap());
    command.arg("datapath").args(arguments).arg("--pin-dir").arg(member.pins());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

fn status(member: &Member) -> (i32, Value) {
    let ended = datapath(member, &["status", "-o", "json"]);
    (ended.code, serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{}{}", ended.out, ended.err)))
}

fn callers(cluster: &Cluster, ports: std::ops::Range<u16>) -> Vec<Caller> {
    let mut callers: Vec<Caller> = ports.map(|port| Caller::open(&cluster.topology.client, port).unwrap()).collect();
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    callers
}

#[test]
fn status_says_what_is_attached_with_an_agent_and_without() {
    let mut cluster = cluster(1);
    let (code, with) = status(&cluster.members[0]);
    assert_eq!((code, &with["problems"]), (0, &serde_json::json!([])));
    assert_eq!(with["agent_pid"], cluster.members[0].pid().unwrap());
    assert_eq!(with["links"][0]["interface"], INTERFACE);
    assert_eq!(with["links"][0]["runs"], "current");
    assert_eq!(with["links"][0]["program_id"], with["programs"][0]["id"]);
    cluster.member(1).unwrap().kill().unwrap();
    let (code, without) = status(&cluster.members[0]);
    assert_eq!(code, 0);
    assert_eq!(without["agent_pid"], Value::Null);
    assert_eq!((&without["links"], &without["schema"]), (&with["links"], &with["schema"]));
    let table = datapath(&cluster.members[0], &["status"]).out;
    assert!(table.starts_with(&format!("ok: attached to {INTERFACE}\n")), "{table}");
    // The same instructions, loaded once more, are the same program.
    cluster.member(1).unwrap().start().unwrap();
    cluster.member(1).unwrap().wait_ready(READY_LIMIT).unwrap();
    let (_, again) = status(&cluster.members[0]);
    assert_eq!(again["programs"][0]["fingerprint"], with["programs"][0]["fingerprint"]);
    assert_eq!(again["problems"], serde_json::json!([]));
}

#[test]
fn nobody_but_root_may_open_the_link() {
    let mut cluster = cluster(1);
    let member = cluster.member(1).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let link = member.pins().join(format!("link_{INTERFACE}"));
    assert_eq!((mode(member.pins()), mode(&link)), (0o700, 0o600));
    // Somebody was careless while no agent ran.
    member.kill().unwrap();
    fs::set_permissions(member.pins(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&link, fs::Permissions::from_mode(0o666)).unwrap();
    member.start().unwrap();
    member.wait_ready(READY_LIMIT).unwrap();
    assert_eq!((mode(member.pins()), mode(&link)), (0o700, 0o600));
}

#[test]
fn detach_leaves_no_trace() {
    let before = in_kernel();
    let mut cluster = cluster(1);
    let mut callers = callers(&cluster, 44_000..44_005);
    let member = cluster.member(1).unwrap();
    let refused = datapath(member, &["detach"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("stop it first") && refused.err.contains("Nothing was changed"), "{}", refused.err);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    let member = cluster.member(1).unwrap();
    member.stop(STOP_LIMIT).unwrap();
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    let member = cluster.member(1).unwrap();
    let gone = datapath(member, &["detach"]);
    assert_eq!((gone.code, gone.err.as_str()), (0, ""));
    assert!(gone.out.starts_with(&format!("detached from {INTERFACE};")), "{}", gone.out);
    assert!(!member.pins().exists());
    let link = said(&member.host.namespace, "ip", &["link", "show", INTERFACE]);
    assert!(!link.contains("xdp"), "{link}");
    for command in ["detach", "status"] {
        let absent = datapath(member, &[command]);
        assert_eq!(absent.code, 3, "{command}: {}", absent.err);
        assert!(absent.err.contains("no datapath is pinned at"), "{}", absent.err);
    }
    drop(cluster);
    // The lab's own programs go with it.
    let gone = || in_kernel().iter().zip(&before).all(|(now, before)| now <= before);
    assert!(
        wait_until(STOP_LIMIT, Duration::from_millis(20), gone).unwrap(),
        "{before:?} before, {:?} now",
        in_kernel()
    );
}

/// The fingerprint of the program in a role.
fn fingerprint(member: &Member, role: &str) -> Option<String> {
    let (_, status) = status(member);
    let programs = status["programs"].as_array().unwrap().clone();
    let found = programs.iter().find(|program| program["role"] == role)?;
    Some(found["fingerprint"].as_str().unwrap().to_owned())
}

/// `tandem datapath upgrade` to another version.
fn upgrade(member: &Member, variant: Variant) -> Ended {
    let object = variant.object().unwrap();
    datapath(member, &["upgrade", "-o", "json", "--object", object.to_str().unwrap()])
}

/// Datagrams that a veth's ring and two busy cores bear.
fn stream(cluster: &Cluster) -> Stream {
    Stream::start(&cluster.topology.client, Pace { flows: 64, per_second: 1_000, bytes: 64 }).unwrap()
}

#[test]
fn an_upgrade_and_a_rollback_lose_no_packet_with_an_agent_or_without() {
    let mut cluster = cluster(1);
    for has_agent in [true, false] {
        if !has_agent {
            cluster.member(1).unwrap().kill().unwrap();
        }
        let mut callers = callers(&cluster, 45_000 + 10 * u16::from(has_agent)..45_005 + 10 * u16::from(has_agent));
        let stream = stream(&cluster);
        let member = &cluster.members[0];
        let first = fingerprint(member, "current").unwrap();
        let before = member.tables().packets().unwrap();
        let ended = upgrade(member, Variant::OtherVersion);
        assert_eq!(ended.code, 0, "{}", ended.err);
        let said: Value = serde_json::from_str(&ended.out).unwrap();
        assert_eq!((said["outcome"].as_str(), said["watched"]["lost"].as_u64()), (Some("upgraded"), Some(0)), "{said}");
        assert!(said["watched"]["treated"].as_u64().unwrap() > 1_000, "{said}");
        let second = fingerprint(member, "current").unwrap();
        assert_ne!(first, second);
        assert_eq!(fingerprint(member, "previous").as_ref(), Some(&first));
        callers.iter_mut().for_each(|caller| caller.ask().unwrap());
        // Golden packets were in the copies only.
        let after = cluster.members[0].tables().packets().unwrap();
        for reason in [Reason::DropMalformed, Reason::TooBigAnswered, Reason::DropTtl] {
            assert_eq!(after.of(reason), before.of(reason), "{}", reason.name());
        }
        let back = datapath(&cluster.members[0], &["rollback"]);
        assert_eq!(back.code, 0, "{}", back.err);
        assert_eq!(fingerprint(&cluster.members[0], "current"), Some(first));
        let (code, status) = status(&cluster.members[0]);
        assert_eq!((code, &status["refused"]), (0, &serde_json::json!([second])), "{status}");
        callers.iter_mut().for_each(|caller| caller.ask().unwrap());
        let tally = stream.finish().unwrap();
        assert_eq!(tally.lost(), 0, "{tally:?}");
        let again = datapath(&cluster.members[0], &["rollback"]);
        assert!(again.code == 1 && again.err.contains("nothing was changed"), "{}", again.err);
    }
}

#[test]
fn a_program_that_is_refused_or_fails_golden_packets_is_not_attached() {
    let cluster = cluster(1);
    let mut callers = callers(&cluster, 45_100..45_105);
    let member = &cluster.members[0];
    let (_, before) = status(member);
    let nonsense = INTERFACE.as_bytes().to_vec();
    let file = std::env::temp_dir().join(format!("tandem-no-object-{}", std::process::id()));
    fs::write(&file, nonsense).unwrap();
    let broken = datapath(member, &["upgrade", "--object", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    let missing = datapath(member, &["upgrade", "--object", file.to_str().unwrap()]);
    assert_eq!((broken.code, missing.code), (1, 2), "{}{}", broken.err, missing.err);
    for (ended, why) in [
        (upgrade(member, Variant::DefectRefused), "the kernel refuses the program balancer"),
        (upgrade(member, Variant::DefectSeen), "failed a golden packet"),
        (broken, "cannot be read"),
        (missing, "No such file"),
    ] {
        assert!(ended.err.contains(why) && ended.err.to_lowercase().contains("nothing was changed"), "{}", ended.err);
        assert_eq!((status(member).0, &status(member).1["links"]), (0, &before["links"]));
    }
    let check = datapath(member, &["upgrade", "--check"]);
    assert!(check.code == 0 && check.out.starts_with("passed: "), "{}{}", check.out, check.err);
    let same = datapath(member, &["upgrade"]);
    assert!(same.code == 0 && same.out.starts_with("nothing to do"), "{}{}", same.out, same.err);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    assert_eq!(status(member).1["links"], before["links"]);
}

#[test]
fn a_program_that_drops_more_than_the_one_before_is_rolled_back() {
    let mut cluster = cluster(1);
    let mut callers = callers(&cluster, 45_200..45_205);
    let stream = stream(&cluster);
    let member = &cluster.members[0];
    let good = fingerprint(member, "current").unwrap();
    let ended = upgrade(member, Variant::DefectUnseen);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("the one before is attached again"), "{}", ended.err);
    assert_eq!(fingerprint(member, "current").as_ref(), Some(&good));
    assert_eq!(status(member).0, 0);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());

    // The same when the command that attached it dies at once: the agent judges; and when the agent is dead, too, the next one.
    for has_agent in [true, false] {
        let member = cluster.member(1).unwrap();
        if !has_agent {
            member.kill().unwrap();
        }
        let object = Variant::DefectUnseen.object().unwrap();
        let mut command = member.host.namespace.command(member::binary().unwrap());
        command.args(["datapath", "upgrade", "--object"]).arg(object).arg("--pin-dir").arg(member.pins());
        let mut watcher = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        let is_switched = || fingerprint(member, "previous").is_some();
        assert!(wait_until(READY_LIMIT, Duration::from_millis(2), is_switched).unwrap());
        watcher.kill().unwrap();
        watcher.wait().unwrap();
        if !has_agent {
            std::thread::sleep(Duration::from_millis(500));
            assert_ne!(fingerprint(member, "current").as_ref(), Some(&good));
            member.start().unwrap();
        }
        let is_back = || fingerprint(member, "current").as_ref() == Some(&good);
        assert!(wait_until(READY_LIMIT, Duration::from_millis(10), is_back).unwrap(), "has_agent: {has_agent}");
        assert!(wait_until(READY_LIMIT, Duration::from_millis(10), || member.log().contains("rolled back")).unwrap());
        callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    }
    drop(stream);
}

#[test]
fn an_agent_puts_its_program_in_the_place_of_another_versions() {
    let mut cluster = cluster(1);
    let mut callers = callers(&cluster, 45_300..45_305);
    let own = fingerprint(&cluster.members[0], "current").unwrap();
    assert_eq!(upgrade(&cluster.members[0], Variant::OtherVersion).code, 0);
    let other = fingerprint(&cluster.members[0], "current").unwrap();
    let stream = stream(&cluster);
    let member = cluster.member(1).unwrap();
    member.kill().unwrap();
    member.start().unwrap();
    member.wait_ready(READY_LIMIT).unwrap();
    assert_eq!(fingerprint(member, "current").as_ref(), Some(&own));
    assert_eq!(fingerprint(member, "previous").as_ref(), Some(&other));
    let tally = stream.finish().unwrap();
    assert_eq!(tally.lost(), 0, "{tally:?}");
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    // One that was rolled back does not come again by a restart.
    let member = cluster.member(1).unwrap();
    assert_eq!(datapath(member, &["rollback"]).code, 0);
    member.kill().unwrap();
    member.start().unwrap();
    member.wait_ready(READY_LIMIT).unwrap();
    assert_eq!(fingerprint(member, "current").as_ref(), Some(&other));
    assert!(member.log().contains("was rolled back here"));
    // Except when it is wished.
    let again = datapath(member, &["upgrade"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(fingerprint(member, "current").as_ref(), Some(&own));
    assert_eq!(status(member).1["refused"], serde_json::json!([]));
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
}

#[test]
fn what_a_crash_leaves_is_put_in_order_by_whoever_comes_next() {
    let mut cluster = cluster(1);
    let mut callers = callers(&cluster, 45_400..45_405);
    let first = fingerprint(&cluster.members[0], "current").unwrap();
    assert_eq!(upgrade(&cluster.members[0], Variant::OtherVersion).code, 0);
    let second = fingerprint(&cluster.members[0], "current").unwrap();
    cluster.member(1).unwrap().kill().unwrap();
    let pins = cluster.members[0].pins().to_owned();
    let rename = |from: &str, to: &str| fs::rename(pins.join(from), pins.join(to)).unwrap();
    // Between the two renames of an upgrade.
    rename("prog", "prog_new");
    assert_eq!(datapath(&cluster.members[0], &["upgrade", "--check"]).code, 0);
    let now = |cluster: &Cluster, role| fingerprint(&cluster.members[0], role);
    assert_eq!((now(&cluster, "current"), now(&cluster, "previous")), (Some(second.clone()), Some(first.clone())));
    // After the links were switched and before the first rename: taken back.
    rename("prog", "prog_new");
    rename("prog_old", "prog");
    assert_eq!(status(&cluster.members[0]).0, 5, "the link runs what is not confirmed");
    assert_eq!(datapath(&cluster.members[0], &["upgrade", "--check"]).code, 0);
    assert_eq!((now(&cluster, "current"), now(&cluster, "previous")), (Some(first), None));
    assert_eq!(status(&cluster.members[0]).0, 0);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    // In a rollback, after the link was switched and before the rename.
    assert_eq!(upgrade(&cluster.members[0], Variant::OtherVersion).code, 0);
    rename("prog", "prog_new");
    rename("prog_old", "prog");
    rename("prog_new", "prog_old");
    assert_eq!(status(&cluster.members[0]).0, 5, "the link runs the previous program");
    assert_eq!(datapath(&cluster.members[0], &["upgrade", "--check"]).code, 0);
    assert_eq!((now(&cluster, "current"), now(&cluster, "previous")), (Some(second), None));
    assert_eq!(status(&cluster.members[0]).0, 0);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
}

/// How many programs, maps and links of ours the kernel holds, of whichever lab.
fn in_kernel() -> [usize; 3] {
    let ours = |name: Option<&str>| matches!(name, Some("balancer" | "flows" | "flows_v6" | "pending" | "counters"));
    [
        loaded_programs().filter_map(Result::ok).filter(|program| ours(program.name_as_str())).count(),
        loaded_maps().filter_map(Result::ok).filter(|map| ours(map.name_as_str())).count(),
        loaded_links().filter_map(Result::ok).count(),
    ]
}
