//! A configuration's life: applied at one member, tried, confirmed, taken back, and the same at all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lb_common::target::{TARGET_DRAINING, TARGET_SERVING};
use tests::{
    cluster::{Cluster, READY_LIMIT},
    interrupt::wait_until,
    member::Member,
};

use crate::{
    built,
    health::{open, wait_for},
    operator::{done, tandem},
};

/// A change is in effect everywhere within a second; debug builds on a busy machine take longer.
const LIMIT: Duration = Duration::from_secs(10);
const OWN: &str = "on_stop = \"detach\" # this host's own";

/// Three members, each with a file of its own, in which member 2 says something of itself.
fn started() -> Cluster {
    let mut cluster = built(3, |_| ());
    cluster.members.iter_mut().for_each(|member| member.keep_own_config().unwrap());
    let second = &cluster.members[1];
    let text = read(second).replace("[node]\n", &format!("[node]\n{OWN}\n"));
    fs::write(second.config(), text).unwrap();
    cluster.start_members().unwrap();
    cluster
}

fn read(member: &Member) -> String {
    fs::read_to_string(member.config()).unwrap()
}

/// The file of `member`, with web-1 drained or not, as an operator has it on a table of their own.
fn draft(member: &Member, drain: bool) -> PathBuf {
    let text = read(member).replace(", drain = true", "");
    let text = if drain { text.replace("10.0.2.11\"", "10.0.2.11\", drain = true") } else { text };
    written(member, &text)
}

fn written(member: &Member, text: &str) -> PathBuf {
    let path = member.state().join("draft.toml");
    fs::write(&path, text).unwrap();
    path
}

fn apply(member: &Member, draft: &Path, options: &[&str]) -> String {
    let arguments = [&["config", "apply", draft.to_str().unwrap()], options].concat();
    done(member, &arguments)
}

fn says_generation(member: &Member, generation: u64) -> bool {
    read(member).contains(&format!("generation = {generation}\n"))
}

#[track_caller]
fn all_have(cluster: &Cluster, generation: u64) {
    let all = || cluster.members.iter().all(|member| says_generation(member, generation));
    let files = || cluster.members.iter().map(read).collect::<Vec<_>>().join("\n----\n");
    assert!(wait_until(LIMIT, Duration::from_millis(20), all).unwrap(), "not generation {generation}:\n{}", files());
    assert!(cluster.members.iter().all(|member| read(member).contains(OWN) == (member.id == 2)), "{}", files());
}

#[test]
fn a_change_at_one_member_reaches_all_and_who_was_away_when_it_returns() {
    let mut cluster = started();
    cluster.member(3).unwrap().kill().unwrap();
    let said = apply(&cluster.members[0], &draft(&cluster.members[0], true), &["--wait"]);
    assert!(said.contains("generation 1") && said.contains("in effect at all"), "{said}");
    assert!([1, 2].iter().all(|id| says_generation(&cluster.members[id - 1], 1)));
    assert!(!says_generation(&cluster.members[2], 1));
    cluster.member(3).unwrap().start().unwrap();
    cluster.member(3).unwrap().wait_ready(READY_LIMIT).unwrap();
    all_have(&cluster, 1);
    wait_for(&cluster, 0, TARGET_DRAINING, LIMIT);
    assert!(open(&cluster, 43_000..43_040).iter().all(|caller| caller.server() != 1));
    let same = tandem(&cluster.members[2], &["config", "diff", cluster.members[2].config().to_str().unwrap()]);
    assert_eq!(same.status.code(), Some(0), "{}", String::from_utf8_lossy(&same.stdout));

    // Drained by hand: a difference to the file, until it is saved in it.
    done(&cluster.members[0], &["backend", "drain", "web-2"]);
    let file = cluster.members[0].config().to_str().unwrap().to_owned();
    let differs = tandem(&cluster.members[0], &["config", "diff", &file]);
    assert_eq!(differs.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&differs.stdout).contains("service[web].backends[web-2].drain = true (by hand)"));
    done(&cluster.members[0], &["config", "diff", &file, "--save"]);
    apply(&cluster.members[0], &PathBuf::from(&file), &["--wait"]);
    all_have(&cluster, 2);
    assert!(cluster.members.iter().all(|member| read(member).matches("drain = true").count() == 2));
}

#[test]
fn what_is_invalid_changes_nothing_and_who_refuses_says_why() {
    let cluster = started();
    let first = &cluster.members[0];
    let before = read(first);
    let broken = written(first, &before.replace("203.0.113.10:80/tcp", "203.0.113.10:80000/tcp"));
    let refused = tandem(first, &["config", "apply", broken.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    // What only the agent's host can tell.
    let elsewhere = written(first, &before.replace("[\"eth0\"]", "[\"eth7\"]"));
    let refused = tandem(first, &["config", "apply", elsewhere.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(read(first), before);

    // Member 3 does not find itself in it any more.
    let renamed = written(first, &before.replace("name = \"lb3\"", "name = \"lb3-of-old\""));
    let late = tandem(first, &["config", "apply", renamed.to_str().unwrap(), "--wait"]);
    let said = String::from_utf8_lossy(&late.stderr);
    assert_eq!(late.status.code(), Some(1), "{said}");
    assert!(said.contains("lb3-of-old does not take it over") && said.contains("no member of the cluster"), "{said}");
    assert_eq!(read(&cluster.members[2]), before);
    for member in &cluster.members {
        let mut status = Command::new(tests::member::binary().unwrap());
        let status = status.arg("status").arg("--pin-dir").arg(member.pins()).output().unwrap();
        let said = String::from_utf8_lossy(&status.stdout);
        assert!(said.contains("members run different configurations"), "{}: {said}", member.name());
    }

    // Somebody else has changed it since: the file of before has to be meant.
    apply(first, &draft(first, true), &[]);
    let stale = written(first, &before.replace("[cluster]\n", "[cluster]\ngeneration = 1\n"));
    let refused = tandem(first, &["config", "apply", stale.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    apply(first, &stale, &["--force", "--wait"]);
    all_have(&cluster, 3);
}

#[test]
fn a_trial_is_kept_when_confirmed_and_undone_when_not_or_when_an_agent_dies() {
    let mut cluster = started();
    apply(&cluster.members[0], &draft(&cluster.members[0], true), &["--confirm", "20s", "--wait"]);
    all_have(&cluster, 1);
    let second = tandem(&cluster.members[1], &["config", "apply", cluster.members[1].config().to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1), "one trial at a time");
    // On any member.
    done(&cluster.members[1], &["config", "confirm"]);
    all_have(&cluster, 3);
    wait_for(&cluster, 0, TARGET_DRAINING, LIMIT);
    let again = tandem(&cluster.members[0], &["config", "confirm"]);
    assert_eq!(again.status.code(), Some(1), "{}", String::from_utf8_lossy(&again.stderr));

    // Nobody confirms.
    apply(&cluster.members[2], &draft(&cluster.members[2], false), &["--confirm", "2s", "--wait"]);
    wait_for(&cluster, 0, TARGET_SERVING, LIMIT);
    all_have(&cluster, 5);
    wait_for(&cluster, 0, TARGET_DRAINING, LIMIT);
    assert!(cluster.members[2].log().contains("nobody has confirmed it in time"), "{}", cluster.members[2].log());

    // By hand, at another one.
    apply(&cluster.members[0], &draft(&cluster.members[0], false), &["--confirm", "10m", "--wait"]);
    all_have(&cluster, 6);
    done(&cluster.members[1], &["config", "rollback"]);
    all_have(&cluster, 7);

    // An agent dies.
    apply(&cluster.members[0], &draft(&cluster.members[0], false), &["--confirm", "10m", "--wait"]);
    all_have(&cluster, 8);
    for id in [1, 2] {
        cluster.member(id).unwrap().kill().unwrap();
    }
    assert!(says_generation(&cluster.members[0], 8));
    cluster.member(1).unwrap().start().unwrap();
    cluster.member(2).unwrap().start().unwrap();
    cluster.member(1).unwrap().wait_ready(READY_LIMIT).unwrap();
    cluster.member(2).unwrap().wait_ready(READY_LIMIT).unwrap();
    all_have(&cluster, 9);
    assert!(cluster.members.iter().all(|member| read(member).contains("drain = true")));
    assert!(cluster.members[0].log().contains("was on trial when the agent ended"));
    wait_for(&cluster, 0, TARGET_DRAINING, LIMIT);
}
