//! Waiting for what an attachment is to become, by a watch.

use std::{pin::pin, time::Duration};

use clap::Args;
use futures_util::StreamExt as _;
use host_trigger::cli::duration::parse_duration;
use kube::{Api, runtime::watcher};
use tokio::time::{Instant, timeout_at};

use super::{chain::Progress, error::Error};
use crate::resource::{BlockVolumeAttachment, ConditionType};

/// Whether a command waits.
#[derive(Debug, Clone, Args)]
pub(super) struct WaitArgs {
    /// Wait until it is done, and say meanwhile what is waited for
    #[arg(long)]
    pub(super) wait: bool,

    /// The longest wait, such as 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait",
        value_parser = parse_duration)]
    timeout: Duration,
}

impl WaitArgs {
    /// Waits until the container has the volume.
    ///
    /// # Errors
    /// It is not attached in time, or a person has to change something first.
    pub(super) async fn until_attached(
        &self,
        all: Api<BlockVolumeAttachment>,
        name: &str,
    ) -> Result<BlockVolumeAttachment, Error> {
        let look = |seen: Option<&BlockVolumeAttachment>| {
            let Some(seen) = seen else { return Ok(Seen::Waits("it does not exist".to_owned())) };
            match Progress::of(seen) {
                Progress::Attached => Ok(Seen::Done(seen.clone())),
                Progress::Stuck(one) => Err(Error::NotAccepted {
                    name: name.to_owned(),
                    reason: one.reason.clone(),
                    message: one.message.clone(),
                }),
                progress => Ok(Seen::Waits(progress.text(seen))),
            }
        };
        self.watch(all, name, "attached", look).await
    }

    /// Waits until the attachment with this UID is gone, which is when its volume is detached.
    ///
    /// # Errors
    /// It is not gone in time.
    pub(super) async fn until_gone(
        &self,
        all: Api<BlockVolumeAttachment>,
        name: &str,
        uid: Option<&str>,
    ) -> Result<(), Error> {
        let look = |seen: Option<&BlockVolumeAttachment>| {
            Ok(match seen.filter(|one| one.metadata.uid.as_deref() == uid) {
                None => Seen::Done(()),
                Some(one) => Seen::Waits(match one.condition(ConditionType::Attached) {
                    Some(said) => format!("{}: {}", said.reason, said.message),
                    None => "nothing was said yet".to_owned(),
                }),
            })
        };
        self.watch(all, name, "detached", look).await
    }

    async fn watch<T>(
        &self,
        all: Api<BlockVolumeAttachment>,
        name: &str,
        wanted: &'static str,
        look: impl Fn(Option<&BlockVolumeAttachment>) -> Result<Seen<T>, Error>,
    ) -> Result<T, Error> {
        let until = Instant::now() + self.timeout;
        let mut state = "nothing was said yet".to_owned();
        let mut seen = pin!(watcher::watch_object(all, name));
        while let Ok(Some(next)) = timeout_at(until, seen.next()).await {
            let next = next.map_err(|source| Error::Watch { name: name.to_owned(), source })?;
            match look(next.as_ref())? {
                Seen::Done(seen) => return Ok(seen),
                Seen::Waits(text) if text != state => {
                    eprintln!("waiting: {text}");
                    state = text;
                }
                Seen::Waits(_) => {}
            }
        }
        let (name, seconds) = (name.to_owned(), self.timeout.as_secs());
        Err(Error::TimedOut { name, wanted, seconds, state })
    }
}

/// What was seen of it.
enum Seen<T> {
    Done(T),
    Waits(String),
}
