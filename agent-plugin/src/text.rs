//! Text from the kernel and from callers. What the kernel prints is bytes: names of processes,
//! files and mounts are whatever a container made of them. Only numbers and the kernel's own words
//! are text.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

/// A decimal number of digits only: `str::parse` would accept a leading plus sign.
pub(crate) fn decimal<T: TryFrom<u64>>(text: impl AsRef<[u8]>) -> Option<T> {
    T::try_from(number(text.as_ref())?).ok()
}

/// Not a part of [`decimal`], which is compiled for each type.
#[inline(never)]
fn number(digits: &[u8]) -> Option<u64> {
    if digits.iter().all(u8::is_ascii_digit) { parsed(digits) } else { None }
}

/// A value in one of the kernel's own notations.
pub(crate) fn parsed<T: FromStr>(text: &[u8]) -> Option<T> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// The lines of a file, without their ends. Unlike [`str::lines`], it keeps a carriage return,
/// which may be the last byte of a name.
pub(crate) fn lines(text: &[u8]) -> Lines<'_> {
    Lines(text)
}

/// See [`lines`]. Not made of the iterators of `std`, which are compiled at each use.
#[derive(Debug, Clone)]
pub(crate) struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    #[inline(never)]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|&byte| byte == b'\n');
        let (line, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest.strip_prefix(b"\n").unwrap_or(rest);
        Some(line)
    }
}

/// The words of a line. The kernel separates them by blanks and tabs alone, and escapes both in
/// names; other white space may be a part of a name.
pub(crate) fn words(line: &[u8]) -> Words<'_> {
    Words(line)
}

/// See [`words`].
#[derive(Debug, Clone)]
pub(crate) struct Words<'a>(&'a [u8]);

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    #[inline(never)]
    fn next(&mut self) -> Option<&'a [u8]> {
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let begin = self.0.iter().position(|byte| !is_blank(byte))?;
        let rest = &self.0[begin..];
        let (word, rest) = rest.split_at(rest.iter().position(is_blank).unwrap_or(rest.len()));
        self.0 = rest;
        Some(word)
    }
}

/// What is before and behind the first `separator`.
pub(crate) fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(separator.len()).position(|part| part == separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

/// A name as it was before the kernel escaped it: a byte that would break the line is written as a
/// backslash and three octal digits.
#[inline(never)]
pub(crate) fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, behind)) = rest.split_first() {
        let escaped = behind.split_first_chunk().filter(|_| first == b'\\');
        let escaped = escaped.and_then(|(digits, behind)| Some((octal(*digits)?, behind)));
        let (byte, behind) = escaped.unwrap_or((first, behind));
        bytes.push(byte);
        rest = behind;
    }
    bytes
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    let digit = |digit: u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
    let [high, middle, low] = digits.map(digit);
    u8::try_from(high? * 64 + middle? * 8 + low?).ok()
}

/// A name as text, at most `limit` bytes of it: each byte that is not UTF-8 is shown as `\xff`. Its
/// control characters are still there, and are escaped where it is shown.
pub(crate) fn readable(name: &[u8], limit: usize) -> String {
    let mut text = String::new();
    // A name that is too long is cut below; the rest of it need not be read.
    for chunk in name[..name.len().min(limit + 1)].utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            append(&mut text, format_args!("\\x{byte:02x}"));
        }
    }
    truncated(text, limit)
}

/// Cuts a text to at most `limit` bytes, between two characters, and marks the cut with `…`.
#[inline(never)]
pub(crate) fn truncated(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push('…');
    }
    text
}

/// A value as it is displayed. `to_string` is compiled once for each type and each use in another
/// part of the crate; this is not.
#[inline(never)]
pub(crate) fn displayed(value: &dyn fmt::Display) -> String {
    value.to_string()
}

/// Adds to a text.
#[inline(never)]
pub(crate) fn append(text: &mut String, more: fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = text.write_fmt(more);
}

/// How many bytes of a name are shown in a message.
const LONGEST_SHOWN: usize = 300;

/// A name in a message: what would change how the line looks is escaped, quotes are not, and a long
/// name is cut.
pub(crate) fn shown(name: &str) -> String {
    escaped(name, LONGEST_SHOWN)
}

/// A path in a message, in quotes.
#[inline(never)]
pub(crate) fn quoted(path: &str) -> String {
    let beginning = &path[..path.floor_char_boundary(LONGEST_SHOWN)];
    let cut = if beginning.len() < path.len() { "…" } else { "" };
    format!("{beginning:?}{cut}")
}

/// The beginning of a text of others, as one line.
pub(crate) fn escaped(text: &str, limit: usize) -> String {
    let mut line = String::new();
    for character in text.chars() {
        match character {
            '"' | '\'' => line.push(character),
            _ => line.extend(character.escape_debug()),
        }
        if line.len() > limit {
            break;
        }
    }
    truncated(line, limit)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_number_has_digits_only() {
        assert_eq!(decimal::<u8>("255"), Some(255));
        for text in ["", "+5", "-5", "0x5", "256"] {
            assert_eq!(decimal::<u8>(text), None, "{text:?}");
        }
        assert_eq!(parsed::<u8>(b"\xff"), None);
    }

    #[rstest]
    #[case(b"", &[])]
    #[case(b"a", &[b"a" as &[u8]])]
    #[case(b"a\n\n\xffb\r\n", &[b"a" as &[u8], b"", b"\xffb\r"])]
    fn lines_are_bytes(#[case] text: &[u8], #[case] expected: &[&[u8]]) {
        assert_eq!(lines(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn words_are_separated_by_blanks_and_tabs_alone() {
        let words: Vec<_> = words(b" /a\x0cb\r \t\xff  ").collect();
        assert_eq!(words, [b"/a\x0cb\r" as &[u8], b"\xff"]);
        assert_eq!(split_once(b"a - b - c", b" - "), Some((b"a" as &[u8], b"b - c" as &[u8])));
        assert_eq!(split_once(b"a -", b" - "), None);
    }

    #[rstest]
    #[case::plain(b"/dev/xvda", b"/dev/xvda")]
    #[case::all(br"a\040b\011c\012d\134e\043f", b"a b\tc\nd\\e#f")]
    #[case::a_backslash_before_digits(br"\134040", br"\040")]
    #[case::no_octal_number(br"\9\400\+12\-12", br"\9\400\+12\-12")]
    #[case::cut(br"a\04", br"a\04")]
    #[case::no_text(b"\xff\\377\\040\xfe", b"\xff\xff \xfe")]
    fn names_are_read_as_the_kernel_writes_them(#[case] name: &[u8], #[case] plain: &[u8]) {
        assert_eq!(unescaped(name), plain);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(truncated("ab".to_owned(), 2), "ab");
        assert_eq!(truncated("éé".to_owned(), 3), "é…");
    }

    #[rstest]
    #[case(b"a\xffb\xc3", "a\\xffb\\xc3")]
    #[case("é\u{1b}\n".as_bytes(), "é\u{1b}\n")]
    #[case(b"0123456789ab\xff", "0123456789…")]
    #[case(b"01234567\xff\xff", "01234567\\x…")]
    #[case(b"", "")]
    fn a_name_of_bytes_is_readable_and_bounded(#[case] name: &[u8], #[case] text: &str) {
        assert_eq!(readable(name, 10), text);
    }

    #[test]
    fn a_name_in_a_message_is_one_short_line() {
        assert_eq!(
            shown("\"b 8:16\" to /a\n\u{1b}[2J\u{202e}"),
            r#""b 8:16" to /a\n\u{1b}[2J\u{202e}"#
        );
        assert!(shown(&"\n".repeat(1 << 20)).len() < LONGEST_SHOWN + 10);
    }
}
