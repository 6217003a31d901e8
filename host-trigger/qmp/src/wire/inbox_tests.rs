use rstest::rstest;

use super::*;

#[rstest]
#[case("{\"return\": {}, \"id\": 71}\r\n", true)]
#[case("{\"id\": 71, \"error\": {}}\r\n", true)]
#[case("{\"id\":71,\"return\":1}\n", true)]
#[case("{\"return\": {}, \"id\": 72}\r\n", false)]
#[case("{\"return\": {}, \"id\": 711}\r\n", false)]
#[case("{\"return\": {}}\r\n", false)]
#[case::id_in_a_nested_object("{\"return\": {\"pid\": 1, \"id\": 71}, \"id\": 72}\r\n", false)]
#[case::id_only_in_a_nested_object("{\"return\": [{\"pid\": 1, \"id\": 71}]}\r\n", false)]
#[case::id_in_both("{\"return\": {\"pid\": 1, \"id\": 71}, \"id\": 71}\r\n", true)]
fn only_the_reply_to_the_next_command_is_kept(#[case] line: &str, #[case] kept: bool) {
    assert_eq!(has_id(line.as_bytes(), 71), kept);
}

/// An inbox that was greeted and has got `lines`, while replies to the commands 71 and 72 are
/// awaited.
fn read(lines: &[u8]) -> (io::Result<()>, Inbox) {
    let mut inbox = Inbox::new(71);
    assert_eq!(inbox.expect(2), 71);
    inbox.take_bytes(b"{\"QMP\": {}}\n").unwrap();
    assert_eq!(inbox.take_greeting().unwrap(), b"{\"QMP\": {}}\n");
    // As from a socket: a piece at a time.
    let taken = lines.chunks(8192).try_for_each(|piece| inbox.take_bytes(piece));
    assert!(inbox.partial.capacity() <= 2 * MAX_REPLY_LENGTH);
    (taken, inbox)
}

fn padded(start: &str, end: &str) -> Vec<u8> {
    format!("{start}{}{end}\n", " ".repeat(MAX_LINE_LENGTH)).into_bytes()
}

const REPLY: &[u8] = b"{\"return\": {}, \"id\": 71}\n";

#[test]
fn replies_come_in_the_order_of_their_commands_and_once() {
    let second = b"{\"return\": 2, \"id\": 72}\n";
    let lines = [second, REPLY, REPLY, second, second].concat();
    let (_, mut inbox) = read(&lines);
    assert_eq!(inbox.arrived(), 2);
    assert_eq!(inbox.take_replies(9), [REPLY, second]);
    // The next command has another ID.
    assert_eq!(inbox.expect(1), 73);
    inbox.take_bytes(second).unwrap();
    assert_eq!(inbox.arrived(), 0);
}

#[test]
fn a_long_line_is_dropped_and_what_follows_it_is_read() {
    let mut lines = padded("{\"event\": \"DEVICE_DELETED\"", "}");
    lines.extend(padded("", "no JSON"));
    lines.extend(b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d\"}}\n");
    lines.extend(REPLY);
    let (_, mut inbox) = read(&lines);
    assert_eq!(inbox.take_replies(2), [REPLY]);
    assert_eq!(inbox.take_event().unwrap().data["device"], "d");
    assert_eq!(inbox.take_event(), None);
}

#[rstest]
#[case::id_at_the_end("{\"return\": [", "], \"id\": 71}")]
#[case::id_at_the_start("{\"id\": 71, \"return\": [", "]}")]
#[case::lists("{\"return\": {\"edges\": [", "]}, \"id\": 71}")]
fn a_list_that_is_awaited_may_be_long(#[case] start: &str, #[case] end: &str) {
    let (_, mut inbox) = read(&padded(start, end));
    assert_eq!(inbox.take_replies(2), [padded(start, end)]);
}

#[rstest]
#[case::no_list("{\"return\": {", "}, \"id\": 71}")]
#[case::another_command("{\"return\": [", "], \"id\": 72}")]
#[case::another_command("{\"id\": 72, \"return\": [", "]}")]
#[case::second_reply("{\"return\": {}, \"id\": 71}\n{\"id\": 71, \"return\": [", "]}")]
fn another_long_reply_is_dropped(#[case] start: &str, #[case] end: &str) {
    let mut lines = padded(start, end);
    lines.extend(REPLY);
    assert_eq!(read(&lines).1.take_replies(2), [REPLY]);
}

#[test]
fn a_list_has_a_length_beyond_which_the_connection_ends() {
    let list = [&b"{\"return\": ["[..], &vec![b' '; MAX_REPLY_LENGTH]].concat();
    assert!(read(&list).0.is_err());
}

#[test]
fn events_beyond_a_number_are_dropped() {
    let event = b"{\"event\": \"RESUME\"}\n".repeat(MAX_EVENTS + 1);
    let (_, mut inbox) = read(&event);
    assert_eq!(std::iter::from_fn(|| inbox.take_event()).count(), MAX_EVENTS);
}
