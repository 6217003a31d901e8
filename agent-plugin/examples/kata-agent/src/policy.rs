//! The stub's `policy.rs`: evaluates `data.agent_policy.<entry point>` with kata-agent's Rego
//! engine.

use std::sync::LazyLock;

use regorus::{Engine, Value};
use tokio::sync::Mutex;

/// The agent's policy; here the example of the guide.
pub(crate) static AGENT_POLICY: LazyLock<Mutex<Engine>> = LazyLock::new(|| {
    let mut engine = Engine::new();
    let parsed =
        engine.add_policy("policy.rego".to_owned(), include_str!("../policy.rego").to_owned());
    if let Err(error) = parsed {
        // kata-agent does not start with a policy that it cannot parse.
        panic!("policy.rego: {}", error);
    }
    Mutex::new(engine)
});

/// Returns `Ok` if the policy allows `req` at the entry point `ep`.
///
/// # Errors
/// The policy denies it, or has no rule of that name.
pub(crate) async fn is_allowed_with_entrypoint(
    ep: &str,
    req: &impl serde::Serialize,
) -> ttrpc::Result<()> {
    let status = |code, message| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)));
    let input = match serde_json::to_string(req) {
        Ok(input) => input,
        Err(error) => return status(ttrpc::Code::INTERNAL, error.to_string()),
    };
    let mut engine = AGENT_POLICY.lock().await;
    let decided = engine
        .set_input_json(&input)
        .and_then(|()| engine.eval_rule(format!("data.agent_policy.{}", ep)));
    match decided {
        Ok(Value::Bool(true)) => Ok(()),
        Ok(_) => status(ttrpc::Code::PERMISSION_DENIED, format!("{} is blocked by policy", ep)),
        Err(error) => status(ttrpc::Code::INTERNAL, format!("{}: {}", ep, error)),
    }
}
