//! Which fault a proxy applies to which message, as a value:
//! `Rule::on(reply_to("device_add"), Fault::Delay(time))`, or as text for the command line:
//! `reply:device_add=delay:500ms`.

use std::{fmt, str::FromStr};

use host_trigger::cli::duration::parse_duration;

use super::{fault::Fault, message::Message};

/// The syntax of a rule as text.
const SYNTAX: &str = "expected MESSAGE[@N|@each]=FAULT, where MESSAGE is greeting, command:NAME, \
                      reply:NAME or event:NAME, and FAULT is delay:TIME, stall:TIME, drop, twice, \
                      cut, cut:BYTES, split:BYTES, behind:MESSAGE or inject:LINE";

/// A fault for one kind of message; without [`Rule::nth`] or [`Rule::each`] for the first one.
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
    /// Applies `fault` to the first message of this kind, on any connection.
    pub fn on(message: Message, fault: Fault) -> Self {
        Self { message, which: Which::Nth(1), fault }
    }

    /// Applies the fault to the `n`th message of this kind, counted from 1.
    #[must_use]
    pub fn nth(self, n: usize) -> Self {
        Self { which: Which::Nth(n), ..self }
    }

    /// Applies the fault to each message of this kind.
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
        parse(text).ok_or_else(|| format!("{SYNTAX}; for example reply:device_add=delay:500ms"))
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
        ("stall", time) => parse_duration(time).ok().map(Fault::Stall),
        ("behind", other) => message(other).map(Fault::Behind),
        ("inject", line) if !line.is_empty() => {
            Some(Fault::Inject(format!("{line}\r\n").into_bytes()))
        }
        _ => None,
    }
}

/// A rule, and how often its message was seen and its fault applied.
#[derive(Debug)]
struct CountedRule {
    rule: Rule,
    seen: usize,
    applied: usize,
}

/// The rules of one proxy.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<CountedRule>);

impl Rules {
    pub(super) fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let counted = |rule| CountedRule { rule, seen: 0, applied: 0 };
        Self(rules.into_iter().map(counted).collect())
    }

    /// Returns the fault for this message. Each rule for its kind counts it; the first rule that
    /// applies decides.
    pub(super) fn fault_for(&mut self, message: &Message) -> Option<Fault> {
        let mut fault = None;
        for counted in self.0.iter_mut().filter(|counted| counted.rule.message == *message) {
            counted.seen += 1;
            let applies = match counted.rule.which {
                Which::Each => true,
                Which::Nth(n) => counted.seen == n,
            };
            if applies && fault.is_none() {
                counted.applied += 1;
                fault = Some(counted.rule.fault.clone());
            }
        }
        fault
    }

    /// Returns the rules whose fault was never applied so far.
    pub(super) fn unmet(&self) -> Vec<String> {
        let unmet = self.0.iter().filter(|counted| counted.applied == 0);
        unmet.map(|counted| counted.rule.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::proxy::{command, event, greeting, reply_to};

    #[rstest]
    fn rules_are_parsed_and_printed_alike(
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
    fn invalid_rules_are_refused_with_the_syntax(
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
    fn first_rule_that_applies_decides_and_all_rules_count() {
        let mut rules = Rules::new([
            Rule::on(command("a"), Fault::Drop),
            Rule::on(command("a"), Fault::Cut).nth(3),
            Rule::on(reply_to("a"), Fault::Twice).each(),
            Rule::on(event("E"), Fault::Drop),
        ]);
        let mut fault = |message: &Message| rules.fault_for(message).map(|fault| fault.to_string());
        let of_a: Vec<_> = (0..4).map(|_| fault(&command("a"))).collect();
        assert_eq!(of_a, [Some("drop".to_owned()), None, Some("cut".to_owned()), None]);
        assert_eq!(fault(&command("b")), None);
        assert_eq!(fault(&greeting()), None);
        assert_eq!(
            (fault(&reply_to("a")), fault(&reply_to("a"))),
            (Some("twice".into()), Some("twice".into()))
        );
        assert_eq!(rules.unmet(), ["event:E=drop"]);
    }
}
