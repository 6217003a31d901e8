//! Bytes per second as users of Kubernetes write them
//! ([quantities](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/)):
//! whole numbers, with a suffix or without.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The suffixes and their factors.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];
/// The largest rate that QEMU accepts.
const LARGEST: u64 = 1_000_000_000_000_000;

/// Bytes per second, such as `20Mi`. Always a text: the API server of Kubernetes 1.20 merges no
/// lists of a resource that has a field for a number or a text, such as conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct ByteRate(
    /// The text.
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub String,
);

/// It is no rate that QEMU accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bytesPerSecond is not a whole number from 1 to {LARGEST}, such as 20Mi")]
pub struct InvalidByteRate;

impl ByteRate {
    /// The number.
    ///
    /// # Errors
    /// It is not a number, or QEMU does not accept it.
    pub fn bytes(&self) -> Result<u64, InvalidByteRate> {
        let bytes = parse(&self.0);
        bytes.filter(|bytes| (1..=LARGEST).contains(bytes)).ok_or(InvalidByteRate)
    }
}

fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[digits.len()..];
    let factor = match suffix {
        "" => 1,
        _ => SUFFIXES.iter().find(|(known, _)| *known == suffix)?.1,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse::<u64>().ok()?.checked_mul(factor) } else { None }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("20Mi", Some(20 << 20))]
    #[case("1k", Some(1000))]
    #[case("512", Some(512))]
    #[case("0", None)]
    #[case("Mi", None)]
    #[case("", None)]
    #[case("-1", None)]
    #[case("1.5Gi", None)]
    #[case("20MiB", None)]
    #[case("1Ei", None)]
    #[case("9999999999999999Ti", None)]
    fn texts_are_whole_numbers_with_a_suffix(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(ByteRate(text.to_owned()).bytes().ok(), bytes);
    }
}
