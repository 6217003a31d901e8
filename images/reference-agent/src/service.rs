//! `grpc.AgentService`: decodes requests, asks the policy, and calls the sandbox.

use std::{fs, sync::Arc, time::Duration};

use agent_api::{
    agent::{
        AgentDetails, CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest,
        DestroySandboxRequest, ExecProcessRequest, GuestDetailsRequest, GuestDetailsResponse, Nil,
        PauseContainerRequest, ReadStreamRequest, ReadStreamResponse, RemoveContainerRequest,
        ResumeContainerRequest, SignalProcessRequest, StartContainerRequest, TtyWinResizeRequest,
        UpdateContainerRequest, WaitProcessRequest, WaitProcessResponse, WriteStreamRequest,
        WriteStreamResponse,
    },
    agent_ttrpc,
};
use async_trait::async_trait;
use nix::unistd::sethostname;
use serde_json::{Value, json};
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use crate::{
    cgroups,
    error::{Error, at},
    policy::Policy,
    pool::Pool,
    sandbox::SharedSandbox,
    streams::Output,
};

const BLOCK_SIZE: &str = "/sys/devices/system/memory/block_size_bytes";
const MEMORY_PROBE: &str = "/sys/devices/system/memory/probe";

/// The service.
pub(crate) struct AgentService {
    pub(crate) sandbox: SharedSandbox,
    pub(crate) policy: Arc<Policy>,
    pub(crate) extra_features: Vec<String>,
    /// For tests: work beside each `ExecProcess`.
    pub(crate) pool: Option<Pool>,
    /// Notified when the sandbox has been destroyed.
    pub(crate) destroyed: Arc<Notify>,
}

impl AgentService {
    /// Asks the policy. Of these requests it gets only the fields that name the object.
    fn authorize(&self, method: &str, request: &Value) -> Result<(), Error> {
        tracing::debug!("{method} {request}");
        self.policy.check(method, request)
    }

    async fn read(
        &self,
        request: &ReadStreamRequest,
        output: Output,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "ReadStreamRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        let process = self.sandbox.lock().await.process(container, exec)?;
        let length = usize::try_from(request.len).unwrap_or(usize::MAX);
        let data = process.read(output, length).await?;
        Ok(ReadStreamResponse { data, ..Default::default() })
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for AgentService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<Nil> {
        self.authorize("CreateSandboxRequest", &json!({ "sandbox_id": request.sandbox_id }))?;
        if !request.dns.is_empty() {
            return Err(Error::Unsupported("dns servers").into());
        }
        if request.sandbox_pidns {
            return Err(Error::Unsupported("a pid namespace of the sandbox").into());
        }
        if !request.hostname.is_empty() {
            sethostname(&request.hostname)
                .map_err(|errno| at("setting the host name")(errno.into()))?;
        }
        tracing::info!("sandbox {} created", request.sandbox_id);
        Ok(Nil::new())
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        _: DestroySandboxRequest,
    ) -> ttrpc::Result<Nil> {
        self.authorize("DestroySandboxRequest", &json!({}))?;
        self.sandbox.lock().await.destroy().await?;
        self.destroyed.notify_one();
        Ok(Nil::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<Nil> {
        let id = &request.container_id;
        self.authorize("CreateContainerRequest", &json!({ "container_id": id }))?;
        if request.sandbox_pidns {
            return Err(Error::Unsupported("a pid namespace of the sandbox").into());
        }
        let spec = request.OCI.as_ref().ok_or(Error::Missing("OCI"))?;
        self.sandbox.lock().await.create(id, spec).await?;
        tracing::info!("container {id} created");
        Ok(Nil::new())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<Nil> {
        let id = &request.container_id;
        self.authorize("StartContainerRequest", &json!({ "container_id": id }))?;
        self.sandbox.lock().await.start(id).await?;
        tracing::info!("container {id} started");
        Ok(Nil::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<Nil> {
        let id = &request.container_id;
        self.authorize("RemoveContainerRequest", &json!({ "container_id": id }))?;
        // 0 means that the caller gives no limit.
        let limit = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.into()));
        self.sandbox.lock().await.remove(id, limit).await?;
        tracing::info!("container {id} removed");
        Ok(Nil::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<Nil> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "ExecProcessRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        let process = request.process.as_ref().ok_or(Error::Missing("process"))?;
        if let Some(pool) = &self.pool {
            pool.work().await;
        }
        self.sandbox.lock().await.exec(container, exec, process).await?;
        Ok(Nil::new())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Nil> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "SignalProcessRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        self.sandbox.lock().await.process(container, exec)?.signal(request.signal)?;
        Ok(Nil::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "WaitProcessRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        let process = self.sandbox.lock().await.process(container, exec)?;
        let status = process.wait().await;
        self.sandbox.lock().await.forget(container, &process);
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "WriteStreamRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        let process = self.sandbox.lock().await.process(container, exec)?;
        match request.data.as_slice() {
            [] => process.close_stdin(),
            data => process.write(data).await?,
        }
        // A message is smaller than 4 GiB.
        Ok(WriteStreamResponse { len: request.data.len() as u32, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        self.read(&request, Output::Stdout).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        self.read(&request, Output::Stderr).await
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> ttrpc::Result<Nil> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "CloseStdinRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        let process = self.sandbox.lock().await.process(container, exec)?;
        process.close_stdin();
        Ok(Nil::new())
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: TtyWinResizeRequest,
    ) -> ttrpc::Result<Nil> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.authorize(
            "TtyWinResizeRequest",
            &json!({ "container_id": container, "exec_id": exec }),
        )?;
        let process = self.sandbox.lock().await.process(container, exec)?;
        process.resize(request.row, request.column)?;
        Ok(Nil::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Nil> {
        let id = &request.container_id;
        self.authorize("UpdateContainerRequest", &json!({ "container_id": id }))?;
        let rules = cgroups::device_rules(&request.resources.get_or_default().Devices)?;
        self.sandbox.lock().await.update(id, rules).await?;
        Ok(Nil::new())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<Nil> {
        let id = &request.container_id;
        self.authorize("PauseContainerRequest", &json!({ "container_id": id }))?;
        self.sandbox.lock().await.set_paused(id, true).await?;
        Ok(Nil::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<Nil> {
        let id = &request.container_id;
        self.authorize("ResumeContainerRequest", &json!({ "container_id": id }))?;
        self.sandbox.lock().await.set_paused(id, false).await?;
        Ok(Nil::new())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        self.authorize("GuestDetailsRequest", &json!({}))?;
        let mut reply = GuestDetailsResponse::new();
        if request.mem_block_size {
            // A kernel without memory hot-plug does not have this file.
            reply.mem_block_size_bytes = fs::read_to_string(BLOCK_SIZE)
                .ok()
                .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
                .unwrap_or_default();
        }
        if request.mem_hotplug_probe {
            reply.support_mem_hotplug_probe = fs::exists(MEMORY_PROBE).unwrap_or_default();
        }
        let details = AgentDetails {
            version: env!("CARGO_PKG_VERSION").into(),
            init_daemon: std::process::id() == 1,
            extra_features: self.extra_features.clone(),
            ..AgentDetails::default()
        };
        reply.agent_details = Some(details).into();
        Ok(reply)
    }
}
