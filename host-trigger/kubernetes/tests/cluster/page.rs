//! What a run printed, as `docs/kubernetes.md` has it. `ECR_RUNTIME_WRITE_DOCS=1` writes it there.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubernetes.md")
}

/// The page.
pub(crate) fn text() -> String {
    fs::read_to_string(path()).unwrap()
}

/// Compares what is between the markers of this title with `expected`, or writes it.
pub(crate) fn compare_or_write(title: &str, expected: &str) {
    let page = text();
    let (begin, end) = (format!("<!-- begin {title} -->\n"), format!("<!-- end {title} -->\n"));
    let (head, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (found, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    let expected = format!("\n{expected}\n");
    if std::env::var_os("ECR_RUNTIME_WRITE_DOCS").is_some() {
        fs::write(path(), [head, &begin, &expected, &end, tail].concat()).unwrap();
    } else {
        assert_eq!(found, expected, "docs/kubernetes.md is out of date: {title}");
    }
}
