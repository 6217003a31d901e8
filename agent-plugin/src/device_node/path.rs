//! The path of a node in a container, checked as text: no system call is made here.

/// Prefix of the name that a node has before it is published. No request may use such a name.
pub const TEMPORARY: &str = ".ecrblk-";

/// Absolute path of a node in a container: without `.`, `..` and empty components, and not one of
/// our temporary names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodePath(String);

impl NodePath {
    /// # Errors
    /// The rule that the path breaks.
    pub fn new(path: &str) -> Result<NodePath, &'static str> {
        let Some(relative) = path.strip_prefix('/') else { return Err("must be absolute") };
        if path.len() > 4096 || relative.split('/').any(|part| part.len() > 255) {
            return Err("must have at most 4096 bytes, and 255 between two slashes");
        }
        if path.contains('\0') {
            return Err("must not have a NUL byte");
        }
        if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("must not have an empty component, `.` or `..`");
        }
        let path = NodePath(path.to_owned());
        if path.name().starts_with(TEMPORARY) {
            return Err("must not be a name that this plugin uses itself");
        }
        Ok(path)
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `other` is a parent of it.
    pub fn is_below(&self, other: &NodePath) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.starts_with('/'))
    }

    fn split(&self) -> (&str, &str) {
        // The constructor checked the leading slash.
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }

    /// Without the last component: "/dev".
    pub fn parent(&self) -> &str {
        match self.split().0 {
            "" => "/",
            parent => parent,
        }
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.split().1
    }
}
