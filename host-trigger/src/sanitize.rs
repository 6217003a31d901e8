//! Makes foreign strings safe for a terminal. A string from the guest, from QEMU or from a file
//! name is bounded, and its control characters ([escape
//! sequences](https://man7.org/linux/man-pages/man4/console_codes.4.html)) are escaped, as are
//! characters that reorder text ([bidirectional formatting](https://www.unicode.org/reports/tr9/)),
//! overlay their neighbors or are invisible.

/// The maximum number of characters that are shown of one string.
const LIMIT: usize = 400;

/// Returns `text` escaped and cut to a bounded length.
pub fn sanitize(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LIMIT));
    for (count, c) in text.chars().enumerate() {
        if count == LIMIT {
            shown.push('…');
            break;
        }
        if is_visible(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

/// Whether `c` is shown as it is. The standard library's table of printable characters is used;
/// quotes and backslashes, which it escapes for another reason, are visible.
fn is_visible(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("sda", "sda")]
    #[case("größer", "größer")]
    #[case("\u{1b}[2J", "\\u{1b}[2J")]
    #[case("a\nb", "a\\nb")]
    #[case("\u{9b}31m", "\\u{9b}31m")]
    #[case("\u{202e}gnp", "\\u{202e}gnp")]
    #[case::arabic_letter_mark("a\u{61c}b", "a\\u{61c}b")]
    #[case::annotation("a\u{fff9}b", "a\\u{fff9}b")]
    #[case::soft_hyphen("a\u{ad}b", "a\\u{ad}b")]
    #[case::drawn_over_what_precedes("a\u{336}b", "a\\u{336}b")]
    #[case::no_break_space("a\u{a0}b", "a\\u{a0}b")]
    #[case::quotes(r#"it's "a\b""#, r#"it's "a\b""#)]
    fn nothing_reaches_the_terminal_unescaped(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(sanitize(text), shown);
    }

    #[test]
    fn long_strings_are_cut() {
        let shown = sanitize(&"x".repeat(1 << 20));
        assert_eq!(shown.chars().count(), LIMIT + 1);
        assert!(shown.ends_with('…'));
    }
}
