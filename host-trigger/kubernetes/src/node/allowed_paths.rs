//! Which paths of the node a namespace may use, as its administrator has said. Without any rule no
//! path is allowed. Only the path that is written counts: what it leads to on the node is the
//! administrator's, too.

use std::{
    path::{Component, Path, PathBuf},
    str::FromStr,
};

/// One rule: `NAMESPACE=PREFIX`, or `*=PREFIX` for every namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedPath {
    /// `None`: every namespace.
    namespace: Option<String>,
    prefix: PathBuf,
}

impl FromStr for AllowedPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected NAMESPACE=PREFIX or *=PREFIX, with an absolute prefix";
        let (namespace, prefix) = text.split_once('=').ok_or(EXPECTED)?;
        let prefix = PathBuf::from(prefix);
        if namespace.is_empty() || !is_plain(&prefix) {
            return Err(EXPECTED);
        }
        let namespace = (namespace != "*").then(|| namespace.to_owned());
        Ok(Self { namespace, prefix })
    }
}

impl AllowedPath {
    /// Whether it allows `path` to `namespace`. A prefix is whole components.
    pub fn allows(&self, namespace: &str, path: &Path) -> bool {
        let is_for = self.namespace.as_deref().is_none_or(|own| own == namespace);
        is_for && is_plain(path) && path.starts_with(&self.prefix) && path != self.prefix
    }
}

/// Whether a path is absolute, and has neither `..` nor anything else than names.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("db=/dev/vg", "db", "/dev/vg/scratch", true)]
    #[case("*=/dev/vg", "db", "/dev/vg/scratch", true)]
    #[case("db=/dev/vg/", "db", "/dev/vg/scratch", true)]
    #[case("db=/dev/vg", "shop", "/dev/vg/scratch", false)]
    #[case("db=/dev/vg", "db", "/dev/vg", false)]
    #[case("db=/dev/vg", "db", "/dev/vg2/scratch", false)]
    #[case("db=/dev/vg", "db", "/dev/vg/../sda", false)]
    #[case("db=/dev/vg", "db", "dev/vg/scratch", false)]
    fn a_path_is_below_the_prefix_of_its_namespace(
        #[case] rule: &str,
        #[case] namespace: &str,
        #[case] path: &str,
        #[case] allowed: bool,
    ) {
        let rule: AllowedPath = rule.parse().unwrap();
        assert_eq!(rule.allows(namespace, Path::new(path)), allowed);
    }

    #[rstest]
    fn what_is_no_rule_is_refused(
        #[values("", "/dev/vg", "=/dev/vg", "db=", "db=vg", "db=/dev/../etc")] text: &str,
    ) {
        assert!(text.parse::<AllowedPath>().is_err());
    }
}
