//! Who is a member: by its key, and by nothing else.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lb_common::{rank::bit, reason::Reason};
use tests::{interrupt, member::Member};

use crate::{READY_LIMIT, cluster};

/// The agents' port in the lab.
const PORT: u16 = 7400;
/// Detection at the default profile, and room for a busy machine.
const DETECTION: Duration = Duration::from_secs(1);

fn eligible(member: &Member) -> u64 {
    member.tables().liveness().unwrap().eligible
}

fn waits(limit: Duration, mut done: impl FnMut() -> bool) {
    assert!(interrupt::wait_until(limit, Duration::from_millis(5), &mut done).unwrap());
}

/// A pair has two: that of deltas, and that of bulk.
const SESSIONS: usize = 2;

fn ended_sessions(member: &Member) -> usize {
    member.log().matches("its key is not in the configuration any more").count()
}

/// Revoked, a member is a stranger from the reload on: to probes, and to sessions.
#[test]
fn a_member_whose_key_is_taken_away_is_out_at_the_reload_and_in_again_with_it() {
    let mut cluster = cluster(3);
    let everybody = bit(1) | bit(2) | bit(3);
    assert!(cluster.members.iter().all(|member| eligible(member) == everybody));
    let revoked = cluster.config.members[2].public_keys.clone();
    // Somebody else's: of a file that nobody uses.
    let other = cluster.member(3).unwrap().make_key("other.key").unwrap();
    cluster.config.members[2].public_keys = vec![other];
    cluster.write_config().unwrap();
    let before = cluster.members[0].tables().packets().unwrap();
    for member in &cluster.members[..2] {
        member.reload().unwrap();
    }
    let rest = everybody & !bit(3);
    waits(DETECTION, || cluster.members[..2].iter().all(|member| eligible(member) == rest));
    thread::sleep(Duration::from_secs(3));
    let since = cluster.members[0].tables().packets().unwrap().since(&before);
    assert!(since.of(Reason::DropProbeForged) > 50, "its probes: {}", since.of(Reason::DropProbeForged));
    for member in &cluster.members[..2] {
        assert_eq!(eligible(member), rest);
        assert_eq!(ended_sessions(member), SESSIONS, "{}", member.log());
        // It dials, or is dialled, again and again, and never gets through.
        assert_eq!(member.log().matches("has another key than the configuration says").count(), 1, "{}", member.log());
    }
    cluster.config.members[2].public_keys = revoked;
    cluster.write_config().unwrap();
    for member in &cluster.members[..2] {
        member.reload().unwrap();
    }
    waits(READY_LIMIT, || cluster.members.iter().all(|member| eligible(member) == everybody));
}

/// The next key is listed, taken into use, and the first one dropped, while everybody goes on believing everybody.
#[test]
fn a_key_is_replaced_without_anybody_being_out_for_a_moment() {
    let mut cluster = cluster(2);
    let next = cluster.member(2).unwrap().make_key("next.key").unwrap();
    let both = bit(1) | bit(2);
    let holds = |cluster: &tests::cluster::Cluster| {
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            assert!(cluster.members.iter().all(|member| eligible(member) == both));
            thread::sleep(Duration::from_millis(5));
        }
    };
    cluster.config.members[1].public_keys.push(next.clone());
    cluster.reconfigure().unwrap();
    holds(&cluster);
    let state = cluster.member(2).unwrap().state().to_owned();
    std::fs::rename(state.join("next.key"), state.join("member.key")).unwrap();
    cluster.member(2).unwrap().reload().unwrap();
    holds(&cluster);
    cluster.config.members[1].public_keys = vec![next];
    cluster.reconfigure().unwrap();
    holds(&cluster);
    // The sessions of the first key ended with it, and there are such of the next.
    assert_eq!(ended_sessions(&cluster.members[0]), SESSIONS, "{}", cluster.members[0].log());
}

/// Ten thousand half-open connections, most of a stranger, some from a member's address, and probes that nobody signed.
#[test]
fn a_flood_on_the_cluster_port_puts_nobody_out() {
    let mut cluster = cluster(3);
    let all = bit(1) | bit(2) | bit(3);
    let target = SocketAddr::new(cluster.config.members[0].address, PORT);
    let stranger = cluster.servers[0].host.namespace.clone();
    let member = cluster.member(3).unwrap().host.namespace.clone();
    let flood = |count: u32| {
        move || {
            let mut held = Vec::new();
            for number in 0..count {
                if let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_millis(200)) {
                    // The beginning of a handshake that never goes on.
                    let _closed = stream.write_all(&[22, 3, 1, 2, 0, 1, 0]);
                    held.push(stream);
                }
                if held.len() > 500 {
                    held.remove(number as usize % 500);
                }
            }
        }
    };
    let before = cluster.members[0].tables().packets().unwrap();
    thread::scope(|scope| {
        let strangers = scope.spawn(|| stranger.within(flood(10_000)));
        let members = scope.spawn(|| member.within(flood(300)));
        let probes = scope.spawn(|| {
            member.within(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for number in 0..20_000_u32 {
                    let mut probe = [0; 72];
                    probe[..8].copy_from_slice(&[b'T', b'D', b'M', b'P', 2, 1, 3, 1]);
                    probe[60..64].copy_from_slice(&number.to_be_bytes());
                    let _full = socket.send_to(&probe, target);
                }
            })
        });
        while !(strangers.is_finished() && members.is_finished() && probes.is_finished()) {
            assert!(cluster.members.iter().all(|member| eligible(member) == all));
            thread::sleep(Duration::from_millis(5));
        }
    });
    let since = cluster.members[0].tables().packets().unwrap().since(&before);
    assert!(since.of(Reason::DropProbeForged) > 10_000, "{}", since.of(Reason::DropProbeForged));
    // A member that starts now gets its session as ever.
    cluster.member(3).unwrap().kill().unwrap();
    cluster.member(3).unwrap().start().unwrap();
    cluster.member(3).unwrap().wait_ready(READY_LIMIT).unwrap();
    waits(READY_LIMIT, || cluster.members.iter().all(|member| eligible(member) == all));
}
