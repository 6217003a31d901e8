//! What gRPC adds to HTTP/2 for a call with one message in each direction
//! ([protocol](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)).

use hyper::HeaderMap;

/// A message is preceded by a flag and its length.
const PREFIX: usize = 5;
/// The status of a method or a service that the server does not have.
pub(super) const UNIMPLEMENTED: u32 = 12;

/// The body of a request with `message`.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend(message);
    body
}

/// The only message in the body of a reply.
pub(super) fn message(body: &[u8]) -> Result<&[u8], &'static str> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>().ok_or("it has no message")?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err("it is compressed, which was not asked for");
    }
    match usize::try_from(u32::from_be_bytes(length)) {
        Ok(length) if length == message.len() => Ok(message),
        _ => Err("its length is not that of its message"),
    }
}

/// How a call ended: the status and its message. A server that fails at once sends them as headers,
/// and as trailers otherwise.
pub(super) fn status(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Option<(u32, String)> {
    let all = trailers.into_iter().chain([headers]);
    let ended = all.into_iter().find(|fields| fields.contains_key("grpc-status"))?;
    let code = ended.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = ended.get("grpc-message").map(|text| decode(text.as_bytes()));
    Some((code, message.unwrap_or_default()))
}

/// Decodes `%XX`.
fn decode(text: &[u8]) -> String {
    let (mut decoded, mut rest) = (Vec::with_capacity(text.len()), text);
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_message_is_framed_and_found_again() {
        assert_eq!(message(&frame(b"abc")), Ok(&b"abc"[..]));
        assert_eq!(message(&frame(b"")), Ok(&b""[..]));
    }

    #[rstest]
    fn a_body_that_is_not_one_message_is_refused(
        #[values(
            b"" as &[u8],
            b"\0\0\0\0",
            b"\x01\0\0\0\x01a",
            b"\0\0\0\0\x02a",
            b"\0\0\0\0\x01ab",
            b"\0\xff\xff\xff\xffa"
        )]
        body: &[u8],
    ) {
        assert!(message(body).is_err());
    }

    #[test]
    fn a_status_is_in_the_trailers_or_in_the_headers() {
        let fields = |code: &'static str| {
            let mut fields = HeaderMap::new();
            fields.insert("grpc-status", code.parse().unwrap());
            fields.insert("grpc-message", "a%20b%2".parse().unwrap());
            fields
        };
        let (none, refused) = (HeaderMap::new(), fields("12"));
        assert_eq!(status(&none, Some(&refused)), Some((12, "a b%2".into())));
        assert_eq!(status(&refused, None), Some((12, "a b%2".into())));
        assert_eq!(status(&none, None), None);
        assert_eq!(status(&none, Some(&fields("x"))), None);
    }
}
