//! Tests against a real API server, which `ci/kubernetes` builds. The test plays scheduler and
//! kubelet. They are of the level full: `ci/kubernetes` runs them.

#[cfg(feature = "fault")]
mod agent_process;
mod api_load;
mod api_server;
mod cluster;
mod fake_host;
mod full;
mod kata_node;
mod page;
mod tenant;
mod wait;
