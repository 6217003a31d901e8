//! The HTTP server for kubelet and Prometheus: `/healthz`, `/readyz` and `/metrics`.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{error::Error, metrics::Metrics};

/// The format of `/metrics`.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The most connections at a time; more wait.
const MAX_CONNECTIONS: usize = 32;
/// The time for a request to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for a connection: the request, and the reply until its end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after a connection that could not be accepted.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// What is served.
#[derive(Debug, Default)]
pub struct Served {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether the work has begun.
    pub is_ready: AtomicBool,
}

/// Listens on `address`.
///
/// # Errors
/// It is in use, or not an address of this host.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, served: Arc<Served>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = connections.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // The client has gone, or there are no descriptors left: then it fails until there are.
            tokio::time::sleep(AFTER_ERROR).await;
            continue;
        };
        let served = served.clone();
        tokio::spawn(async move {
            let reply = service_fn(move |request| {
                let served = served.clone();
                async move { Ok::<_, Infallible>(reply(&request, &served)) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), reply);
            // What a client does wrong is its own matter, also one that does not read the reply.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

fn reply(request: &Request<Incoming>, served: &Served) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" if served.is_ready.load(Ordering::Relaxed) => {
            (StatusCode::OK, "text/plain", "ok\n".to_owned())
        }
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready yet\n".to_owned()),
        "/metrics" => (StatusCode::OK, OPEN_METRICS, served.metrics.text()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn it_says_when_it_is_ready() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(Served::default());
        tokio::spawn(serve(listener, served.clone()));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        served.is_ready.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics").await.contains("# EOF"));
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
    }
}
