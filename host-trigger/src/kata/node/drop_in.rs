//! The drop-in that names the wrapper, `config.d/zz-ecr-runtime.toml` beside Kata's configurations.
//! Its comments say what else was made with it, so that whoever removes it removes that, too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Its name: the last one, as the last drop-in wins.
pub(crate) const NAME: &str = "zz-ecr-runtime.toml";
const TEMPLATE: &str = include_str!("../../../share/zz-ecr-runtime.toml");
/// The wrapper in the template.
const WRAPPER: &str = "/usr/bin/ecr-qemu";
/// Before this line stands what else was made.
const TABLE: &str = "[hypervisor.qemu]\n";
const CONFIG_D: &str = "# Made with it: the directory config.d\n";
const RECORD: &str = "# Made with it: the record of the wrapper\n";
const RECORDS: &str = "# Made with it: the directory of records\n";

/// A drop-in as `node enable` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DropIn {
    /// The wrapper that Kata is to start.
    pub(crate) wrapper: PathBuf,
    /// What was made together with it.
    pub(crate) made: Made,
}

/// What was made together with a drop-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Made {
    /// The directory of drop-ins.
    pub(crate) config_d: bool,
    /// The record of the wrapper.
    pub(crate) record: bool,
    /// The directory of records.
    pub(crate) records: bool,
}

/// What is at the drop-in's place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// What `node enable` wrote.
    Ours(DropIn),
    /// Something else, and what it is.
    Foreign(String),
}

/// Whether a path to `wrapper` can stand in a drop-in without escapes.
pub(crate) fn is_plain(wrapper: &Path) -> bool {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '"' | '\\');
    wrapper.to_str().is_some_and(|text| text.chars().all(is_plain))
}

impl DropIn {
    /// Its text.
    pub(crate) fn text(&self) -> String {
        let Made { config_d, record, records } = self.made;
        let made = [(config_d, CONFIG_D), (record, RECORD), (records, RECORDS)];
        let made: String =
            made.into_iter().filter_map(|(is_made, line)| is_made.then_some(line)).collect();
        let text = TEMPLATE.replace(TABLE, &format!("{made}{TABLE}"));
        text.replace(&format!("\"{WRAPPER}\""), &format!("\"{}\"", self.wrapper.display()))
    }

    /// Reads a text that [`Self::text`] returned.
    fn parse(text: &str) -> Option<Self> {
        let (_, path) = text.split_once("\npath = \"")?;
        let wrapper = path.split_once('"')?.0.into();
        let made = Made {
            config_d: text.contains(CONFIG_D),
            record: text.contains(RECORD),
            records: text.contains(RECORDS),
        };
        let parsed = Self { wrapper, made };
        (parsed.text() == text).then_some(parsed)
    }
}

/// Looks at the place of the drop-in.
pub(crate) fn find(file: &Path) -> Found {
    match fs::symlink_metadata(file) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Found::Nothing;
        }
        Err(e) => return Found::Foreign(format!("it cannot be read: {e}")),
        Ok(status) if !status.is_file() => {
            return Found::Foreign("it is not a regular file".to_owned());
        }
        Ok(_) => {}
    }
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(e) => return Found::Foreign(format!("it cannot be read: {e}")),
    };
    match str::from_utf8(&text).ok().and_then(DropIn::parse) {
        Some(ours) => Found::Ours(ours),
        None => Found::Foreign("it is not as `node enable` writes it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    fn a_drop_in_is_read_back(
        #[values("/usr/bin/ecr-qemu", "/opt/a b/ecr-qemu-snp")] wrapper: &str,
        #[values(false, true)] config_d: bool,
        #[values(false, true)] record: bool,
        #[values(false, true)] records: bool,
    ) {
        let made = Made { config_d, record, records };
        let drop_in = DropIn { wrapper: wrapper.into(), made };
        let text = drop_in.text();
        assert_eq!(DropIn::parse(&text), Some(drop_in), "{text}");
        let document: toml_edit::DocumentMut = text.parse().unwrap();
        assert_eq!(document["hypervisor"]["qemu"]["path"].as_str(), Some(wrapper));
    }

    #[test]
    fn a_drop_in_that_was_edited_is_foreign() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(NAME);
        assert_eq!(find(&file), Found::Nothing);
        fs::write(&file, TEMPLATE).unwrap();
        let (wrapper, made) = (WRAPPER.into(), Made::default());
        assert_eq!(find(&file), Found::Ours(DropIn { wrapper, made }));
        for text in
            [format!("{TEMPLATE}debug = true\n"), TEMPLATE.replace("path", "#path"), String::new()]
        {
            fs::write(&file, text).unwrap();
            assert!(matches!(find(&file), Found::Foreign(_)));
        }
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/null", &file).unwrap();
        assert!(matches!(find(&file), Found::Foreign(_)));
    }

    #[rstest]
    #[case("/usr/bin/ecr-qemu", true)]
    #[case("/a\"b", false)]
    #[case("/a\\b", false)]
    #[case("/a\nb", false)]
    fn a_wrapper_whose_path_needs_escapes_is_not_plain(#[case] path: &str, #[case] expected: bool) {
        assert_eq!(is_plain(Path::new(path)), expected);
    }
}
