//! A small agent for the project's own guest image. It hosts agent-plugin as kata-agent does.
//!
//! `main` reads the kernel command line, prepares PID 1's duties, and serves until the sandbox is destroyed.

mod health;

use std::sync::Arc;

use agent_api::agent_ttrpc::create_health;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut server = ttrpc::r#async::Server::new()
        .bind("vsock://-1:1024")
        .expect("listening on vsock port 1024")
        .register_service(create_health(Arc::new(health::Health)));
    server.start().await.expect("serving on vsock port 1024");
    println!("reference-agent: ready");
    std::future::pending::<()>().await;
}
