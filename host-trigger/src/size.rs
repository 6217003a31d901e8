//! Sizes in bytes as people write and read them, with the binary prefixes of
//! [units(7)](https://man7.org/linux/man-pages/man7/units.7.html). `10G` and `10GB` are refused:
//! programs differ in what they mean.

const UNITS: [(&str, u32); 6] =
    [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Parses `10737418240`, `512KiB` or `10GiB`, at most `max`.
///
/// # Errors
/// The text is no size; the error says what is accepted.
pub fn parse_size(text: &str, max: u64) -> Result<u64, String> {
    if text.starts_with('-') {
        return Err("it is negative".to_owned());
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match UNITS.iter().find(|(name, _)| *name == unit) {
        _ if number.is_empty() => None,
        Some((_, shift)) => Some(*shift),
        None if unit.is_empty() || unit == "B" => Some(0),
        None => None,
    };
    let shift = shift.ok_or(
        "expected bytes, or a whole number of KiB, MiB, GiB, TiB, PiB or EiB such as 10GiB",
    )?;
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes
        .filter(|&bytes| bytes <= max)
        .ok_or_else(|| format!("it is more than the {max} bytes that QEMU takes"))
}

/// Formats a size for people; exact if it is a whole number of a unit.
pub fn human_size(bytes: u64) -> String {
    match UNITS.iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) if bytes.is_multiple_of(1 << shift) => {
            format!("{} {unit}", bytes >> shift)
        }
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(512, "512 bytes")]
    #[case(1 << 30, "1 GiB")]
    #[case(3 << 29, "1.5 GiB")]
    #[case((1 << 20) + 512, "1.0 MiB")]
    #[case(1 << 50, "1 PiB")]
    fn sizes_are_readable(#[case] bytes: u64, #[case] text: &str) {
        assert_eq!(human_size(bytes), text);
    }

    #[rstest]
    #[case("0", 0)]
    #[case("513", 513)]
    #[case("513B", 513)]
    #[case("3KiB", 3 << 10)]
    #[case("10GiB", 10 << 30)]
    #[case("7EiB", 7 << 60)]
    #[case("9223372036854775807", i64::MAX as u64)]
    fn sizes_are_parsed(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(parse_size(text, i64::MAX as u64), Ok(bytes));
    }

    #[rstest]
    #[case("", "expected bytes")]
    #[case("GiB", "expected bytes")]
    #[case("10G", "expected bytes")]
    #[case("10GB", "expected bytes")]
    #[case("1.5GiB", "expected bytes")]
    #[case("10 GiB", "expected bytes")]
    #[case("+1", "expected bytes")]
    #[case("0x10", "expected bytes")]
    #[case("-1", "negative")]
    #[case("-1GiB", "negative")]
    #[case("8EiB", "more than")]
    #[case("16EiB", "more than")]
    #[case("99999999999999999999", "more than")]
    #[case("18446744073709551615GiB", "more than")]
    fn invalid_sizes_are_refused(#[case] text: &str, #[case] why: &str) {
        let error = parse_size(text, i64::MAX as u64).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
