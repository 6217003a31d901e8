//! The stub's `policy.rs`, with the engine of Kata 3.20. It has no `is_allowed_with_entrypoint`
//! before 3.29: the guide adds it.

use std::sync::LazyLock;

use regorus::{Engine, Value};
use tokio::sync::Mutex;

/// The agent's policy; here the example of the guide.
pub(crate) static AGENT_POLICY: LazyLock<Mutex<AgentPolicy>> = LazyLock::new(|| {
    let policy = include_str!("../../../kata-agent/policy.rego");
    let mut engine = Engine::new();
    // kata-agent does not start with a policy that it cannot parse.
    engine
        .add_policy("agent_policy".to_owned(), policy.to_owned())
        .expect("a policy");
    Mutex::new(AgentPolicy { engine })
});

/// kata-agent's policy.
#[derive(Debug)]
pub(crate) struct AgentPolicy {
    engine: Engine,
}

async fn allow_request(policy: &mut AgentPolicy, ep: &str, request: &str) -> ttrpc::Result<()> {
    let status = |code, message| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)));
    let results = policy.engine.set_input_json(request).and_then(|()| {
        policy
            .engine
            .eval_query(format!("data.agent_policy.{}", ep), false)
    });
    let values = results.map(|results| {
        results
            .result
            .into_iter()
            .map(|result| result.expressions[0].value.clone())
            .next()
    });
    match values {
        Ok(Some(Value::Bool(true))) => Ok(()),
        Ok(Some(_)) => status(
            ttrpc::Code::PERMISSION_DENIED,
            format!("{} is blocked by policy", ep),
        ),
        Ok(None) => status(ttrpc::Code::INTERNAL, format!("{}: internal error", ep)),
        Err(error) => status(ttrpc::Code::INTERNAL, format!("{}: {}", ep, error)),
    }
}

/// Asks the policy about a request that is no message of the agent's own.
#[cfg(feature = "block-volume")]
pub(crate) async fn is_allowed_with_entrypoint(
    ep: &str,
    req: &impl serde::Serialize,
) -> ttrpc::Result<()> {
    let request = serde_json::to_string(req).unwrap_or_default();
    let mut policy = AGENT_POLICY.lock().await;
    allow_request(&mut policy, ep, &request).await
}
