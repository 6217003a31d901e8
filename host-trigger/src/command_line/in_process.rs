//! Verbs in the process of another program, such as a node agent of Kubernetes: with the audit
//! records that a command line has.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::requested;
use crate::{
    Error,
    commands::{
        hot_plug::{self, HotPlug},
        hot_unplug::{self, HotUnplug},
        resize::{self, Resize},
        throttle::{self, Throttle},
    },
    error::ErrorBody,
    output::{
        audit::{Audit, Origin, Requested},
        envelope::Envelope,
        report::Report,
    },
};

/// A verb that changes something.
pub trait ChangingVerb {
    /// Its name on a command line.
    const NAME: &'static str;

    /// What it asks for, for the record of its beginning.
    #[doc(hidden)]
    fn requested(&self) -> Requested<'_>;

    /// Runs it, without a record.
    ///
    /// # Errors
    /// Those of the verb.
    fn run(
        &self,
        run_dir: Option<PathBuf>,
    ) -> impl Future<Output = Result<Envelope<Report>, Error>>;
}

/// Where the records go, and for whom the verbs are run.
#[derive(Debug, Clone, Default)]
pub struct AuditTrail {
    /// A file, or the socket of a syslog; `/dev/log` if none is named.
    pub log: Option<PathBuf>,
    /// More fields of each record: a name, and a text.
    pub fields: Vec<(&'static str, String)>,
}

/// What came of a verb.
#[derive(Debug)]
pub struct Done {
    /// Its result.
    pub result: Result<Envelope<Report>, Error>,
    /// The record of its end was lost.
    pub lost: Option<Error>,
}

impl AuditTrail {
    /// Opens the log, to see whether that is possible.
    ///
    /// # Errors
    /// It is not. Without a log that is named, verbs are run without records.
    pub fn check(log: Option<&Path>) -> Result<(), Error> {
        Audit::open(log)?.check()
    }

    /// Runs a verb that was given these `words`, with records of its beginning and of its end.
    pub async fn run<V: ChangingVerb>(
        &self,
        verb: &V,
        mut words: Vec<OsString>,
        run_dir: Option<PathBuf>,
    ) -> Done {
        words.insert(0, V::NAME.into());
        let origin = Origin { words, fields: self.fields.clone() };
        let begun = Audit::open(self.log.as_deref()).and_then(|audit| {
            let audit = audit.with_origin(origin);
            audit.begin(V::NAME, &verb.requested())?;
            Ok(audit)
        });
        let audit = match begun {
            Ok(audit) => audit,
            Err(e) => return Done { result: Err(e), lost: None },
        };
        let result = verb.run(run_dir).await;
        let lost = match &result {
            Ok(envelope) => {
                audit.end(envelope, envelope.error.as_ref().map_or(0, |error| error.exit_code))
            }
            Err(e) => audit.end(&Envelope::failed(V::NAME, e), ErrorBody::from(e).exit_code),
        };
        Done { result, lost: lost.err() }
    }
}

impl ChangingVerb for HotPlug {
    const NAME: &'static str = "hot-plug";

    fn requested(&self) -> Requested<'_> {
        requested::of(&self.target, self.container.as_deref(), requested::plugged(&self.volumes))
    }

    async fn run(&self, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
        match hot_plug::run(self, run_dir).await {
            Err(e) => Err(self.target.explain(e).await),
            done => done,
        }
    }
}

impl ChangingVerb for HotUnplug {
    const NAME: &'static str = "hot-unplug";

    fn requested(&self) -> Requested<'_> {
        let volume = requested::selected(&self.selector);
        requested::of(&self.target, self.container.as_deref(), vec![volume])
    }

    async fn run(&self, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
        hot_unplug::run(self, run_dir).await
    }
}

impl ChangingVerb for Resize {
    const NAME: &'static str = "resize";

    fn requested(&self) -> Requested<'_> {
        let volume = requested::selected(&self.selector);
        requested::of(&self.target, self.container.as_deref(), vec![volume])
    }

    async fn run(&self, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
        resize::run(self, run_dir).await
    }
}

impl ChangingVerb for Throttle {
    const NAME: &'static str = "throttle";

    fn requested(&self) -> Requested<'_> {
        let volume = requested::selected(&self.selector);
        requested::of(&self.target, self.container.as_deref(), vec![volume])
    }

    async fn run(&self, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
        throttle::run(self, run_dir).await
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        verb: HotUnplug,
    }

    const WORDS: [&str; 3] = ["--sandbox=s1", "--volume=0123456789abcdef", "--timeout=1s"];

    async fn unplug(log: PathBuf, run_dir: &Path) -> Done {
        let line = Line::try_parse_from(["x"].iter().chain(&WORDS)).unwrap();
        let fields = vec![("attachment", "db/scratch\n".to_owned())];
        let trail = AuditTrail { log: Some(log), fields };
        let words = WORDS.iter().map(OsString::from).collect();
        trail.run(&line.verb, words, Some(run_dir.to_owned())).await
    }

    #[tokio::test]
    async fn a_verb_has_the_records_of_a_command_line_and_says_for_whom_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let done = unplug(log.clone(), directory.path()).await;
        assert!(done.result.is_err() && done.lost.is_none(), "{done:?}");
        let text = std::fs::read_to_string(log).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [begin, end] = &lines[..] else { panic!("{text}") };
        for line in [begin, end] {
            assert_eq!((&line["attachment"], &line["run"]), (&"db/scratch\\n".into(), &end["run"]));
            assert_eq!(line["command"], "hot-unplug");
            assert_eq!(line["arguments"][0], "hot-unplug");
            assert_eq!(line["arguments"][1], WORDS[0]);
        }
        assert_eq!((&begin["phase"], &begin["sandbox"]), (&"begin".into(), &"s1".into()));
        assert_eq!(begin["requested"][0]["id"], "0123456789abcdef");
        assert_eq!((&end["reason"], &end["exit_code"]), (&"sandbox_not_found".into(), &3.into()));
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_is_not_done() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("missing/log");
        let done = unplug(log.clone(), directory.path()).await;
        assert!(matches!(done.result, Err(Error::System { .. })), "{done:?}");
        assert!(AuditTrail::check(Some(&log)).is_err());
        assert!(AuditTrail::check(Some(&directory.path().join("log"))).is_ok());
    }
}
