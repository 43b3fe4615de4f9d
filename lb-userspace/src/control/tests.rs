//! The socket, its answers and its refusals, without an agent behind it.

use std::{io::Read as _, os::unix::net::UnixStream, thread, time::Duration};

use hyper::Method;

use super::{client::ask, *};
use crate::config::Names;

fn directory() -> PathBuf {
    let directory =
        std::env::temp_dir().join(format!("tandem-control-{}-{:?}", std::process::id(), thread::current().id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Of a member without pins.
fn metrics() -> Arc<Source> {
    Arc::new(Source::new(PathBuf::from("/nonexistent/tandem"), Names::default()))
}

/// Answers orders as long as there are any.
fn answer_all(mut control: Control) -> thread::JoinHandle<Vec<DrainBackend>> {
    thread::spawn(move || {
        let mut drained = Vec::new();
        while let Some(order) = control.orders.blocking_recv() {
            match order {
                Order::Node(answer) => _ = answer.send(Node { id: 7, ..Node::default() }),
                Order::DrainBackend(order, answer) => {
                    let matched = usize::from(order.backend == "web-1");
                    drained.push(order);
                    _ = answer.send(Matched { matched });
                }
                Order::Change(Change::Reload, answer) => {
                    _ = answer.send(Err(Refusal::Invalid("line 3".into())));
                    return drained;
                }
                other => panic!("{other:?}"),
            }
        }
        drained
    })
}

#[test]
fn orders_are_answered_or_refused_with_a_reason() {
    let directory = directory();
    let socket = directory.join("control.sock");
    let control = Control::listen(&socket, metrics()).unwrap();
    assert!(Control::listen(&socket, metrics()).unwrap_err().to_string().contains("another agent"));
    control.tell("warn", "something".into());
    let agent = answer_all(control);
    let node: Node = ask(&socket, Method::GET, "/v1/node", None::<&()>).unwrap();
    assert_eq!(node.id, 7);
    let drain = |name: &str| DrainBackend { backend: name.into(), service: None, drain: true };
    let put = |name| ask::<Matched>(&socket, Method::PUT, "/v1/backends/drain", Some(&drain(name)));
    assert_eq!(put("web-1").unwrap(), Matched { matched: 1 });
    assert!(put("web-9").unwrap_err().to_string().contains("no backend web-9; nothing was changed"));
    let nonsense = ask::<Matched>(&socket, Method::PUT, "/v1/backends/drain", Some(&5));
    assert!(nonsense.unwrap_err().to_string().contains("nothing was changed"));
    assert!(ask::<Node>(&socket, Method::GET, "/v2", None::<&()>).is_err());

    let mut past = Vec::new();
    client::lines(&socket, "/v1/events?follow=false", |event: EventLine| {
        past.push(event.text);
        true
    })
    .unwrap();
    assert_eq!(past, ["something"]);
    let mut seen = 0;
    client::lines(&socket, "/v1/events", |_: EventLine| {
        seen += 1;
        false
    })
    .unwrap();
    assert_eq!(seen, 1);

    let mut events = UnixStream::connect(&socket).unwrap();
    events.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    io::Write::write_all(&mut events, b"GET /v1/events HTTP/1.1\r\nHost: tandem\r\n\r\n").unwrap();
    let mut read = String::new();
    while !read.contains("something") {
        let mut buffer = [0; 4096];
        let length = events.read(&mut buffer).expect("the event within 5 s");
        read.push_str(str::from_utf8(&buffer[..length]).unwrap());
    }
    assert!(read.contains("application/x-ndjson"), "{read}");

    let reload = ask::<()>(&socket, Method::POST, "/v1/reload", None::<&()>);
    assert_eq!(reload.unwrap_err().to_string(), "line 3");
    assert_eq!(agent.join().unwrap(), [drain("web-1"), drain("web-9")]);
    assert!(!socket.exists(), "the socket goes with the agent");
    let absent = ask::<Node>(&socket, Method::GET, "/v1/node", None::<&()>);
    assert!(absent.unwrap_err().to_string().contains("no agent answers"));
    fs::remove_dir_all(directory).unwrap();
}
