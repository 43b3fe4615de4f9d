//! HTTP on the socket's side of the agent.

use std::{convert::Infallible, io, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, State, connect_info::Connected},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
    serve::IncomingStream,
};
use tokio::{
    net::UnixListener,
    sync::{
        broadcast::error::RecvError,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
};

use super::{
    Change, Journal, Order, Refusal,
    api::{self, Apply, DrainBackend, DrainNode, EventLine},
};
use crate::{
    core::wire::TEXT_MAX,
    inspect::metrics::{CONTENT_TYPE, Source},
};

/// A text as a JSON string: each of its bytes may become two.
const BODY_MAX: usize = 2 * TEXT_MAX + 1024;

/// Who is at the other end.
#[derive(Clone, Copy)]
struct Caller {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|peer| peer.uid()) }
    }
}

#[derive(Clone)]
struct Agent {
    orders: mpsc::Sender<Order>,
    journal: Arc<Journal>,
    metrics: Arc<Source>,
}

/// An answer that is none.
struct Denied(StatusCode, String);

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        (self.0, Json(api::Refusal { error: self.1 })).into_response()
    }
}

/// Serves until the process ends.
pub(super) async fn serve(
    listener: std::os::unix::net::UnixListener,
    orders: mpsc::Sender<Order>,
    journal: Arc<Journal>,
    metrics: Arc<Source>,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/v1/node", get(node))
        .route("/v1/node/drain", put(drain_node))
        .route("/v1/backends", get(backends))
        .route("/v1/backends/drain", put(drain_backend))
        .route("/v1/config", get(config).put(apply).layer(DefaultBodyLimit::max(BODY_MAX)))
        .route("/v1/config/text", get(config_text))
        .route("/v1/config/confirm", post(confirm))
        .route("/v1/config/rollback", post(undo))
        .route("/v1/reload", post(reload))
        .route("/v1/events", get(events))
        .route("/metrics", get(metrics_now))
        .fallback(async || {
            Denied(StatusCode::NOT_FOUND, "there is no such resource; docs/control.md lists them".into())
        })
        .with_state(Agent { orders, journal, metrics });
    axum::serve(UnixListener::from_std(listener)?, routes.into_make_service_with_connect_info::<Caller>()).await
}

impl Agent {
    /// The agent's answer to an order.
    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Denied> {
        let (answer, answered) = oneshot::channel();
        self.orders.try_send(order(answer)).map_err(|error| match error {
            TrySendError::Full(_) => {
                Denied(StatusCode::SERVICE_UNAVAILABLE, "too many orders wait; nothing was changed, try again".into())
            }
            TrySendError::Closed(_) => stopping(),
        })?;
        answered.await.map_err(|_gone| stopping())
    }
}

fn stopping() -> Denied {
    Denied(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".into())
}

impl Caller {
    /// Whoever may open the socket may look; changes are for root and the agent's own user.
    fn may_change(self) -> Result<(), Denied> {
        let own = rustix::process::geteuid().as_raw();
        if self.uid.is_some_and(|uid| uid == 0 || uid == own) {
            return Ok(());
        }
        Err(Denied(
            StatusCode::FORBIDDEN,
            "only root and the agent's user may change something; nothing was changed".into(),
        ))
    }
}

async fn node(State(agent): State<Agent>) -> Result<impl IntoResponse, Denied> {
    agent.ask(Order::Node).await.map(Json)
}

async fn backends(State(agent): State<Agent>) -> Result<impl IntoResponse, Denied> {
    agent.ask(Order::Backends).await.map(Json)
}

async fn drain_node(
    State(agent): State<Agent>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    body: Bytes,
) -> Result<impl IntoResponse, Denied> {
    caller.may_change()?;
    let DrainNode { drain } = read(&body)?;
    agent.ask(|answer| Order::DrainNode(drain, answer)).await.map(Json)
}

async fn drain_backend(
    State(agent): State<Agent>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    body: Bytes,
) -> Result<impl IntoResponse, Denied> {
    caller.may_change()?;
    let order: DrainBackend = read(&body)?;
    let wanted = order.backend.clone();
    let matched = agent.ask(|answer| Order::DrainBackend(order, answer)).await?;
    if matched.matched == 0 {
        let error = format!("there is no backend {wanted}; nothing was changed (`tandem get backends` lists them)");
        return Err(Denied(StatusCode::NOT_FOUND, error));
    }
    Ok(Json(matched))
}

async fn config(State(agent): State<Agent>) -> Result<impl IntoResponse, Denied> {
    agent.ask(Order::Config).await.map(Json)
}

async fn config_text(State(agent): State<Agent>) -> Result<impl IntoResponse, Denied> {
    agent.ask(Order::ConfigText).await.map(Json)
}

async fn apply(
    State(agent): State<Agent>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    body: Bytes,
) -> Result<impl IntoResponse, Denied> {
    caller.may_change()?;
    let wanted: Apply = read(&body)?;
    change(&agent, Change::Apply(wanted)).await
}

async fn confirm(
    State(agent): State<Agent>,
    ConnectInfo(caller): ConnectInfo<Caller>,
) -> Result<impl IntoResponse, Denied> {
    caller.may_change()?;
    change(&agent, Change::Confirm).await
}

async fn undo(
    State(agent): State<Agent>,
    ConnectInfo(caller): ConnectInfo<Caller>,
) -> Result<impl IntoResponse, Denied> {
    caller.may_change()?;
    change(&agent, Change::Undo).await
}

async fn reload(
    State(agent): State<Agent>,
    ConnectInfo(caller): ConnectInfo<Caller>,
) -> Result<impl IntoResponse, Denied> {
    caller.may_change()?;
    change(&agent, Change::Reload).await.map(|_applied| StatusCode::NO_CONTENT)
}

async fn change(agent: &Agent, change: Change) -> Result<Response, Denied> {
    let done = agent.ask(|answer| Order::Change(change, answer)).await?;
    done.map(|applied| Json(applied).into_response()).map_err(|refusal| match refusal {
        Refusal::Invalid(error) => Denied(StatusCode::UNPROCESSABLE_ENTITY, error),
        Refusal::Conflict(error) => Denied(StatusCode::CONFLICT, error),
        Refusal::Failed(error) => Denied(StatusCode::INTERNAL_SERVER_ERROR, error),
    })
}

async fn metrics_now(State(agent): State<Agent>) -> Result<impl IntoResponse, Denied> {
    let text = agent.metrics.exposition();
    let text = text.map_err(|error| Denied(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

/// The past, then what comes, unless `follow=false`. A listener that falls behind is told how much it missed.
async fn events(State(agent): State<Agent>, uri: Uri) -> impl IntoResponse {
    let is_followed = uri.query() != Some("follow=false");
    let (past, mut news) = agent.journal.listen();
    let (lines, written) = mpsc::channel::<Bytes>(16);
    tokio::spawn(async move {
        for event in past {
            if lines.send(line(&event)).await.is_err() {
                return;
            }
        }
        if !is_followed {
            return;
        }
        loop {
            let event = match news.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(missed)) => EventLine {
                    time: std::time::SystemTime::now(),
                    level: "warn".into(),
                    text: format!("{missed} events were not read in time, and are lost"),
                },
                Err(RecvError::Closed) => return,
            };
            if lines.send(line(&event)).await.is_err() {
                return;
            }
        }
    });
    let body = Body::from_stream(Lines(written));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body)
}

fn line(event: &EventLine) -> Bytes {
    let mut text = serde_json::to_vec(event).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// A body that comes out of a channel.
struct Lines(mpsc::Receiver<Bytes>);

impl futures_core::Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|line| line.map(Ok))
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Denied> {
    serde_json::from_slice(body).map_err(|error| {
        Denied(StatusCode::BAD_REQUEST, format!("the body is not what is wanted: {error}; nothing was changed"))
    })
}
