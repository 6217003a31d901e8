//! Calls to a container engine: gRPC over HTTP/2 on its socket, which only root may have made. A
//! reply has a maximum length and a time limit.

use std::{io, path::Path, path::PathBuf, time::Duration};

use block_volume_qmp::{PathError, Trust};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http2::{self, SendRequest},
    header::{CONTENT_TYPE, TE},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protobuf::Message;
use tokio::task::JoinHandle;

use super::{endpoint::Endpoint, grpc};
use crate::{Deadline, Error, kata::agent_address::connect_trusted};

/// The maximum time for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of a reply, as for kubelet.
const MAX_REPLY: usize = 16 << 20;
const SERVICE: &str = "runtime.v1.RuntimeService";

/// A connection to a container engine. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    sender: SendRequest<Full<Bytes>>,
    /// Drives the connection; none once its error was reported.
    connection: Option<JoinHandle<hyper::Result<()>>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.abort();
        }
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nothing listens, or another user than root could have made the socket.
    pub(super) async fn connect(endpoint: &Endpoint, deadline: Deadline) -> Result<Self, Error> {
        let socket = endpoint.socket.clone();
        let connect = async {
            let stream = connect_trusted(&socket, &Trust::root()).await?;
            let io = TokioIo::new(stream);
            let made = http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), io).await;
            made.map_err(|e| PathError::Io(io::Error::other(e)))
        };
        let (sender, connection) = match deadline.capped(CALL_TIMEOUT).wait(connect).await {
            Ok(made) => made.map_err(|e| unreachable(&socket, e))?,
            Err(_) => return Err(Error::CriTimedOut { socket, method: "connect" }),
        };
        Ok(Self { socket, sender, connection: Some(tokio::spawn(connection)) })
    }

    /// Calls `method` with `request`.
    ///
    /// # Errors
    /// The engine does not reply in time, refuses, or does not speak the CRI.
    pub(super) async fn call<T: Message>(
        &mut self,
        method: &'static str,
        request: &impl Message,
        deadline: Deadline,
    ) -> Result<T, Error> {
        let deadline = deadline.capped(CALL_TIMEOUT);
        let socket = self.socket.clone();
        match deadline.wait(self.exchange(method, request, deadline)).await {
            Ok(replied) => replied,
            Err(_) => Err(Error::CriTimedOut { socket, method }),
        }
    }

    async fn exchange<T: Message>(
        &mut self,
        method: &'static str,
        message: &impl Message,
        deadline: Deadline,
    ) -> Result<T, Error> {
        let socket = self.socket.clone();
        let invalid =
            |what: &str| Error::CriReply { socket: socket.clone(), method, what: what.to_owned() };
        let message = message.write_to_bytes().map_err(|e| invalid(&e.to_string()))?;
        let request = Request::post(format!("http://localhost/{SERVICE}/{method}"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header("grpc-timeout", format!("{}m", deadline.remaining().as_millis()))
            .body(Full::new(Bytes::from(grpc::frame(&message))))
            .map_err(|e| invalid(&e.to_string()))?;
        let response = match self.sender.send_request(request).await {
            Ok(response) => response,
            Err(e) => return Err(self.lost(e).await),
        };
        self.check(&response)?;
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, MAX_REPLY).collect().await {
            Ok(body) => body,
            Err(e) if e.is::<LengthLimitError>() => {
                return Err(invalid("it is longer than 16 MiB"));
            }
            Err(e) => {
                return Err(match e.downcast::<hyper::Error>() {
                    Ok(e) => self.lost(*e).await,
                    Err(e) => invalid(&e.to_string()),
                });
            }
        };
        match grpc::status(&head.headers, body.trailers()) {
            Some((0, _)) => {}
            Some((grpc::UNIMPLEMENTED, message)) => {
                return Err(Error::CriUnimplemented { socket, message });
            }
            Some((code, message)) => {
                return Err(Error::CriRefused { socket, method, code, message });
            }
            None => return Err(invalid("it has no status")),
        }
        let body = body.to_bytes();
        let reply = grpc::message(&body).map_err(invalid)?;
        T::parse_from_bytes(reply).map_err(|e| invalid(&e.to_string()))
    }

    fn check(&self, response: &Response<Incoming>) -> Result<(), Error> {
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes());
        let why = match response.status() {
            StatusCode::OK if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) => {
                return Ok(());
            }
            StatusCode::OK => "its reply is not gRPC".to_owned(),
            status => format!("it replied with HTTP status {status}"),
        };
        Err(Error::NotCri { socket: self.socket.clone(), why })
    }

    /// The error of a call that failed with `error`, because its connection did or by itself.
    async fn lost(&mut self, error: hyper::Error) -> Error {
        let socket = self.socket.clone();
        let unreachable = |kind: io::ErrorKind| Error::CriUnreachable {
            socket: socket.clone(),
            source: kind.into(),
        };
        let has_ended = error.is_canceled() || error.is_closed() || error.is_incomplete_message();
        let error = match (has_ended, self.connection.take()) {
            (true, Some(connection)) => match connection.await {
                Ok(Err(e)) => e,
                _ => return unreachable(io::ErrorKind::ConnectionReset),
            },
            (true, None) => return unreachable(io::ErrorKind::ConnectionReset),
            (false, _) => error,
        };
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            if let Some(e) = error.downcast_ref::<io::Error>() {
                return unreachable(e.kind());
            }
            cause = error.source();
        }
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let why = cause.unwrap_or_else(|| error.to_string());
        Error::NotCri { socket, why }
    }
}

fn unreachable(socket: &Path, error: PathError) -> Error {
    match error {
        PathError::Untrusted(why) => why.into(),
        PathError::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Error::Denied { call: "connect", path: socket.to_owned(), source }
        }
        PathError::Io(source) => Error::CriUnreachable { socket: socket.to_owned(), source },
    }
}
