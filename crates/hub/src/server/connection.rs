//! Connections of a host: how many, how long they may be silent, and the same HTTP over TCP and over streams of iroh.
//!
//! Shutdown: when `shutdown` resolves, nothing more is accepted and what runs is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use iroh::Endpoint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::ServerOptions;
use crate::limits::{HEADERS_MAX, STREAMS_MAX};
use crate::peer::Io;

/// Serves HTTP/1.1 on a socket until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServerOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    let connections = Arc::new(Semaphore::new(options.connections_max));
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            // Out of descriptors, most likely: others have to close first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        if tcp.set_nodelay(true).is_err() {
            continue;
        }
        let (router, options) = (router.clone(), options.clone());
        tasks.spawn(async move {
            speak(tcp, router, &options).await;
            drop(permit);
        });
    }
}

/// Serves the same over iroh: every bidirectional stream is one connection of HTTP/1.1. The endpoint must have been made with
/// [`ALPN`](crate::peer::ALPN).
pub async fn serve_iroh(
    endpoint: Endpoint,
    router: Router,
    options: ServerOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    let connections = Arc::new(Semaphore::new(options.connections_max));
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let incoming = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (router, options) = (router.clone(), options.clone());
        tasks.spawn(async move {
            let Ok(Ok(link)) = tokio::time::timeout(options.request_head_timeout, incoming).await else {
                return;
            };
            let mut streams = JoinSet::new();
            while let Ok((send, receive)) = link.accept_bi().await {
                while streams.try_join_next().is_some() {}
                if streams.len() >= STREAMS_MAX as usize {
                    continue;
                }
                let (router, options) = (router.clone(), options.clone());
                streams.spawn(async move { speak(tokio::io::join(receive, send), router, &options).await });
            }
            drop(permit);
        });
    }
}

async fn speak(io: impl Io, router: Router, options: &ServerOptions) {
    let io = TokioIo::new(Patient { io, patience: options.send_stall_timeout, until: None });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(options.request_head_timeout).max_headers(HEADERS_MAX);
    // A connection that ends badly is the client's affair.
    let _ = http.serve_connection(io, TowerToHyperService::new(router)).await;
}

/// A connection that gives up when the other side takes nothing for too long.
struct Patient<T> {
    io: T,
    patience: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    fn judge<R>(
        &mut self,
        polled: Poll<std::io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<R>> {
        if polled.is_ready() {
            self.until = None;
            return polled;
        }
        let patience = self.patience;
        let until =
            self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.judge(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.judge(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
