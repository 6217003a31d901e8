//! Messages in [protobuf's wire format](https://protobuf.dev/programming-guides/encoding/), as far
//! as the API uses it.
//!
//! The generated types of the API serve the host. Here they would be compiled into the agent, with
//! what protobuf's library does for each type, which is more code than all that is decoded and
//! encoded. A request is decoded in place and borrows its text from the call; a reply is written at
//! once.

use std::fmt;

/// A message that is not of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message cannot be decoded")
    }
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number, a flag or an enum.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
    /// Of a type that the API does not use: a field of a later version.
    Other,
}

/// The fields of a message, in their order.
#[derive(Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Fields<'a> {
        Fields(message)
    }

    /// The number and the value of the next field; `None` at the end.
    #[inline(never)]
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.bytes(8).map(|_| Value::Other)?,
            2 => {
                let length = self.number()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Other)?,
            _ => return Err(Malformed),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has one bit.
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }
}

impl<'a> Value<'a> {
    /// Sets `text` to the value, unless the field has another type: then it is not the API's.
    #[inline(never)]
    pub(crate) fn text(self, text: &mut &'a str) -> Result<(), Malformed> {
        if let Value::Bytes(bytes) = self {
            *text = str::from_utf8(bytes).map_err(|_| Malformed)?;
        }
        Ok(())
    }

    /// Adds the value to `texts`, as [`text`](Self::text) sets one.
    pub(crate) fn add_text(self, texts: &mut Vec<&'a str>) -> Result<(), Malformed> {
        if let Value::Bytes(_) = self {
            let mut text = "";
            self.text(&mut text)?;
            texts.push(text);
        }
        Ok(())
    }

    /// Sets a number of 32 bits. One that is larger is refused and not cut.
    pub(crate) fn small(self, number: &mut u32) -> Result<(), Malformed> {
        if let Value::Number(value) = self {
            *number = u32::try_from(value).map_err(|_| Malformed)?;
        }
        Ok(())
    }

    /// Sets an enum, whose negative values are sign-extended.
    pub(crate) fn choice(self, number: &mut i32) -> Result<(), Malformed> {
        if let Value::Number(value) = self {
            *number = i32::try_from(value.cast_signed()).map_err(|_| Malformed)?;
        }
        Ok(())
    }

    pub(crate) fn number(self, number: &mut u64) -> Result<(), Malformed> {
        if let Value::Number(value) = self {
            *number = value;
        }
        Ok(())
    }

    pub(crate) fn flag(self, flag: &mut bool) -> Result<(), Malformed> {
        if let Value::Number(value) = self {
            *flag = value != 0;
        }
        Ok(())
    }
}

/// A message that is being written. As proto3 has it, a field with its default is left out.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    #[inline(never)]
    pub(crate) fn number(&mut self, field: u8, number: u64) {
        if number != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(number);
        }
    }

    pub(crate) fn choice(&mut self, field: u8, number: i32) {
        self.number(field, i64::from(number).cast_unsigned());
    }

    pub(crate) fn flag(&mut self, field: u8, flag: bool) {
        self.number(field, flag.into());
    }

    pub(crate) fn text(&mut self, field: u8, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    /// An element of a repeated field, which has no default.
    pub(crate) fn texts<T: AsRef<str>>(&mut self, field: u8, texts: &[T]) {
        for text in texts {
            self.bytes(field, text.as_ref().as_bytes());
        }
    }

    pub(crate) fn numbers(&mut self, field: u8, numbers: &[u32]) {
        if !numbers.is_empty() {
            let mut packed = Message::default();
            numbers.iter().for_each(|&number| packed.varint(number.into()));
            self.message(field, &packed);
        }
    }

    /// A message, which is present also where it is empty.
    pub(crate) fn message(&mut self, field: u8, message: &Message) {
        self.bytes(field, &message.0);
    }

    /// A text or a message that is encoded already.
    #[inline(never)]
    pub(crate) fn bytes(&mut self, field: u8, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    #[inline(never)]
    fn varint(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use rstest::rstest;

    use super::*;
    use crate::api::block_volume as wire;

    fn fields(message: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Malformed> {
        let mut fields = Fields::of(message);
        std::iter::from_fn(|| fields.next().transpose()).collect()
    }

    #[test]
    fn what_the_generated_code_writes_is_read() {
        let failure = wire::Failure {
            reason: wire::Reason::REASON_SYSTEM.into(),
            message: "ä".into(),
            undone: true,
            ..Default::default()
        };
        let bytes = failure.write_to_bytes().unwrap();
        let expected =
            [(1, Value::Number(16)), (2, Value::Bytes("ä".as_bytes())), (4, Value::Number(1))];
        assert_eq!(fields(&bytes).unwrap(), expected);
    }

    #[test]
    fn what_is_written_is_read_by_the_generated_code() {
        let mut device = Message::default();
        device.number(1, 8);
        let mut outcome = Message::default();
        outcome.message(1, &device);
        outcome.number(2, 2);
        outcome.texts(4, &["/a", ""]);
        outcome.flag(5, true);
        outcome.number(6, u64::MAX);
        outcome.text(7, "");
        let read = wire::Outcome::parse_from_bytes(&outcome.into_bytes()).unwrap();
        assert_eq!((read.device.major, read.device.minor), (8, 0));
        assert_eq!(read.node, wire::NodeWay::NODE_WAY_BIND.into());
        assert_eq!(
            (read.parents_made, read.allowed_before),
            (vec!["/a".into(), String::new()], true)
        );
        assert_eq!((read.container_started, read.errors_before), (u64::MAX, 0));

        let mut filter = Message::default();
        filter.numbers(2, &[1, 300, u32::MAX]);
        let read = wire::FilterState::parse_from_bytes(&filter.into_bytes()).unwrap();
        assert_eq!(read.programs, [1, 300, u32::MAX]);
    }

    /// A later version may have fields of further types.
    #[test]
    fn unknown_fields_of_each_type_are_skipped() {
        let message = [0x0d, 1, 2, 3, 4, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x18, 1];
        let expected = [(1, Value::Other), (2, Value::Other), (3, Value::Number(1))];
        assert_eq!(fields(&message).unwrap(), expected);
    }

    #[rstest]
    #[case::no_value(&[0x08])]
    #[case::cut_number(&[0x08, 0x80])]
    #[case::long_number(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02])]
    #[case::endless_number(&[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00])]
    #[case::cut_text(&[0x0a, 2, b'a'])]
    #[case::length_beyond_memory(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])]
    #[case::cut_fixed(&[0x0d, 1, 2, 3])]
    #[case::group(&[0x0b, 0x0c])]
    fn a_message_that_is_cut_or_no_message_is_malformed(#[case] message: &[u8]) {
        assert_eq!(fields(message), Err(Malformed));
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        let (mut small, mut choice, mut text) = (0, 0, "");
        assert_eq!(Value::Number(1 << 32).small(&mut small), Err(Malformed));
        assert_eq!(Value::Number(1 << 31).choice(&mut choice), Err(Malformed));
        Value::Number(u64::MAX).choice(&mut choice).unwrap();
        assert_eq!((small, choice), (0, -1));
        assert_eq!(Value::Bytes(&[0xff]).text(&mut text), Err(Malformed));
    }
}
