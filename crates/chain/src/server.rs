//! JSON-RPC over HTTP: `POST /`.
//!
//! Invariant: a request that was read is answered, also while the server shuts down. The caller binds the socket, and so decides who
//! reaches the chain: whoever does can do everything with it. No other origin's page may ask (there is no CORS), bodies have a limit,
//! and at most [`limits::CONCURRENT_MAX`] requests are worked on at once, on threads that may wait for the disk.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::chain::Chain;
use crate::{limits, rpc};

#[derive(Clone)]
struct Served {
    chain: Arc<Chain>,
    turns: Arc<Semaphore>,
}

/// Serves a chain on a socket until `shutdown` is ready, and the requests that were read by then are answered.
pub async fn serve(
    listener: TcpListener,
    chain: Arc<Chain>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let served = Served { chain, turns: Arc::new(Semaphore::new(limits::CONCURRENT_MAX)) };
    let router = Router::new()
        .route("/", post(answer))
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .with_state(served);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn answer(State(served): State<Served>, headers: HeaderMap, body: Bytes) -> Response {
    // A page of another origin can post plain text without being asked who it is, and JSON it cannot.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        let words = "the content type has to be application/json";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, words).into_response();
    }
    let Ok(turn) = served.turns.acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let work = tokio::task::spawn_blocking(move || {
        let answer = rpc::respond(&served.chain, &body);
        drop(turn);
        answer
    });
    match work.await {
        Ok(Some(json)) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            tracing::error!(%error, "a request was not answered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
