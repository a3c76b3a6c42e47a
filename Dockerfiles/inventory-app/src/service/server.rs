//! Accepts HTTP/1.1 connections until shutdown, then lets requests in flight finish.
//!
//! Not `axum::serve`: that sets no timer, so a client that never finishes its request head would
//! hold a connection for ever.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::http_settings::HttpSettings;
use super::shutdown::Shutdown;

/// For the head of a request, and so also for an idle kept-alive connection.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept (out of file descriptors, usually) before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn serve(
    router: Router,
    settings: &HttpSettings,
    mut shutdown: Shutdown,
) -> io::Result<()> {
    let listener = TcpListener::bind(settings.listen).await?;
    info!(address = %listener.local_addr()?, "listening");

    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.requested() => break,
        };
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| router.clone().oneshot(request)),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection ended early");
            }
        });
    }

    drop(listener);
    info!("draining connections");
    if tokio::time::timeout(settings.shutdown_grace, connections.shutdown())
        .await
        .is_err()
    {
        warn!("requests still in flight after the grace period are cut off");
    }
    Ok(())
}
