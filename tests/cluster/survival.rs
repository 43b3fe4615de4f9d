//! What outlives the agent, and how it is looked after: `tandem datapath`.

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
use serde_json::Value;
use tests::{
    cluster::{Cluster, READY_LIMIT},
    member::{self, Member},
    topology::INTERFACE,
    traffic::caller::Caller,
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
        tests::interrupt::wait_until(STOP_LIMIT, Duration::from_millis(20), gone).unwrap(),
        "{before:?} before, {:?} now",
        in_kernel()
    );
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
