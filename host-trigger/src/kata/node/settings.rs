//! The settings of a configuration that decide whether QEMU has a monitor beside the shim's, and
//! the controller for volumes: those of the table `hypervisor.qemu`
//! ([configuration-qemu.toml](https://github.com/kata-containers/kata-containers/blob/main/src/runtime/config/configuration-qemu.toml.in)).

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::directory::QEMU;

/// A setting, and the file that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) value: String,
    pub(crate) file: PathBuf,
}

/// QEMU's settings in a configuration and drop-ins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// QEMU's path.
    pub(crate) path: Option<String>,
    /// `enable_debug`
    pub(crate) debug: bool,
    /// `extra_monitor_socket`, which is for debug mode.
    pub(crate) monitor: Option<Setting>,
    /// `block_device_driver`
    pub(crate) driver: Option<Setting>,
    /// `enable_annotations`: regular expressions for what a pod may set.
    annotations: Vec<String>,
    /// `valid_hypervisor_paths`: the patterns of the paths that a pod may choose from.
    pub(crate) allowed_paths: Vec<String>,
}

impl Settings {
    /// Takes over what a later file sets.
    pub(super) fn update(&mut self, document: &DocumentMut, file: &Path) {
        let Some(qemu) = document.get("hypervisor").and_then(|tables| tables.get(QEMU)) else {
            return;
        };
        let text = |key| qemu.get(key).and_then(Item::as_str);
        let setting = |key| {
            let value = text(key)?.to_owned();
            Some(Setting { value, file: file.to_owned() })
        };
        if let Some(path) = text("path") {
            self.path = Some(path.to_owned()).filter(|path| !path.is_empty());
        }
        if let Some(debug) = qemu.get("enable_debug").and_then(Item::as_bool) {
            self.debug = debug;
        }
        self.monitor = setting("extra_monitor_socket").or(self.monitor.take());
        self.driver = setting("block_device_driver").or(self.driver.take());
        if let Some(patterns) = texts(qemu.get("enable_annotations")) {
            self.annotations = patterns;
        }
        if let Some(patterns) = texts(qemu.get("valid_hypervisor_paths")) {
            self.allowed_paths = patterns;
        }
    }

    /// Whether a pod may set `key` by an annotation, as far as the patterns can be understood:
    /// both runtimes look for a match anywhere in the key.
    pub(crate) fn may_be_annotated(&self, key: &str) -> bool {
        self.annotations.iter().flat_map(|pattern| pattern.split('|')).any(|pattern| {
            let (is_start, pattern) = match pattern.strip_prefix('^') {
                Some(rest) => (true, rest),
                None => (false, pattern),
            };
            let is_literal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            let end = pattern.find(|c| !is_literal(c)).unwrap_or(pattern.len());
            // A repetition may be none.
            let is_repeated =
                pattern.get(end..).is_some_and(|rest| rest.starts_with(['*', '?', '{']));
            let literal = pattern.get(..end - usize::from(is_repeated && end > 0));
            let literal = literal.unwrap_or_default();
            if is_start { key.starts_with(literal) } else { key.contains(literal) }
        })
    }
}

/// The texts of an array.
fn texts(item: Option<&Item>) -> Option<Vec<String>> {
    let array = item?.as_array()?;
    Some(array.iter().filter_map(|value| value.as_str()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn settings(texts: &[&str]) -> Settings {
        let mut settings = Settings::default();
        for (index, text) in texts.iter().enumerate() {
            settings.update(&text.parse().unwrap(), Path::new(&index.to_string()));
        }
        settings
    }

    #[test]
    fn a_later_file_wins_and_is_named() {
        let found = settings(&[
            "[hypervisor.qemu]\npath = \"/q\"\nextra_monitor_socket = \"hmp\"\nenable_debug = true\n",
            "[agent.kata]\n",
            "[hypervisor.qemu]\nextra_monitor_socket = \"qmp\"\nenable_debug = false\n",
        ]);
        let monitor = Some(Setting { value: "qmp".into(), file: "2".into() });
        let expected =
            Settings { path: Some("/q".into()), monitor, debug: false, ..Settings::default() };
        assert_eq!(found, expected);
    }

    #[rstest]
    #[case(r#"["enable_iommu", "kernel_params", "default_vcpus"]"#, false)]
    #[case(r#"["path"]"#, true)]
    #[case(r#"["^path$"]"#, true)]
    #[case(r#"[".*"]"#, true)]
    #[case(r#"["pa?th"]"#, true)]
    #[case(r#"["enable_.*"]"#, false)]
    #[case(r#"["^enable|path"]"#, true)]
    #[case(r#"["(path)"]"#, true)]
    #[case(r#"["^ath"]"#, false)]
    #[case("[]", false)]
    fn what_a_pod_may_set_is_a_list_of_patterns(#[case] list: &str, #[case] expected: bool) {
        let found = settings(&[&format!("[hypervisor.qemu]\nenable_annotations = {list}\n")]);
        assert_eq!(found.may_be_annotated("path"), expected);
    }
}
