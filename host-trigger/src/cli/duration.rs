//! Durations on the command line.

use std::time::Duration;

/// Parses `30`, `30s`, `1500ms` or `2m`; a bare number is in seconds.
///
/// # Errors
/// The text is no duration, or not within a day; the error says what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis_per_unit = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return Err("expected a time such as 30s, 1500ms or 2m".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "expected a time such as 30s, 1500ms or 2m".to_owned())?;
    let millis = number.checked_mul(millis_per_unit).filter(|&ms| ms > 0 && ms <= 24 * 3_600_000);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| "expected more than zero and at most a day".to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("30", 30_000)]
    #[case("30s", 30_000)]
    #[case("1500ms", 1_500)]
    #[case("2m", 120_000)]
    fn times_are_parsed(#[case] text: &str, #[case] millis: u64) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
    }

    #[rstest]
    fn invalid_times_are_refused(
        #[values("", "0", "s", "-1", "1h", "1.5s", "99999999999999999999", "2000m")] text: &str,
    ) {
        assert!(parse_duration(text).is_err());
    }
}
