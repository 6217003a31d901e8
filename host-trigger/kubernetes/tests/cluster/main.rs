//! Tests against a real API server, which `ci/kubernetes` builds. The test plays scheduler and
//! kubelet. They are of the level full: `ci/kubernetes` runs them.

mod api_server;
mod cluster;
mod fake_host;
mod full;
mod wait;
