//! Metrics over TCP, for Prometheus: `GET /metrics`, and nothing else.
//!
//! A thread of its own, so that whoever asks holds up no probe; few connections at a time and little patience, so that whoever
//! asks too much waits for nobody but others like it. Nothing that is sent here changes anything.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::inspect::metrics::{CONTENT_TYPE, Source};

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 8;
/// For a request and its answer; longer than Prometheus waits for one by default.
const PATIENCE: Duration = Duration::from_secs(15);
/// What a request may be long: a path, and headers that nobody reads.
const REQUEST_BYTES: usize = 16 << 10;
/// Before the next connection is taken after one could not be.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers at `address` until the process ends.
///
/// # Errors
///
/// The address is not this host's, or taken.
pub fn start(address: SocketAddr, source: Arc<Source>) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("metrics".into()).spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener, source)) {
            warn!(%error, "metrics are not served any more");
        }
    })?;
    Ok(())
}

async fn serve(listener: TcpListener, source: Arc<Source>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection for metrics cannot be taken");
                sleep(PAUSE).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            // Whoever is too slow, or says something else, is left.
            _ = timeout(PATIENCE, converse(stream, &source)).await;
            drop(place);
        });
    }
    Ok(())
}

async fn converse(stream: TcpStream, source: &Source) -> Result<(), hyper::Error> {
    let answer = |request: Request<_>| {
        let answer = answer(&request, source);
        async move { Ok::<_, Infallible>(answer) }
    };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(REQUEST_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
}

fn answer<B>(request: &Request<B>, source: &Source) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET) => match source.exposition() {
            Ok(text) => (StatusCode::OK, CONTENT_TYPE, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
        },
        ("/metrics", _) => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "there is only GET /metrics\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "there is only /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    use super::*;
    use crate::config::Names;

    /// A port of loopback that nobody listens at.
    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap()
    }

    fn said(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn only_metrics_can_be_had_and_who_holds_connections_holds_up_nobody_for_long() {
        let address = free();
        let source = Arc::new(Source::new("/nonexistent/tandem".into(), Names::default()));
        start(address, Arc::clone(&source)).unwrap();
        assert!(start(address, source).is_err(), "the same address twice");
        let metrics = said(address, "GET /metrics HTTP/1.1\r\nHost: anything.example\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.1 500 ") && metrics.contains("no datapath is pinned"), "{metrics}");
        assert!(said(address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(said(address, "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").contains("405 "));
        assert!(said(address, "nonsense\r\n\r\n").contains("400 "));
        let silent: Vec<_> = (0..CONNECTIONS - 1).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(said(address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").contains("404 "));
        drop(silent);
    }
}
