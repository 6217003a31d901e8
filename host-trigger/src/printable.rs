//! Strings that came from the guest, from QEMU or from a file name, made safe for a terminal: bounded, and without control
//! characters ([escape sequences](https://man7.org/linux/man-pages/man4/console_codes.4.html)) or characters that reorder text.

/// The most characters that are shown of one foreign string.
const LIMIT: usize = 400;

/// `text`, escaped and cut to a bounded length.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LIMIT));
    for (count, c) in text.chars().enumerate() {
        if count == LIMIT {
            shown.push('…');
            break;
        }
        if c.is_control() || is_invisible(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Line and paragraph separators, zero-width characters, and those that change the direction of what follows.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
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
    fn nothing_reaches_the_terminal_unescaped(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(printable(text), shown);
    }

    #[test]
    fn long_strings_are_cut() {
        let shown = printable(&"x".repeat(1 << 20));
        assert_eq!(shown.chars().count(), LIMIT + 1);
        assert!(shown.ends_with('…'));
    }
}
