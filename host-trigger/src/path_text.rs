//! Paths as text that can be turned back: a path on Linux is bytes, and a record and JSON are text.
//!
//! A path that is UTF-8 is its own text. Any other one becomes `bytes:` and the path, in which
//! `\xff` stands for a byte that is not UTF-8 and `\\` for a backslash: `bytes:/srv/a\xff.img`. So
//! that this is unambiguous, a (relative) path that begins with `bytes:` gets the same form.

use std::{
    ffi::OsString,
    fmt::Write as _,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serializer};

const PREFIX: &str = "bytes:";

/// Returns the text of `path`.
pub(crate) fn encode(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    if let Some(text) = path.to_str().filter(|text| !text.starts_with(PREFIX)) {
        return text.to_owned();
    }
    let mut encoded = PREFIX.to_owned();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        encoded.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "\\x{byte:02x}");
        }
    }
    encoded
}

/// Returns the path whose text is `text`. A text that [`encode`] never returns is a path as it is.
pub(crate) fn decode(text: &str) -> PathBuf {
    text.strip_prefix(PREFIX).and_then(unescape).map_or_else(|| text.into(), PathBuf::from)
}

fn unescape(text: &str) -> Option<OsString> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((plain, escaped)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        rest = match escaped.strip_prefix('\\') {
            Some(rest) => {
                bytes.push(b'\\');
                rest
            }
            None => {
                let digits = escaped.strip_prefix('x')?;
                bytes.push(u8::from_str_radix(digits.get(..2)?, 16).ok()?);
                digits.get(2..)?
            }
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(OsString::from_vec(bytes))
}

/// For `#[serde(serialize_with)]`.
pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(path))
}

/// For `#[serde(deserialize_with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    String::deserialize(deserializer).map(|text| decode(&text))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"/srv/a.img", "/srv/a.img")]
    #[case(b"/srv/\\xff", "/srv/\\xff")]
    #[case(b"/srv/a\xff.img", "bytes:/srv/a\\xff.img")]
    #[case(b"/srv/\\\xfe\xc3\xa4", "bytes:/srv/\\\\\\xfe\u{e4}")]
    #[case(b"bytes:\\xff", "bytes:bytes:\\\\xff")]
    #[case(b"", "")]
    fn every_path_is_turned_back(#[case] path: &[u8], #[case] text: &str) {
        let path = Path::new(OsStr::from_bytes(path));
        assert_eq!(encode(path), text);
        assert_eq!(decode(text), path);
    }

    #[rstest]
    fn any_other_text_is_a_path_as_it_is(
        #[values("bytes:/a\\", "bytes:/a\\x", "bytes:/a\\xf", "bytes:/a\\xg0", "bytes:/\\x\u{e4}")]
        text: &str,
    ) {
        assert_eq!(decode(text), Path::new(text));
    }
}
