//! How a pod and a container in it are called.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The namespace of a pod that is named without one, as `kubectl` has it.
const DEFAULT_NAMESPACE: &str = "default";
/// The longest name of an object of Kubernetes
/// ([DNS subdomain](https://kubernetes.io/docs/concepts/overview/working-with-objects/names/)).
const MAX_NAME: usize = 253;

/// A pod, by its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl FromStr for PodName {
    type Err = String;

    /// Parses `NAMESPACE/NAME`; `NAME` alone is in the namespace `default`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        match is_name(namespace) && is_name(name) {
            true => Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() }),
            false => Err("expected NAMESPACE/NAME, or NAME in the namespace \"default\"".into()),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether `name` can be a pod's or a container's. Kubernetes allows less; what other clients of a
/// container engine use is allowed as far as it is one printable word.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/')
}

/// The pod of a volume, and its container there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PodView {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The container's name in the pod; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl PodView {
    /// The container `container` of `pod`.
    pub(crate) fn new(pod: &PodName, container: Option<String>) -> Self {
        let PodName { namespace, name } = pod.clone();
        Self { namespace, name, container }
    }

    /// Whether it is `pod`, or a container of it.
    pub(crate) fn is_of(&self, pod: &PodName) -> bool {
        (&self.namespace, &self.name) == (&pod.namespace, &pod.name)
    }
}

impl fmt::Display for PodView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        self.container.as_ref().map_or(Ok(()), |container| write!(f, " {container}"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("db-0", Some("default/db-0"))]
    #[case("shop/db-0", Some("shop/db-0"))]
    #[case("shop/db:0", Some("shop/db:0"))]
    #[case("", None)]
    #[case("/", None)]
    #[case("/db-0", None)]
    #[case("shop/", None)]
    #[case("shop/db/0", None)]
    #[case("shop/db 0", None)]
    #[case("shop/db\n", None)]
    #[case("shop/d\u{e4}b", None)]
    fn a_pod_is_named_with_its_namespace(#[case] text: &str, #[case] pod: Option<&str>) {
        let parsed = text.parse::<PodName>().ok().map(|pod| pod.to_string());
        assert_eq!(parsed.as_deref(), pod);
    }

    #[test]
    fn a_name_has_a_bounded_length() {
        assert!(is_name(&"a".repeat(253)) && !is_name(&"a".repeat(254)));
    }
}
