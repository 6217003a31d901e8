//! A container engine that replies with what was recorded of a real one: for engines that no Debian
//! suite has.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protobuf::{Message, text_format};
use tokio::{net::UnixListener, task::JoinHandle};

use super::{
    client::frame,
    proto::{
        cri::{ListContainersRequest, ListContainersResponse, ListPodSandboxResponse},
        pods::Transcript,
    },
};
use crate::{Error, vm::run_dir::short_directory};

const UNIMPLEMENTED: &str = "12";

/// An engine that replies from a transcript, for as long as this value lives.
#[derive(Debug)]
pub struct EngineTranscript {
    directory: tempfile::TempDir,
    server: JoinHandle<()>,
}

impl EngineTranscript {
    /// Serves `transcript`: a message `Transcript` of `vm-harness/proto/pods.proto` in
    /// [protobuf's text format](https://protobuf.dev/reference/protobuf/textformat-spec/).
    ///
    /// # Errors
    /// It is not one, or the socket cannot be made.
    pub fn serve(transcript: &str) -> Result<Self, Error> {
        let transcript = text_format::parse_from_str::<Transcript>(transcript)
            .map_err(|e| Error::Cri { call: "the transcript", message: e.to_string() })?;
        let transcript = Arc::new(transcript);
        let directory = short_directory()?;
        let socket = directory.path().join("cri.sock");
        let listener = UnixListener::bind(&socket).map_err(Error::file("listen on", socket))?;
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let transcript = Arc::clone(&transcript);
                let answer = service_fn(move |request| answer(Arc::clone(&transcript), request));
                let connection = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer);
                // A client may close its connection at any time.
                tokio::spawn(connection);
            }
        });
        Ok(Self { directory, server })
    }

    /// Returns its socket, the value for `--cri`.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }
}

impl Drop for EngineTranscript {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    transcript: Arc<Transcript>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let method = path.strip_prefix("/runtime.v1.RuntimeService/").unwrap_or_default();
    let reply = reply(&transcript, method, body.get(5..).unwrap_or_default());
    let (status, body) = match reply {
        Some(message) => ("0", frame(&message)),
        None => (UNIMPLEMENTED, Vec::new()),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().expect("a number is a field's value"));
    let body = Full::new(Bytes::from(body)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let kind = "application/grpc".parse().expect("a field's value");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

fn reply(transcript: &Transcript, method: &str, request: &[u8]) -> Option<Vec<u8>> {
    let reply: Box<dyn protobuf::MessageDyn> = match method {
        "Version" => Box::new(transcript.version.clone().unwrap_or_default()),
        "ListPodSandbox" => Box::new(ListPodSandboxResponse {
            items: transcript.pods.clone(),
            ..Default::default()
        }),
        "ListContainers" => {
            let request = ListContainersRequest::parse_from_bytes(request).ok()?;
            let pod = &request.filter.pod_sandbox_id;
            let all = transcript.containers.iter();
            let its = all.filter(|one| pod.is_empty() || one.pod_sandbox_id == *pod);
            Box::new(ListContainersResponse {
                containers: its.cloned().collect(),
                ..Default::default()
            })
        }
        _ => return None,
    };
    reply.write_to_bytes_dyn().ok()
}
