//! What to do where the agent's policy refuses the plugin's requests: the rules for its five
//! methods, and how a sandbox takes them.

use std::path::Path;

use block_volume_api::block_volume::Reason;

use crate::{
    Error,
    kata::{node::runtime_class::Runtime, sandbox::Sandbox},
    output::findings::Finding,
};

const RULES: &str = include_str!("../../../share/block-volumes.rego");

/// A finding about an error of the guest; with the way to another policy, if that is the reason.
pub(super) fn problem(name: &str, error: &Error, sandbox: &Sandbox) -> Finding {
    let finding = Finding::problem(name, error);
    if !matches!(error, Error::Guest { reason: Reason::REASON_DENIED, .. }) {
        return finding;
    }
    let lines = remedy(sandbox.runtime(), sandbox.shim_socket().as_deref());
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    Finding { remedy: None, ..finding }.with_remedy(&lines)
}

/// The lines for a sandbox of `runtime` whose shim listens on `socket`.
fn remedy(runtime: Option<Runtime>, socket: Option<&Path>) -> Vec<String> {
    let is_rule = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let mut lines =
        vec!["append these lines to the whole policy that the guest has now:".to_owned()];
    lines.extend(RULES.lines().filter(is_rule).map(str::to_owned));
    if let Some(socket) = socket {
        let what =
            "give it to this sandbox, until it ends, where its policy allows SetPolicyRequest";
        lines.push(match runtime {
            Some(Runtime::Rust) => format!("{what} (the Rust runtime 3.23 or newer):"),
            _ => format!("{what}:"),
        });
        lines.push(format!(
            "curl --fail-with-body --unix-socket {} -X PUT --data-binary @policy.rego \
             http://localhost/policy",
            socket.display()
        ));
    }
    let new = "new sandboxes have it from the guest's image (/etc/kata-opa/default-policy.rego)";
    lines.push(match runtime {
        Some(Runtime::Go) => format!(
            "{new}, or in base64 from the pod's annotation io.katacontainers.config.agent.policy"
        ),
        Some(Runtime::Rust) => {
            format!("{new}, or from `policy` in [agent.kata] of Kata's configuration")
        }
        None => new.to_owned(),
    });
    lines
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::go(Some(Runtime::Go), "/run/vc/sbs/s1/shim-monitor.sock")]
    #[case::rust(Some(Runtime::Rust), "/run/kata/s1/shim-monitor.sock")]
    fn the_lines_have_all_rules_and_the_sandboxs_own_socket(
        #[case] runtime: Option<Runtime>,
        #[case] socket: &str,
    ) {
        let lines = remedy(runtime, Some(Path::new(socket)));
        for method in ["Probe", "Inspect", "Detach", "Resize", "Attach"] {
            let rule = format!("default {method}BlockVolumeRequest := ");
            assert!(lines.iter().any(|line| line.starts_with(&rule)), "{lines:#?}");
        }
        let curl = format!("--unix-socket {socket} -X PUT --data-binary @policy.rego ");
        assert_eq!(lines.iter().filter(|line| line.contains(&curl)).count(), 1, "{lines:#?}");
        let is_old = lines.iter().any(|line| line.contains("3.23"));
        assert_eq!(is_old, runtime == Some(Runtime::Rust));
    }

    #[test]
    fn without_a_shim_only_new_sandboxes_take_a_policy() {
        let lines = remedy(None, None);
        assert!(!lines.iter().any(|line| line.contains("curl")), "{lines:#?}");
    }
}
