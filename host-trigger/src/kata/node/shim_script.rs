//! A shim that is a script, as in [Kata's
//! documentation](https://github.com/kata-containers/kata-containers/blob/main/docs/how-to/containerd-kata.md):
//! it sets the variable with the configuration and executes the real shim.

use std::{fs, io::Read as _, path::Path};

/// The variable by which a shim finds a configuration that its runtime class does not name.
pub(super) const VARIABLE: &str = "KATA_CONF_FILE";
/// A longer file is no script that starts a shim.
const MAX_SCRIPT: u64 = 64 << 10;

/// Its text.
#[derive(Debug)]
pub(super) struct ShimScript(String);

impl ShimScript {
    /// Reads `program`, if it is a script.
    pub(super) fn read(program: &Path) -> Option<Self> {
        let mut text = Vec::new();
        fs::File::open(program).ok()?.take(MAX_SCRIPT).read_to_end(&mut text).ok()?;
        text.starts_with(b"#!").then(|| Self(String::from_utf8_lossy(&text).into_owned()))
    }

    /// The configuration that it names by a whole path.
    pub(super) fn configuration(&self) -> Option<&str> {
        let set = format!("{VARIABLE}=");
        let (_, value) = self.lines().filter_map(|line| line.split_once(&set)).last()?;
        let value = value.trim_start_matches(['"', '\'']);
        let end = value.find(|c: char| c.is_whitespace() || "\"'`;$&|".contains(c));
        let (path, rest) = value.split_at_checked(end.unwrap_or(value.len()))?;
        // What a shell would compute is not known.
        let is_whole = !rest.starts_with(['$', '`']);
        (is_whole && path.starts_with('/')).then_some(path)
    }

    /// Whether it mentions `text`, as in the path of the shim that it executes.
    pub(super) fn names(&self, text: &str) -> bool {
        self.lines().any(|line| line.contains(text))
    }

    /// The lines that are no comments.
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines().filter(|line| !line.trim_start().starts_with('#'))
    }
}
