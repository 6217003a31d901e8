//! Text from the kernel and from callers: numbers in digits, and bounded lengths.

use std::str::FromStr;

/// A decimal number of digits only: `str::parse` would accept a leading plus sign.
pub(crate) fn decimal<T: FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Cuts a text to at most `limit` bytes, between two characters, and marks the cut with `…`.
pub(crate) fn truncated(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_digits_only() {
        assert_eq!(decimal::<u8>("255"), Some(255));
        for text in ["", "+5", "-5", "0x5", "256"] {
            assert_eq!(decimal::<u8>(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(truncated("ab".to_owned(), 2), "ab");
        assert_eq!(truncated("éé".to_owned(), 3), "é…");
    }
}
