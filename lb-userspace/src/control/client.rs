//! Asking a running agent over its control socket.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::api::Refusal;

/// An agent answers in a fraction of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no agent answers at {path}: {error}; is it running (`systemctl status tandem`), and is this its socket (--socket)?"
    )]
    Unreachable {
        /// The socket.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// The agent says no.
    #[error("{0}")]
    Refused(String),
    /// It is no agent, or of another version.
    #[error("what answers at {path} is no agent of this version: {error}")]
    Strange {
        /// The socket.
        path: String,
        /// What is wrong with it.
        error: String,
    },
}

/// Sends one request, and waits for its answer.
///
/// # Errors
/// Without an agent, or when it refuses; nothing was changed then.
pub fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    resource: &str,
    body: Option<&impl Serialize>,
) -> Result<T, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let path = || socket.display().to_string();
    let runtime = runtime.map_err(|error| AskError::Unreachable { path: path(), error })?;
    let body = body.map(serde_json::to_vec).transpose();
    let body = body.map_err(|error| AskError::Strange { path: path(), error: error.to_string() })?.unwrap_or_default();
    let asked = runtime.block_on(async { timeout(PATIENCE, exchange(socket, method, resource, body)).await });
    let late = || AskError::Unreachable { path: path(), error: io::ErrorKind::TimedOut.into() };
    let (status, answer) = asked.map_err(|_elapsed| late())??;
    if !(200..300).contains(&status) {
        let refusal = serde_json::from_slice::<Refusal>(&answer).map(|refusal| refusal.error);
        return Err(AskError::Refused(refusal.unwrap_or_else(|_| format!("status {status}"))));
    }
    let answer: &[u8] = if answer.is_empty() { b"null" } else { &answer };
    serde_json::from_slice(answer).map_err(|error| AskError::Strange { path: path(), error: error.to_string() })
}

async fn exchange(socket: &Path, method: Method, resource: &str, body: Vec<u8>) -> Result<(u16, Bytes), AskError> {
    let path = || socket.display().to_string();
    let stream = UnixStream::connect(socket).await.map_err(|error| AskError::Unreachable { path: path(), error })?;
    let strange = |error: hyper::Error| AskError::Strange { path: path(), error: error.to_string() };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(strange)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(resource)
        .header(header::HOST, "tandem")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| AskError::Strange { path: path(), error: error.to_string() })?;
    let response = sender.send_request(request).await.map_err(strange)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(strange)?.to_bytes();
    Ok((status, body))
}
