//! A host whose volumes are entries of a table.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use block_volume_kubernetes::node::{AttachedVolume, CountedVolume, Failure, Host, Request};
use host_trigger::output::stats_report::VolumeStats;

/// What is attached: a request by its pod's UID and device path.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeHost {
    state: Arc<Mutex<State>>,
    delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    attached: BTreeMap<(String, String), Request>,
    /// Why nothing can be attached or detached.
    failure: Option<Failure>,
    /// The namespace whose guests do not reply.
    hanging: Option<String>,
    calls: usize,
    detaches: usize,
}

impl FakeHost {
    /// One that takes its time.
    pub(crate) fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    pub(crate) fn attached(&self) -> Vec<Request> {
        self.state.lock().unwrap().attached.values().cloned().collect()
    }

    pub(crate) fn fails(&self, failure: Option<Failure>) {
        self.state.lock().unwrap().failure = failure;
    }

    /// Nothing that is asked of a guest of this namespace ever ends.
    pub(crate) fn hangs(&self, namespace: &str) {
        self.state.lock().unwrap().hanging = Some(namespace.to_owned());
    }

    /// How often it was asked to detach something.
    pub(crate) fn detaches(&self) -> usize {
        self.state.lock().unwrap().detaches
    }

    /// How often something was asked of it.
    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }
}

impl Host for FakeHost {
    async fn attach(&self, request: Request) -> Result<AttachedVolume, Failure> {
        let hangs = {
            let mut state = self.state.lock().unwrap();
            state.calls += 1;
            state.hanging.as_ref() == Some(&request.pod.namespace)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(self.delay).await;
        let mut state = self.state.lock().unwrap();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let id = format!("{:016x}", request.path.len());
        state.attached.insert((request.pod_uid.clone(), request.path.clone()), request);
        let guest_device = "sda".to_owned();
        Ok(AttachedVolume { id, guest_device, size: 1 << 30, ..AttachedVolume::default() })
    }

    async fn detach(&self, request: Request) -> Result<String, Failure> {
        tokio::time::sleep(self.delay).await;
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        state.detaches += 1;
        match &state.failure {
            Some(failure) if request.force.is_none() => return Err(failure.clone()),
            _ => {}
        }
        state.attached.remove(&(request.pod_uid, request.path));
        Ok("detached".to_owned())
    }

    async fn statistics(
        &self,
        _wanted: Vec<CountedVolume>,
    ) -> Vec<Result<Vec<VolumeStats>, Failure>> {
        Vec::new()
    }
}
