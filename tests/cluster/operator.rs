//! What an operator does by hand, through the control socket.

use std::{process::Output, time::Duration};

use lb_common::target::{TARGET_DRAINING, TARGET_SERVING};
use tests::{cluster::Cluster, member::Member, traffic::caller::Caller};

use crate::{
    cluster_with,
    health::{open, wait_for},
};

const LIMIT: Duration = Duration::from_secs(5);

/// `tandem`, told which agent to ask.
pub(crate) fn tandem(member: &Member, arguments: &[&str]) -> Output {
    let mut command = member.host.namespace.command(tests::member::binary().unwrap());
    command.args(arguments).arg("--socket").arg(member.socket()).output().unwrap()
}

pub(crate) fn done(member: &Member, arguments: &[&str]) -> String {
    let output = tandem(member, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
    said
}

fn ask_all(callers: &mut [Caller]) {
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
}

#[test]
fn a_backend_drained_at_one_member_gets_no_new_flows_at_any() {
    let cluster: Cluster = cluster_with(3, "owner");
    let mut before = open(&cluster, 42_000..42_030);
    ask_all(&mut before);
    assert!(before.iter().any(|caller| caller.server() == 1));

    done(&cluster.members[1], &["backend", "drain", "web-1"]);
    wait_for(&cluster, 0, TARGET_DRAINING, LIMIT);
    assert!(open(&cluster, 43_000..43_060).iter().all(|caller| caller.server() != 1));
    ask_all(&mut before);

    let late = tandem(&cluster.members[0], &["backend", "drain", "web-1", "--wait", "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(6), "{}", String::from_utf8_lossy(&late.stderr));
    let listed = tandem(&cluster.members[2], &["backend", "list", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let of_web_1 = listed.as_array().unwrap().iter().filter(|backend| backend["name"] == "web-1");
    assert!(of_web_1.clone().all(|backend| backend["drained"] == true), "{listed:#}");
    assert!(of_web_1.filter_map(|backend| backend["flows"].as_u64()).sum::<u64>() > 0, "{listed:#}");

    done(&cluster.members[2], &["backend", "undrain", "web-1"]);
    wait_for(&cluster, 0, TARGET_SERVING, LIMIT);
    assert!(open(&cluster, 44_000..44_060).iter().any(|caller| caller.server() == 1));
    ask_all(&mut before);

    let unknown = tandem(&cluster.members[0], &["backend", "drain", "web-9"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nothing was changed"));
}

#[test]
fn a_member_drained_by_hand_is_safe_to_switch_off() {
    let mut cluster = cluster_with(3, "owner");
    let mut callers = open(&cluster, 42_000..42_060);
    ask_all(&mut callers);
    ask_all(&mut callers);
    let said = done(&cluster.members[0], &["node", "drain", "--wait", "--timeout", "30s"]);
    assert!(said.contains("safe to reboot"), "{said}");
    let host = cluster.members[0].host.clone();
    cluster.topology.withdraw(&host).unwrap();
    cluster.cut(1).unwrap();
    ask_all(&mut callers);
    let unreachable = tandem(&cluster.members[0], &["node", "drain"]);
    assert_eq!(unreachable.status.code(), Some(3), "{}", String::from_utf8_lossy(&unreachable.stderr));
}

#[test]
fn a_bug_report_holds_what_somebody_needs_who_was_not_there_and_no_key() {
    let cluster = cluster_with(2, "owner");
    let member = &cluster.members[0];
    let file = member.state().join("report.tar.gz");
    let report = || {
        let mut command = member.host.namespace.command(tests::member::binary().unwrap());
        command.arg("bugreport").arg(&file).arg("--config").arg(member.config()).arg("--pin-dir").arg(member.pins());
        command.output().unwrap()
    };
    let output = report();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let unpack = |arguments: &[&str]| {
        let mut tar = std::process::Command::new("tar");
        let output = tar.args(arguments).arg("-f").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let names = unpack(&["-t", "-z"]);
    for name in ["status.json", "members.json", "datapath.json", "tandem.toml", "host/routes.txt", "left-out.txt"] {
        assert!(names.lines().any(|line| line.ends_with(&format!("/{name}"))), "no {name} in\n{names}");
    }
    let all = unpack(&["-x", "-z", "-O"]);
    assert!(all.contains("\"incarnation\"") && all.contains("10.0.1.11"));
    for key in [cluster.config.key_file.clone(), member.state().join("member.key")] {
        let secret = std::fs::read_to_string(key).unwrap();
        let words = secret.lines().filter(|line| !line.starts_with('#')).map(str::trim);
        assert!(words.filter(|word| word.len() > 16).all(|word| !all.contains(word)), "a key is in the report");
    }
    // What is there is not replaced.
    assert_eq!(report().status.code(), Some(1));
}
