//! Calls of a container engine: unary
//! [gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). It shares
//! nothing with the client of `ecr-runtime`, which is under test.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request,
    body::Bytes,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protobuf::Message;
use tokio::net::UnixStream;

use crate::Error;

/// A connection. It ends with its last copy.
#[derive(Debug, Clone)]
pub(super) struct Client {
    sender: SendRequest<Full<Bytes>>,
    limit: Duration,
}

impl Client {
    /// Connects. A call may take as long as `limit`.
    pub(super) async fn connect(socket: &Path, limit: Duration) -> Result<Self, Error> {
        let stream =
            UnixStream::connect(socket).await.map_err(Error::file("connect to", socket))?;
        let io = TokioIo::new(stream);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(|e| Error::file("speak HTTP/2 at", socket)(io::Error::other(e)))?;
        tokio::spawn(connection);
        Ok(Self { sender, limit })
    }

    /// Calls `method` of the CRI's `RuntimeService`.
    pub(super) async fn runtime<T: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<T, Error> {
        self.call("RuntimeService", method, request).await
    }

    /// Calls `method` of the CRI's `ImageService`.
    pub(super) async fn image<T: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<T, Error> {
        self.call("ImageService", method, request).await
    }

    async fn call<T: Message>(
        &self,
        service: &'static str,
        method: &'static str,
        request: &impl Message,
    ) -> Result<T, Error> {
        let failed = |message: String| Error::Cri { call: method, message };
        let exchange = async {
            let message = request.write_to_bytes().map_err(|e| e.to_string())?;
            let request = Request::post(format!("http://localhost/runtime.v1.{service}/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(Bytes::from(frame(&message))))
                .map_err(|e| e.to_string())?;
            let response = self.sender.clone().send_request(request).await;
            let (head, body) = response.map_err(|e| e.to_string())?.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?;
            // A reply without a body has its status in the header.
            check(body.trailers().unwrap_or(&head.headers))?;
            let body = body.to_bytes();
            let message = body.get(5..).ok_or("its reply is no message")?;
            T::parse_from_bytes(message).map_err(|e| e.to_string())
        };
        match tokio::time::timeout(self.limit, exchange).await {
            Ok(replied) => replied.map_err(failed),
            Err(_) => Err(Error::TimedOut {
                awaited: format!("the container engine's reply to {method}"),
                limit: self.limit,
                report: String::new(),
            }),
        }
    }
}

/// A message as a body: not compressed, and its length.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message is short");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

fn check(fields: &HeaderMap) -> Result<(), String> {
    let field = |name| fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match field("grpc-status").as_deref() {
        Some("0") => Ok(()),
        Some(code) => {
            let message = field("grpc-message").unwrap_or_default();
            Err(format!("gRPC status {code}: {message}"))
        }
        None => Err("it has no gRPC status".to_owned()),
    }
}
