use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use super::{
    guests::{HANDSHAKE_TIMEOUT, HANDSHAKES_OF_ONE},
    *,
};
use crate::identity::MemberKey;

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 2));

fn pair(port: u16) -> (Sessions, Sessions) {
    let members = BTreeMap::from([(1, ONE), (2, TWO)]);
    let mut both = [ONE, TWO].map(|own| Sessions::listen(own, port).unwrap());
    for (sessions, id) in both.iter_mut().zip(1..) {
        sessions.set_members(members.clone());
        sessions.trust(&trust(id, &[(1, 1), (2, 2)])).unwrap();
    }
    both.into()
}

fn key(seed: u8) -> MemberKey {
    MemberKey::from_seed(&[seed; 32])
}

/// Has this key, and takes members for those of these keys.
fn trust(own: u8, peers: &[(u8, u8)]) -> Trust {
    let mut trust = Trust { own: Some(key(own)), ..Trust::default() };
    for (id, seed) in peers {
        trust.peers.entry(*id).or_default().push(key(*seed).public());
    }
    trust
}

/// Somebody who speaks from member 2's address.
async fn guest(port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(TWO, 0)).unwrap();
    socket.connect(SocketAddr::new(ONE, port)).await.unwrap()
}

/// Lets a member work for a while; nothing may happen that its core would hear of.
async fn hears_nothing(sessions: &mut Sessions, time: Duration) {
    if let Ok(input) = timeout(time, sessions.next()).await {
        panic!("{input:?}");
    }
}

async fn is_ended(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match timeout(Duration::from_millis(100), stream.read(&mut bytes)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
}

async fn connected(one: &mut Sessions, two: &mut Sessions) -> (Session, Session) {
    let [peer_of_one, peer_of_two] = if one.own == ONE { [2, 1] } else { [1, 2] };
    one.dial(peer_of_one);
    let (ours, theirs) = tokio::join!(one.next(), two.next());
    let Input::Connected { peer, session: ours, dialled: true } = ours else { panic!("{ours:?}") };
    assert_eq!(peer, peer_of_one);
    let Input::Connected { peer, session: theirs, dialled: false } = theirs else { panic!("{theirs:?}") };
    assert_eq!(peer, peer_of_two);
    (ours, theirs)
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_sent_before_a_close_arrives() {
    let (mut one, mut two) = pair(17401);
    let (ours, theirs) = connected(&mut one, &mut two).await;
    one.send(ours, vec![7; 300_000]);
    one.close(ours);
    let mut received = 0;
    loop {
        match two.next().await {
            Input::Received { session, bytes } if session == theirs => received += bytes.len(),
            Input::Closed { session } if session == theirs => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, 300_000);
}

#[tokio::test(flavor = "current_thread")]
async fn strangers_are_refused_and_dead_peers_reported() {
    let (mut one, mut two) = pair(17402);
    one.members.remove(&2);
    two.dial(1);
    tokio::select! {
        input = one.next() => panic!("{input:?}"),
        input = two.next() => assert!(matches!(input, Input::DialFailed { peer: 1 })),
    }
    drop(one);
    two.dial(1);
    assert!(matches!(two.next().await, Input::DialFailed { peer: 1 }));
}

#[tokio::test(flavor = "current_thread")]
async fn another_key_opens_nothing_in_either_direction() {
    let (mut one, mut two) = pair(17404);
    // The dialler has another key: its peer hears nothing of it, and it is told so at once.
    two.trust(&trust(9, &[(1, 1)])).unwrap();
    two.dial(1);
    let told = async {
        let Input::Connected { session, .. } = two.next().await else { panic!() };
        let Input::Closed { session: closed } = two.next().await else { panic!() };
        assert_eq!(closed, session);
    };
    tokio::select! {
        () = told => {}
        input = one.next() => panic!("{input:?}"),
    }
    // The one who is dialled has another key.
    one.dial(2);
    tokio::select! {
        input = one.next() => assert!(matches!(input, Input::DialFailed { peer: 2 })),
        input = two.next() => panic!("{input:?}"),
    }
    assert!(one.live.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_ends_when_its_key_is_dropped_and_lives_on_with_either_of_two() {
    let (mut one, mut two) = pair(17405);
    let (ours, theirs) = connected(&mut one, &mut two).await;
    one.trust(&trust(1, &[(2, 7), (2, 2)])).unwrap();
    hears_nothing(&mut one, Duration::from_millis(50)).await;
    one.trust(&trust(1, &[(2, 7)])).unwrap();
    let Input::Closed { session } = one.next().await else { panic!() };
    assert_eq!(session, ours);
    let Input::Closed { session } = two.next().await else { panic!() };
    assert_eq!(session, theirs);
    // With the new key it is welcome again.
    two.trust(&trust(7, &[(1, 1)])).unwrap();
    connected(&mut one, &mut two).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_recorded_session_opens_nothing() {
    let (mut one, mut two) = pair(17406);
    // Between the two somebody who records what the dialler says.
    let wire = TcpSocket::new_v4().unwrap();
    wire.set_reuseaddr(true).unwrap();
    wire.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 7, 9)), 17406)).unwrap();
    let wire = wire.listen(1).unwrap();
    two.members.insert(1, IpAddr::V4(Ipv4Addr::new(127, 0, 7, 9)));
    two.dial(1);
    let (mut dialler, _) = wire.accept().await.unwrap();
    let mut dialled = guest(17406).await;
    let mut recording = Vec::new();
    let relay = async {
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        loop {
            tokio::select! {
                Ok(n @ 1..) = dialler.read(&mut up) => {
                    recording.extend_from_slice(&up[..n]);
                    dialled.write_all(&up[..n]).await.unwrap();
                }
                Ok(n @ 1..) = dialled.read(&mut down) => dialler.write_all(&down[..n]).await.unwrap(),
            }
        }
    };
    let talk = async {
        let (Input::Connected { session: theirs, .. }, Input::Connected { session: ours, .. }) =
            tokio::join!(two.next(), one.next())
        else {
            panic!()
        };
        two.send(theirs, vec![5; 100]);
        assert!(matches!(two.next().await, Input::Drained { .. }));
        let Input::Received { session, bytes } = one.next().await else { panic!() };
        assert_eq!((session, bytes), (ours, vec![5; 100]));
    };
    tokio::select! {
        () = relay => {}
        () = talk => {}
    }
    assert!(recording.len() > 300);
    let mut again = guest(17406).await;
    again.write_all(&recording).await.unwrap();
    hears_nothing(&mut one, Duration::from_millis(200)).await;
    assert!(is_ended(&mut again).await);
}

#[tokio::test(flavor = "current_thread")]
async fn half_open_handshakes_are_few_short_and_nobody_elses_concern() {
    let (mut one, mut two) = pair(17407);
    // Silent, with rubbish, with a record longer than TLS allows, with the beginning of a handshake.
    let hello = [&[22, 3, 1, 0x40, 1][..], &[0; 600]].concat();
    let mut guests = Vec::new();
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &hello, &[22, 3, 1, 2, 0, 1, 0]].repeat(50) {
        let mut guest = guest(17407).await;
        // Refused ones are closed by now.
        let _closed = guest.write_all(bytes).await;
        guests.push(guest);
        hears_nothing(&mut one, Duration::from_millis(1)).await;
        assert!(one.guests[&2].under_way <= HANDSHAKES_OF_ONE);
    }
    // All are gone after the time for a handshake, and the member itself gets through.
    hears_nothing(&mut one, HANDSHAKE_TIMEOUT + Duration::from_millis(300)).await;
    assert_eq!(one.guests[&2].under_way, 0);
    for guest in &mut guests {
        assert!(is_ended(guest).await);
    }
    connected(&mut two, &mut one).await;
}

#[tokio::test(flavor = "current_thread")]
async fn every_byte_is_reported_as_drained_once() {
    let (mut one, mut two) = pair(17403);
    let (ours, _) = connected(&mut one, &mut two).await;
    for _ in 0..10 {
        one.send(ours, vec![0; 10_000]);
    }
    let mut drained = 0;
    while drained < 100_000 {
        let Input::Drained { session, bytes } = one.next().await else { panic!() };
        assert_eq!(session, ours);
        drained += bytes;
    }
    assert!(one.try_next().is_none());
}

#[tokio::test(flavor = "current_thread")]
async fn what_comes_in_on_a_deferred_session_waits_for_all_else() {
    let (mut one, mut two) = pair(17408);
    let (plain, theirs) = connected(&mut one, &mut two).await;
    let (deferred, theirs_deferred) = connected(&mut one, &mut two).await;
    // What was read before is still in its order.
    two.send(theirs_deferred, vec![1; 10]);
    hears_nothing_but_drains(&mut two).await;
    sleep(Duration::from_millis(20)).await;
    one.defer(deferred);
    two.send(theirs_deferred, vec![2; 10]);
    hears_nothing_but_drains(&mut two).await;
    two.send(theirs, vec![3; 10]);
    hears_nothing_but_drains(&mut two).await;
    sleep(Duration::from_millis(20)).await;
    let mut heard = Vec::new();
    while let Ok(input) = timeout(Duration::from_millis(20), one.next()).await {
        let Input::Received { session, bytes } = input else { panic!("{input:?}") };
        heard.push((session, bytes[0]));
    }
    assert_eq!(heard, [(deferred, 1), (plain, 3), (deferred, 2)]);
}

async fn hears_nothing_but_drains(sessions: &mut Sessions) {
    while let Ok(input) = timeout(Duration::from_millis(20), sessions.next()).await {
        assert!(matches!(input, Input::Drained { .. }), "{input:?}");
    }
}
