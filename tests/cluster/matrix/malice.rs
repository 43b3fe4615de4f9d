//! F: a member whose key is right and whose words are not.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_common::{
    flow::{FlowKeyV4, STATE_ESTABLISHED, TCP},
    rank::bit,
};
use lb_userspace::{
    core::{
        Input, Key,
        records::{BackendRegister, COUNT_MAX, Lifecycle, OwnersRegister, Record},
        wire::{Frame, Hello, Item},
    },
    identity::{KEY_FILE, MemberKey},
    io::{handshake::Trust, sessions::Sessions},
};
use tests::{cluster::READY_LIMIT, interrupt, population, topology::VIP};

use super::Scene;

/// The agents' port in the lab, and the version that both ends speak.
const PORT: u16 = 7400;
const VERSION: u8 = 2;
/// Records that are sent in each session.
const RECORDS: u32 = 20_000;

/// What the liar says to member 1 after a greeting that is in order; each ends the session, or is taken and changes nothing.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// A greeting as somebody else.
    OtherMember,
    /// A greeting that knows a later start of the receiver than there can have been.
    Future,
    /// The end of a snapshot of 2^63 records.
    Snapshot,
    /// What no version knows.
    Nonsense,
    /// A frame of 4 GB.
    Endless,
    /// A record whose creator is no member.
    NoMember,
    /// A record beyond the highest count.
    Beyond,
    /// Records of services that there are not.
    UnknownVips,
    /// Records of backends that there are not.
    UnknownBackends,
}

const LIES: [(Lie, Option<&str>); 9] = [
    (Lie::OtherMember, Some("it says it is member 2")),
    (Lie::Future, Some("it says this member was incarnation")),
    (Lie::Snapshot, Some("end of a snapshot that was not sent")),
    (Lie::Nonsense, Some("protocol violated")),
    (Lie::Endless, Some("protocol violated")),
    (Lie::NoMember, Some("protocol violated")),
    (Lie::Beyond, Some("protocol violated")),
    (Lie::UnknownVips, None),
    (Lie::UnknownBackends, None),
];

#[test]
fn f57_a_member_that_lies_is_cut_off_with_a_reason_and_changes_nothing() {
    let mut scene = Scene::of_long_ones(3);
    scene.cluster.member(3).unwrap().kill().unwrap();
    scene.pause(1500);
    let memory = |scene: &Scene| resident_kb(scene.cluster.members[0].pid().unwrap());
    let before = [0, 1].map(|at| population::flows_of(&scene.cluster.members[at]).unwrap());
    let memory_before = memory(&scene);
    for (lie, reason) in LIES {
        let from = scene.cluster.members[0].log().len();
        let liar = Liar::start(&scene, lie);
        let is_said = || {
            let log = scene.cluster.members[0].log();
            reason.map_or(liar.has_said_all(), |reason| log[from..].contains(reason))
        };
        let is_said = interrupt::wait_until(READY_LIMIT, Duration::from_millis(50), is_said).unwrap();
        assert!(is_said, "{lie:?}: {}", &scene.cluster.members[0].log()[from..]);
        drop(liar);
        // Whatever it said, the others go on believing each other.
        let liveness = scene.cluster.members[0].tables().liveness().unwrap();
        assert_eq!(liveness.eligible & (bit(1) | bit(2)), bit(1) | bit(2), "{lie:?}");
    }
    scene.pause(1000);
    let after = [0, 1].map(|at| population::flows_of(&scene.cluster.members[at]).unwrap());
    assert!(after.iter().zip(before).all(|(after, before)| *after <= before), "{before:?}, then {after:?}");
    println!("memory of the one it spoke to: {memory_before} KB, then {} KB", memory(&scene));
    assert!(memory(&scene) < memory_before + 64 * 1024, "{memory_before} KB, then {} KB", memory(&scene));
    // The real one is heard as ever.
    scene.cluster.member(3).unwrap().start().unwrap();
    scene.ready(3);
    scene.tables_agree();
    scene.nothing_broke();
}

fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Member 3's key in other hands: it listens where member 3 does, and speaks to whoever dials.
struct Liar {
    stop: Arc<AtomicBool>,
    said: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    fn start(scene: &Scene, lie: Lie) -> Self {
        let member = &scene.cluster.members[2];
        let own: IpAddr = member.host.address.into();
        let trust = Trust {
            own: Some(
                MemberKey::read(&member.state().join(KEY_FILE)).unwrap_or_else(|error| panic!("the key {error}")),
            ),
            peers: [0, 1].map(|at| (at as u8 + 1, key_of(scene, at))).into(),
        };
        let others: BTreeMap<u8, IpAddr> =
            [0, 1].map(|at| (at as u8 + 1, scene.cluster.members[at].host.address.into())).into();
        let server = scene.cluster.config.services[0].backends[0].address;
        let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (until, has_said) = (Arc::clone(&stop), Arc::clone(&said));
        let incarnation = scene.cluster.members[2].tables().node().unwrap().incarnation + 1;
        let speak = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut sessions = Sessions::listen(own, PORT).unwrap();
                sessions.set_members(others);
                sessions.trust(&trust).unwrap();
                while !until.load(Ordering::Relaxed) {
                    let next = tokio::time::timeout(Duration::from_millis(50), sessions.next()).await;
                    if let Ok(Input::Connected { peer: 1, session, .. }) = next {
                        for bytes in lie.words(incarnation, server) {
                            sessions.send(session, bytes);
                        }
                        has_said.store(true, Ordering::Relaxed);
                    }
                }
            });
        };
        let thread = member.host.namespace.thread("liar", speak).unwrap();
        Self { stop, said, thread: Some(thread) }
    }

    /// To somebody who listened.
    fn has_said_all(&self) -> bool {
        self.said.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        if self.said.load(Ordering::Relaxed) {
            // What was said is on its way.
            thread::sleep(Duration::from_millis(500));
        }
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking(), "the liar panicked");
    }
}

fn key_of(scene: &Scene, at: usize) -> Vec<lb_userspace::identity::PublicKey> {
    scene.cluster.config.members[at].public_keys.iter().map(|key| key.parse().unwrap()).collect()
}

impl Lie {
    fn words(self, incarnation: u32, server: IpAddr) -> Vec<Vec<u8>> {
        let honest = Hello {
            bulk: false,
            speaks: VERSION,
            from: 3,
            to: 1,
            ready: true,
            incarnation,
            heard_of: 0,
            generation: 0,
            hash: 0,
            cluster: "lab".to_owned(),
        };
        let hello = |hello: Hello| Frame::Hello(hello).encode(VERSION);
        let delta = |items: Vec<Item>| Frame::Delta(items).encode(VERSION);
        let good = hello(honest.clone());
        match self {
            Self::OtherMember => vec![hello(Hello { from: 2, ..honest })],
            Self::Future => vec![hello(Hello { heard_of: u32::MAX, ..honest })],
            Self::Snapshot => vec![good, Frame::SnapshotEnd { records: 1 << 63 }.encode(VERSION)],
            Self::Nonsense => vec![good, vec![0, 0, 0, 4, VERSION, 200, 1, 2]],
            Self::Endless => vec![good, vec![0xff; 64]],
            Self::NoMember => vec![good, delta(vec![item(1, VIP.octets(), server, 99, 1)])],
            Self::Beyond => vec![good, delta(vec![item(1, VIP.octets(), server, 3, COUNT_MAX + 1)])],
            Self::UnknownVips => [vec![good], many(|number| item(number, [203, 0, 113, 250], server, 3, 1))].concat(),
            Self::UnknownBackends => {
                let nobody = IpAddr::from([10, 0, 2, 250]);
                [vec![good], many(|number| item(number, VIP.octets(), nobody, 3, 1))].concat()
            }
        }
    }
}

fn many(item: impl Fn(u32) -> Item) -> Vec<Vec<u8>> {
    let numbers: Vec<u32> = (0..RECORDS).collect();
    numbers.chunks(200).map(|some| Frame::Delta(some.iter().map(|n| item(*n)).collect()).encode(VERSION)).collect()
}

fn item(number: u32, vip: [u8; 4], server: IpAddr, creator: u8, term: u16) -> Item {
    let [_, a, b, c] = number.to_be_bytes();
    let key = FlowKeyV4::new([198, 18, a, b], vip, [c, 1], [0, 80], TCP);
    let record = Record {
        generation: 0,
        backend: BackendRegister {
            witnessed: true,
            creator,
            incarnation: 1,
            address: lb_userspace::config::address(server),
        },
        lifecycle: Lifecycle { revision: 0, state: STATE_ESTABLISHED },
        owners: OwnersRegister { term, primary: 3, backup: 1 },
    };
    Item { key: Key::V4(key), record, idle_ms: 0, ended_s: 0 }
}
