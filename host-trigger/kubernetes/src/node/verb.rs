//! The verbs of `ecr-runtime`, run in this process. A verb is given its words, so that it has the
//! same checks and the same defaults as on a command line.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};

use clap::{Args, Parser};
use host_trigger::Error;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

/// The words of a command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Words<V: Args> {
    #[command(flatten)]
    verb: V,
}

/// The verb with these words.
///
/// # Errors
/// It does not accept them.
pub(super) fn parse<V: Args>(words: Vec<OsString>) -> Result<V, Error> {
    let parsed = Words::try_parse_from(words);
    parsed.map(|words| words.verb).map_err(|e| Error::Usage { text: e.to_string() })
}

/// One word: a flag with its value, which is never taken for another flag.
pub(super) fn word(flag: &str, value: impl Into<OsString>) -> OsString {
    let mut word = OsString::from(flag);
    word.push("=");
    word.push(value.into());
    word
}

/// Runs `work` on a thread of its own, in this mount namespace if one is given: what a verb has in
/// hand is not passed between threads. The rest of this process, which has its token in a file of
/// its own container, stays where it is.
pub(super) async fn on_own_thread<T, F>(
    mount_namespace: Option<PathBuf>,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        if let Some(path) = &mount_namespace {
            enter(path)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work()))
    };
    let thread = thread::Builder::new().name("volume".to_owned());
    // Nothing waits for the result any more if this process ends.
    thread.spawn(move || drop(sender.send(run())))?;
    receiver.await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Enters a mount namespace with this thread alone.
fn enter(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    // A thread that shares its root directory with others cannot change it.
    unshare(CloneFlags::CLONE_FS)?;
    Ok(setns(namespace, CloneFlags::CLONE_NEWNS)?)
}

#[cfg(test)]
mod tests {
    use host_trigger::commands::{hot_plug::HotPlug, hot_unplug::HotUnplug};

    use super::*;

    #[test]
    fn a_value_is_no_flag() {
        let words = vec![
            word("--sandbox", "s1"),
            word("--container", "c1"),
            word("--block-volume", "/dev/vg/a"),
            word("--device-path", "--force"),
        ];
        let verb = parse::<HotPlug>(words).unwrap();
        assert_eq!(verb.volumes.paths[0].path, "--force");
        assert_eq!((verb.mode, verb.read_only), (None, false));
    }

    #[tokio::test]
    async fn work_is_done_on_a_thread_of_its_own() {
        let done = on_own_thread(None, || async { thread::current().name().map(str::to_owned) });
        assert_eq!(done.await.unwrap().as_deref(), Some("volume"));
        let nowhere = on_own_thread(Some("/proc/self/nothing".into()), || async {}).await;
        assert_eq!(nowhere.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn words_that_a_verb_does_not_know_are_an_error() {
        assert!(matches!(parse::<HotUnplug>(vec!["--nothing".into()]), Err(Error::Usage { .. })));
    }
}
