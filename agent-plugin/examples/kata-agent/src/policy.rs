//! The stub's `policy.rs`: evaluates `data.agent_policy.<entry point>` with kata-agent's Rego
//! engine, and decides as kata-agent does.

use std::sync::LazyLock;

use kata_agent_policy::{Engine, Value};
use tokio::sync::Mutex;

/// The agent's policy; here the example of the guide.
pub(crate) static AGENT_POLICY: LazyLock<Mutex<AgentPolicy>> = LazyLock::new(|| {
    let mut policy = AgentPolicy::default();
    // kata-agent does not start with a policy that it cannot parse.
    policy
        .set_policy(include_str!("../policy.rego"))
        .unwrap_or_else(|error| panic!("{}", error));
    Mutex::new(policy)
});

/// `kata_agent_policy::policy::AgentPolicy`.
#[derive(Debug, Default)]
pub(crate) struct AgentPolicy {
    /// `AllowRequestsFailingPolicy`.
    allow_failures: bool,
    engine: Engine,
}

impl AgentPolicy {
    /// Returns whether the policy allows the request `input`, or why it cannot decide.
    pub(crate) fn allow_request(&mut self, ep: &str, input: &str) -> Result<bool, String> {
        let error = |error| format!("{}", error);
        self.engine.set_input_json(input).map_err(error)?;
        let results = self
            .engine
            .eval_query(format!("data.agent_policy.{}", ep), false);
        let value = match results.map_err(error)?.result.as_slice() {
            [result] => result.expressions[0].value.clone(),
            // There is no rule of that name.
            _ if self.allow_failures => return Ok(true),
            _ => return Err("policy check: no result".to_owned()),
        };
        match value {
            Value::Bool(allowed) => Ok(allowed || self.allow_failures),
            value => Err(format!("policy check: unexpected {}", value)),
        }
    }

    /// Replaces the policy.
    pub(crate) fn set_policy(&mut self, policy: &str) -> Result<(), String> {
        *self = Self::default();
        let parsed = self
            .engine
            .add_policy("agent_policy".to_owned(), policy.to_owned());
        parsed.map_err(|error| error.to_string())?;
        let allow = self.allow_request("AllowRequestsFailingPolicy", "{}");
        self.allow_failures = allow.unwrap_or(false);
        Ok(())
    }
}

async fn allow_request(policy: &mut AgentPolicy, ep: &str, request: &str) -> ttrpc::Result<()> {
    let status = |code, message| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)));
    match policy.allow_request(ep, request) {
        Ok(true) => Ok(()),
        Ok(false) => status(
            ttrpc::Code::PERMISSION_DENIED,
            format!("{} is blocked by policy", ep),
        ),
        Err(error) => status(
            ttrpc::Code::INTERNAL,
            format!("{}: internal error {}", ep, error),
        ),
    }
}

/// Returns `Ok` if the policy allows `req` at the entry point `ep`.
///
/// # Errors
/// The policy denies it, or has no rule of that name.
pub(crate) async fn is_allowed_with_entrypoint(
    ep: &str,
    req: &impl serde::Serialize,
) -> ttrpc::Result<()> {
    let request = serde_json::to_string(req).expect("a JSON value");
    let mut policy = AGENT_POLICY.lock().await;
    allow_request(&mut policy, ep, &request).await
}
