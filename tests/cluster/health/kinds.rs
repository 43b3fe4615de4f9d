//! Every kind of check, asked of servers that are not ours: Python's HTTP, OpenSSL's TLS.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lb_common::target::{TARGET_DOWN, TARGET_SERVING};
use tests::{command, netns::Namespace};

use super::{checked, wait_for};

const LIMIT: Duration = Duration::from_secs(10);

/// `server.py` in a server's namespace; ends with the test.
struct Subject {
    child: Child,
    directory: PathBuf,
}

impl Subject {
    fn start(namespace: &Namespace, name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("tandem-checked-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        openssl.args(["-subj", "/CN=nobody.example", "-days", "1", "-keyout"]).arg(directory.join("key.pem"));
        command::run(openssl.arg("-out").arg(directory.join("certificate.pem"))).unwrap();
        let mut python = namespace.command("python3");
        python.arg("-c").arg(include_str!("server.py")).arg(&directory);
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut child = python.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let subject = Self { child, directory };
        subject.is("well");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", fs::read_to_string(subject.directory.join("log")).unwrap());
        subject
    }

    fn is(&self, mood: &str) {
        let new = self.directory.join("mood.new");
        fs::write(&new, mood).unwrap();
        fs::rename(new, self.directory.join("mood")).unwrap();
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// Checks of one kind, at all backends; what goes wrong at one of them, and how its members say so.
fn fails_by(health: &'static str, faults: &[(&str, &str)]) {
    let cluster = checked(health);
    let name = health.split('"').nth(1).unwrap();
    let start = |(number, server): (usize, &tests::server::Server)| {
        Subject::start(&server.host.namespace, &format!("{name}-{number}"))
    };
    let mut subjects: Vec<Subject> = cluster.servers.iter().enumerate().map(start).collect();
    let all_answer = || cluster.members.iter().all(|member| member.log().matches("answers its checks").count() >= 6);
    assert!(tests::interrupt::wait_until(LIMIT, Duration::from_millis(10), all_answer).unwrap());
    wait_for(&cluster, 0, TARGET_SERVING, LIMIT);
    for (mood, said) in faults {
        subjects[0].is(mood);
        wait_for(&cluster, 0, TARGET_DOWN, LIMIT);
        for member in &cluster.members {
            assert!(member.log().contains(said), "{mood}: not {said:?} in\n{}", member.log());
        }
        subjects[0].is("well");
        wait_for(&cluster, 0, TARGET_SERVING, LIMIT);
    }
    subjects.swap_remove(0);
    wait_for(&cluster, 0, TARGET_DOWN, LIMIT);
    let log = cluster.members[0].log();
    assert!(log.contains("refused"), "nobody listens, and it is not said:\n{log}");
}

#[test]
fn http() {
    let health = r#"{ type = "http", port = 8081, path = "/alive", host = "health.example", status = "200-203", body = "all is well", interval = "100ms", timeout = "400ms", rise = 1, fall = 2 }"#;
    fails_by(
        health,
        &[
            ("broken", "status 503"),
            ("other status", "status 204"),
            ("other text", "does not contain"),
            ("silent", "no answer within"),
        ],
    );
}

#[test]
fn https() {
    let health = r#"{ type = "https", port = 8443, path = "/alive", host = "health.example", body = "all is well", interval = "100ms", timeout = "400ms", rise = 1, fall = 2 }"#;
    fails_by(health, &[("broken", "status 503"), ("other text", "does not contain"), ("silent", "no answer within")]);
}

#[test]
fn udp() {
    let health = r#"{ type = "udp", port = 8053, send = "alive?", expect = "alive", interval = "100ms", timeout = "400ms", rise = 1, fall = 2 }"#;
    fails_by(health, &[("other text", "does not contain"), ("silent", "no answer within")]);
}
