//! A container engine that only answers what `--pod` asks. A test sets the pods, the containers and
//! how it misbehaves.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, stream};
use host_trigger::cri::proto::cri::{
    Container, ContainerMetadata, ContainerState, ListContainersRequest, ListContainersResponse,
    ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, PodSandboxState,
};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protobuf::Message;
use tokio::net::{UnixListener, UnixStream};

/// How the engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCall {
    Replies,
    /// With this status of gRPC.
    Refuses(u32),
    /// With this status of HTTP.
    Http(u16),
    /// With a page for people.
    Page,
    /// With bytes that are no message.
    Garbage,
    /// With a length that is not the message's.
    Short,
    /// With a message that never ends.
    Endless,
    /// Without a status.
    Unfinished,
    Hangs,
    /// By closing the connection.
    Closes,
    /// In another protocol.
    SpeaksHttp1,
}

type Body = BoxBody<Bytes, Infallible>;

/// The engine, and what a test sets.
pub struct FakeCri {
    pub socket: PathBuf,
    pub on_call: Mutex<OnCall>,
    pub sandboxes: Mutex<Vec<PodSandbox>>,
    /// One answer after the other; the last one stays.
    pub containers: Mutex<VecDeque<Vec<Container>>>,
    /// The methods that were called.
    pub calls: Mutex<Vec<String>>,
}

impl FakeCri {
    /// Serves on `socket`: the sandbox `s1` of the pod `shop/db-0`, whose container `app` is `c1`.
    pub fn serve(socket: &Path) -> Arc<Self> {
        let listener = UnixListener::bind(socket).unwrap();
        let engine = Arc::new(Self {
            socket: socket.to_owned(),
            on_call: Mutex::new(OnCall::Replies),
            sandboxes: Mutex::new(vec![sandbox("s1", "shop", "db-0", true)]),
            containers: Mutex::new([vec![running("c1", "app", 0)]].into()),
            calls: Mutex::default(),
        });
        let served = engine.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(served.clone().serve_connection(stream));
            }
        });
        engine
    }

    async fn serve_connection(self: Arc<Self>, mut stream: UnixStream) {
        let on_call = *self.on_call.lock().unwrap();
        match on_call {
            OnCall::Closes => return,
            OnCall::SpeaksHttp1 => {
                let reply = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
                tokio::io::AsyncWriteExt::write_all(&mut stream, reply).await.unwrap();
            }
            _ => {}
        }
        let service = service_fn(|request| self.clone().answer(request));
        let connection = http2::Builder::new(TokioExecutor::new());
        // The client ends the connection when it has what it wants.
        let _ = connection.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        self.calls.lock().unwrap().push(method.clone());
        let request = request.into_body().collect().await.unwrap().to_bytes();
        let on_call = *self.on_call.lock().unwrap();
        let reply = match method.as_str() {
            "ListPodSandbox" => {
                let items = self.sandboxes.lock().unwrap().clone();
                ListPodSandboxResponse { items, ..Default::default() }.write_to_bytes()
            }
            _ => {
                let asked = ListContainersRequest::parse_from_bytes(&request[5..]).unwrap();
                assert!(["", "s1"].contains(&asked.filter.pod_sandbox_id.as_str()));
                let mut answers = self.containers.lock().unwrap();
                let last = answers.len() == 1;
                let containers =
                    if last { answers[0].clone() } else { answers.pop_front().unwrap() };
                ListContainersResponse { containers, ..Default::default() }.write_to_bytes()
            }
        };
        let mut body = vec![0];
        let reply = reply.unwrap();
        body.extend(u32::try_from(reply.len()).unwrap().to_be_bytes());
        body.extend(&reply);
        let response = Response::builder().header("content-type", "application/grpc");
        Ok(match on_call {
            OnCall::Hangs => std::future::pending().await,
            OnCall::Refuses(code) => response
                .header("grpc-status", code)
                .header("grpc-message", "not%20here")
                .body(whole(Vec::new(), None)),
            OnCall::Http(status) => response.status(status).body(whole(body, Some(0))),
            OnCall::Page => {
                Response::builder().header("content-type", "text/html").body(whole(body, Some(0)))
            }
            OnCall::Garbage => response.body(whole(b"\0\0\0\0\x03\xff\xff\xff".to_vec(), Some(0))),
            OnCall::Short => response.body(whole(body[..body.len() - 1].to_vec(), Some(0))),
            OnCall::Endless => {
                let block = || Ok(Frame::data(Bytes::from_static(&[0; 1 << 14])));
                let blocks = stream::repeat_with(block);
                response.body(BodyExt::boxed(StreamBody::new(blocks)))
            }
            OnCall::Unfinished => response.body(whole(body, None)),
            OnCall::Replies | OnCall::Closes | OnCall::SpeaksHttp1 => {
                response.body(whole(body, Some(0)))
            }
        }
        .unwrap())
    }
}

/// A body with `bytes`, and the status in its trailers.
fn whole(bytes: Vec<u8>, status: Option<u32>) -> Body {
    let data = stream::iter([Ok(Frame::data(Bytes::from(bytes)))]);
    let trailers = status.map(|status| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.into());
        Ok(Frame::trailers(trailers))
    });
    BodyExt::boxed(StreamBody::new(data.chain(stream::iter(trailers))))
}

/// A sandbox of a pod.
pub fn sandbox(id: &str, namespace: &str, name: &str, is_ready: bool) -> PodSandbox {
    let metadata = PodSandboxMetadata {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        ..Default::default()
    };
    let state = match is_ready {
        true => PodSandboxState::SANDBOX_READY,
        false => PodSandboxState::SANDBOX_NOTREADY,
    };
    PodSandbox {
        id: id.to_owned(),
        metadata: Some(metadata).into(),
        state: state.into(),
        runtime_handler: "runc".to_owned(),
        ..Default::default()
    }
}

/// A container of the sandbox `s1` that runs.
pub fn running(id: &str, name: &str, attempt: u32) -> Container {
    let metadata = ContainerMetadata { name: name.to_owned(), attempt, ..Default::default() };
    Container {
        id: id.to_owned(),
        pod_sandbox_id: "s1".to_owned(),
        metadata: Some(metadata).into(),
        state: ContainerState::CONTAINER_RUNNING.into(),
        ..Default::default()
    }
}

/// A container of the sandbox `s1` that ended.
pub fn exited(id: &str, name: &str, attempt: u32) -> Container {
    let state = ContainerState::CONTAINER_EXITED.into();
    Container { state, ..running(id, name, attempt) }
}
