//! Asking a running agent over its control socket.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::api::Refusal;

/// An agent answers in a fraction of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Status of an answer to a text that is no valid configuration.
pub const INVALID: u16 = 422;

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
    #[error("{error}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// Why.
        error: String,
    },
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
        return Err(AskError::Refused { status, error: refusal.unwrap_or_else(|_| format!("status {status}")) });
    }
    let answer: &[u8] = if answer.is_empty() { b"null" } else { &answer };
    serde_json::from_slice(answer).map_err(|error| AskError::Strange { path: path(), error: error.to_string() })
}

/// Reads a resource of newline-delimited JSON, and calls `each` for every line until it returns false.
///
/// # Errors
/// Without an agent, or when it refuses.
pub fn lines<T: DeserializeOwned>(
    socket: &Path,
    resource: &str,
    mut each: impl FnMut(T) -> bool,
) -> Result<(), AskError> {
    let path = || socket.display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| AskError::Unreachable { path: path(), error })?;
    let strange = |error: String| AskError::Strange { path: path(), error };
    runtime.block_on(async {
        let late = || AskError::Unreachable { path: path(), error: io::ErrorKind::TimedOut.into() };
        let asked = timeout(PATIENCE, send(socket, Method::GET, resource, Vec::new())).await;
        let mut response = asked.map_err(|_elapsed| late())??;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(AskError::Refused { status, error: format!("status {status}") });
        }
        let mut text = Vec::new();
        while let Some(frame) = response.frame().await {
            text.extend(frame.map_err(|error| strange(error.to_string()))?.into_data().unwrap_or_default());
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if !each(serde_json::from_slice(&line).map_err(|error| strange(error.to_string()))?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

async fn exchange(socket: &Path, method: Method, resource: &str, body: Vec<u8>) -> Result<(u16, Bytes), AskError> {
    let response = send(socket, method, resource, body).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await;
    let body =
        body.map_err(|error| AskError::Strange { path: socket.display().to_string(), error: error.to_string() })?;
    Ok((status, body.to_bytes()))
}

async fn send(socket: &Path, method: Method, resource: &str, body: Vec<u8>) -> Result<Response<Incoming>, AskError> {
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
    sender.send_request(request).await.map_err(strange)
}
