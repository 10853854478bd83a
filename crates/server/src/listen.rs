//! Connections: a bounded number, headers within a time limit, and a drain that lets requests
//! finish.
//!
//! HTTP/1.1 only: without TLS no client negotiates anything newer, and sniffing the version would
//! wait for a first byte without any time limit.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::Config;
use crate::heads::{MAX_HEAD_BYTES, MAX_HEADERS};

/// Serves until `stop_accepting` fires, then gives open requests `drain_timeout` to finish.
pub(crate) async fn run(
    listener: TcpListener,
    router: Router,
    config: &Config,
    stop_accepting: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    let slots = std::sync::Arc::new(Semaphore::new(config.max_connections));
    loop {
        // At the limit new connections wait in the kernel's backlog instead of taking memory here.
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = stop_accepting.cancelled() => break,
        };
        let Some((stream, slot)) = accepted else { continue };
        let service = TowerToHyperService::new(
            router.clone().map_request(|request: hyper::Request<Incoming>| request.map(Body::new)),
        );
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            // Up to twice what is allowed is read, to be refused in words.
            .max_buf_size(2 * MAX_HEAD_BYTES)
            .max_headers(2 * MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    let open = graceful.count();
    if tokio::time::timeout(config.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = open, "drain time is over; cutting what is still open");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &std::sync::Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Tokens and replies of a few bytes must not wait for a full packet.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            Some((stream, slot))
        }
        Err(error) => {
            // Out of file handles, mostly: accepting again at once would only spin.
            tracing::warn!(%error, "accepting a connection failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}
