//! How much memory a JSON text takes at most once it is parsed. A value of two bytes, such as `[]`,
//! becomes many times as long, and an object even more.

/// The most that one value takes: a list that grows is copied, so three times the size of
/// [`Value`](serde_json::Value).
const VALUE: usize = 96;
/// The most that an object takes besides its members: a node of a
/// [`BTreeMap`](std::collections::BTreeMap) has room for eleven.
const OBJECT: usize = 700;

/// Returns an upper bound of the memory that the values in `json` take, in bytes.
pub(crate) fn weight(json: &[u8]) -> usize {
    let (mut weight, mut in_string, mut escaped) = (json.len(), false, false);
    for &byte in json {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        weight += match byte {
            b'"' => {
                in_string = true;
                0
            }
            b'{' => OBJECT,
            b'[' | b',' | b':' => VALUE,
            _ => 0,
        };
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_of_strings_are_counted() {
        assert_eq!(weight(b"1"), 1);
        assert_eq!(weight(br#""{[,:\"{""#), 9);
        assert_eq!(weight(br#"[{"a":"\\"},2]"#), 14 + OBJECT + 3 * VALUE);
    }
}
