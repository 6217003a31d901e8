//! How the kernel writes paths into
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html): what
//! would break its lines becomes a backslash and three octal digits. That is blank, tab, newline
//! and backslash everywhere, and `#` in what was mounted, too.

/// A field as it was before.
pub(crate) fn unescaped(field: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let escaped = behind.split_first_chunk().filter(|_| first == b'\\');
        let escaped = escaped.and_then(|(digits, behind)| Some((octal(digits)?, behind)));
        let (byte, behind) = escaped.unwrap_or((first, behind));
        bytes.push(byte);
        rest = behind;
    }
    bytes
}

/// Digits only: `from_str_radix` would take a leading plus sign.
fn octal(digits: &[u8; 3]) -> Option<u8> {
    let text = str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("/dev/xvda", "/dev/xvda")]
    #[case::all(r"a\040b\011c\012d\134e\043f", "a b\tc\nd\\e#f")]
    #[case::a_backslash_before_digits(r"\134040", r"\040")]
    #[case::no_octal_number(r"\9\400\+12\-12", r"\9\400\+12\-12")]
    #[case::cut(r"a\04", r"a\04")]
    fn fields_are_read_as_the_kernel_writes_them(#[case] field: &str, #[case] plain: &str) {
        assert_eq!(unescaped(field), plain.as_bytes());
    }
}
