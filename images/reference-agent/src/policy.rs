//! The agent's policy: the requests that it denies. It replaces kata-agent's policy and has the
//! same two inputs: the request's message name and the request as JSON.
//!
//! The file is `/etc/agent-policy.json`, if the image has it:
//! `{"deny": [{"method": "AttachBlockVolumeRequest", "where": {"/attachments/0/path":
//! "/dev/xvdb"}}]}`. An entry denies its method if each [JSON
//! pointer](https://www.rfc-editor.org/rfc/rfc6901) has the given value; without `where` it always
//! does.

use std::{collections::BTreeMap, fs, io};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    config::Config,
    error::{Error, at},
};

const FILE: &str = "/etc/agent-policy.json";

/// The denied requests.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    deny: Vec<Entry>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    method: String,
    #[serde(default, rename = "where")]
    conditions: BTreeMap<String, Value>,
}

impl Policy {
    /// Reads the policy of the image, if there is one, and of the command line.
    pub(crate) fn read(config: &Config) -> Result<Self, Error> {
        let mut policy: Self = match fs::read_to_string(FILE) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| at(FILE)(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(at(FILE)(error)),
        };
        let denied =
            |method: &String| Entry { method: method.clone(), conditions: BTreeMap::new() };
        policy.deny.extend(config.denied.iter().map(denied));
        Ok(policy)
    }

    /// Returns `Ok` if the request is allowed.
    pub(crate) fn check(&self, method: &str, request: &Value) -> Result<(), Error> {
        let denies = |entry: &Entry| {
            entry.method == method
                && entry
                    .conditions
                    .iter()
                    .all(|(pointer, value)| request.pointer(pointer) == Some(value))
        };
        match self.deny.iter().any(denies) {
            true => Err(Error::Denied(format!("{method} is denied"))),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(value: Value) -> Policy {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_entry_without_conditions_always_denies_its_method_and_no_other() {
        let policy = policy(json!({ "deny": [{ "method": "Attach" }] }));
        assert_eq!(
            policy.check("Attach", &json!({})).unwrap_err().to_string(),
            "policy: Attach is denied"
        );
        policy.check("Detach", &json!({})).unwrap();
    }

    #[test]
    fn an_entry_denies_only_if_all_conditions_hold() {
        let policy = policy(
            json!({ "deny": [{ "method": "Attach", "where": { "/a/0/path": "/dev/x", "/b": 1 } }] }),
        );
        policy.check("Attach", &json!({ "a": [{ "path": "/dev/x" }], "b": 1 })).unwrap_err();
        policy.check("Attach", &json!({ "a": [{ "path": "/dev/x" }], "b": 2 })).unwrap();
        policy.check("Attach", &json!({ "a": [{ "path": "/dev/x" }] })).unwrap();
    }

    #[test]
    fn a_policy_with_unknown_keys_is_refused() {
        for wrong in [json!({ "allow": [] }), json!({ "deny": [{ "method": "A", "when": {} }] })] {
            assert!(serde_json::from_value::<Policy>(wrong).is_err());
        }
    }
}
