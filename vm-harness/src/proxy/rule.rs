//! What a proxy does to which message, as a value:
//! `Rule::on(reply_to("device_add"), Fault::Delay(time))`, or as text for the command line:
//! `reply:device_add=delay:500ms`.

use std::{fmt, str::FromStr, time::Duration};

use host_trigger::stopwatch::parse_duration;

use super::{Fault, Message};

/// The forms that a rule has as text.
const FORM: &str = "expected MESSAGE[@N|@each]=FAULT with a MESSAGE of greeting, command:NAME, reply:NAME, event:NAME, and a FAULT of \
                    delay:TIME, drop, twice, cut, cut:BYTES, split:BYTES, behind:MESSAGE, inject:LINE";

/// One fault at one message, the first of its kind unless said otherwise.
#[derive(Debug, Clone)]
pub struct Rule {
    message: Message,
    which: Which,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Nth(usize),
    Each,
}

impl Rule {
    /// `fault` befalls the first `message` of this kind, on whichever connection.
    pub fn on(message: Message, fault: Fault) -> Self {
        Self { message, which: Which::Nth(1), fault }
    }

    /// It befalls the `n`th message of this kind, counted from 1.
    #[must_use]
    pub fn nth(self, n: usize) -> Self {
        Self { which: Which::Nth(n), ..self }
    }

    /// It befalls each message of this kind.
    #[must_use]
    pub fn each(self) -> Self {
        Self { which: Which::Each, ..self }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, which, fault } = self;
        match which {
            Which::Nth(1) => write!(f, "{message}={fault}"),
            Which::Nth(n) => write!(f, "{message}@{n}={fault}"),
            Which::Each => write!(f, "{message}@each={fault}"),
        }
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| format!("{FORM}; for example reply:device_add=delay:500ms"))
    }
}

fn parse(text: &str) -> Option<Rule> {
    let (subject, fault) = text.split_once('=')?;
    let (name, which) = subject.split_once('@').unwrap_or((subject, "1"));
    let rule = Rule::on(message(name)?, self::fault(fault)?);
    match which {
        "each" => Some(rule.each()),
        n => n.parse().ok().filter(|&n| n > 0).map(|n| rule.nth(n)),
    }
}

fn message(text: &str) -> Option<Message> {
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    match (kind, name) {
        ("greeting", "") => Some(Message::Greeting),
        (_, "") => None,
        ("command", name) => Some(Message::Command(name.to_owned())),
        ("reply", name) => Some(Message::Reply(name.to_owned())),
        ("event", name) => Some(Message::Event(name.to_owned())),
        _ => None,
    }
}

fn fault(text: &str) -> Option<Fault> {
    let (kind, value) = text.split_once(':').unwrap_or((text, ""));
    match (kind, value) {
        ("drop", "") => Some(Fault::Drop),
        ("twice", "") => Some(Fault::Twice),
        ("cut", "") => Some(Fault::Cut),
        ("cut", bytes) => bytes.parse().ok().map(Fault::CutAfter),
        ("split", bytes) => bytes.parse().ok().filter(|&bytes| bytes > 0).map(Fault::Split),
        ("delay", time) => parse_duration(time).ok().map(Fault::Delay),
        ("behind", other) => message(other).map(Fault::Behind),
        ("inject", line) if !line.is_empty() => {
            Some(Fault::Inject(format!("{line}\r\n").into_bytes()))
        }
        _ => None,
    }
}

/// A rule that waits for its message.
#[derive(Debug)]
struct Armed {
    rule: Rule,
    seen: usize,
    fired: usize,
}

/// The rules of one proxy, with their counts.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Armed>);

impl Rules {
    pub(super) fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self(rules.into_iter().map(|rule| Armed { rule, seen: 0, fired: 0 }).collect())
    }

    /// What befalls this message. Each rule counts it; the first whose turn it is decides.
    pub(super) fn befall(&mut self, message: &Message) -> Option<Fault> {
        let mut decided = None;
        for armed in self.0.iter_mut().filter(|armed| armed.rule.message == *message) {
            armed.seen += 1;
            let is_due = match armed.rule.which {
                Which::Each => true,
                Which::Nth(n) => armed.seen == n,
            };
            if is_due && decided.is_none() {
                armed.fired += 1;
                decided = Some(armed.rule.fault.clone());
            }
        }
        decided
    }

    /// The rules that nothing has met so far.
    pub(super) fn unmet(&self) -> Vec<String> {
        self.0.iter().filter(|armed| armed.fired == 0).map(|armed| armed.rule.to_string()).collect()
    }
}

/// Shown in whole milliseconds, as [`parse_duration`] reads it.
pub(super) fn shown(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::proxy::{command, event, greeting, reply_to};

    #[rstest]
    fn rules_are_read_and_written_alike(
        #[values(
            "greeting=delay:1500ms",
            "command:device_add=cut",
            "reply:blockdev-add@2=cut:17",
            "reply:query-status@each=split:1",
            "event:DEVICE_DELETED=twice",
            "event:DEVICE_DELETED=drop",
            "reply:device_del=behind:event:DEVICE_DELETED",
            "command:cont=inject:{\"event\": \"X=Y\"}"
        )]
        text: &str,
    ) {
        assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
    }

    #[rstest]
    fn odd_rules_are_refused_with_the_forms_that_there_are(
        #[values(
            "",
            "device_add=cut",
            "reply:device_add",
            "reply:=cut",
            "reply:x@0=cut",
            "reply:x=split:0",
            "reply:x=cut:z",
            "x:y=drop",
            "greeting=inject:"
        )]
        text: &str,
    ) {
        assert!(text.parse::<Rule>().unwrap_err().contains("MESSAGE[@N|@each]=FAULT"));
    }

    #[test]
    fn the_first_rule_whose_turn_it_is_decides_and_the_others_count() {
        let mut rules = Rules::new([
            Rule::on(command("a"), Fault::Drop),
            Rule::on(command("a"), Fault::Cut).nth(3),
            Rule::on(reply_to("a"), Fault::Twice).each(),
            Rule::on(event("E"), Fault::Drop),
        ]);
        let mut fates = |message: &Message| rules.befall(message).map(|fault| fault.to_string());
        let of_a: Vec<_> = (0..4).map(|_| fates(&command("a"))).collect();
        assert_eq!(of_a, [Some("drop".to_owned()), None, Some("cut".to_owned()), None]);
        assert_eq!(fates(&command("b")), None);
        assert_eq!(fates(&greeting()), None);
        assert_eq!(
            (fates(&reply_to("a")), fates(&reply_to("a"))),
            (Some("twice".into()), Some("twice".into()))
        );
        assert_eq!(rules.unmet(), ["event:E=drop"]);
    }
}
