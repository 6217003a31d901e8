//! The session that `docs/kubernetes.md` shows: what a user types, and what comes of it.

use std::fmt::Write as _;

use block_volume_kubernetes::resource::{BlockVolumeAttachment, ConditionType};
use vm_harness::{Environment, Machine, Volume};

use crate::{cluster::NAMESPACE, kata_node::KataNode, page};

const MIB: u64 = 1 << 20;
const ATTACHMENT: &str = "tests/cluster/full/scratch.yaml";

/// A session: commands and what they print.
struct Session {
    node: KataNode,
    text: String,
}

impl Session {
    /// What a user types; `kubectl` and its arguments.
    fn kubectl(&mut self, arguments: &str) {
        writeln!(self.text, "$ kubectl {arguments}").unwrap();
        // No quoted word has a space.
        let words = arguments.split_whitespace().map(|word| word.trim_matches('\''));
        let words = words.map(|word| if word == "scratch.yaml" { ATTACHMENT } else { word });
        let words: Vec<_> = words.collect();
        let namespace = format!("--namespace={NAMESPACE}");
        let printed = self.node.cluster.server.kubectl(&[&words[..], &[&namespace]].concat());
        self.text += &without_ages(&printed);
    }

    /// What a user types in the container.
    async fn in_container(&mut self, command: &str) {
        writeln!(self.text, "postgres-0# {command}").unwrap();
        let ran = self.node.container.try_exec(&["sh", "-c", command], b"").await.unwrap();
        self.text += &String::from_utf8_lossy(&ran.stdout);
        self.text += &String::from_utf8_lossy(&ran.stderr);
    }

    async fn until_size(&self, size: u64) {
        let size = i64::try_from(size).ok();
        let has = |one: &BlockVolumeAttachment| {
            one.is(ConditionType::Attached)
                && one.status.as_ref().is_some_and(|status| status.node.size == size)
        };
        self.node.cluster.until("scratch", "attached with this size", has).await;
    }
}

/// The last column of a table is an age, which differs from run to run.
fn without_ages(printed: &str) -> String {
    let Some(at) = printed.lines().next().and_then(|head| head.find("AGE")) else {
        return printed.to_owned();
    };
    let age = |(number, line): (usize, &str)| match number {
        0 => line.to_owned(),
        _ => format!("{}5s", &line[..at]),
    };
    printed.lines().enumerate().map(age).map(|line| line + "\n").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_as_the_page_shows_it() {
    let (environment, machine) = (Environment::from_variables(), Machine::default());
    let mut node = KataNode::with("postgres-0", &environment, &machine, &[]).await;
    node.start_agent();
    let volume = Volume::sparse(16 * MIB);
    node.cluster.storage_class("fast").await;
    node.cluster.claim_of("scratch", "16Mi", "ReadWriteOnce", "fast").await;
    let mut session = Session { node, text: String::new() };

    session.kubectl("apply --filename scratch.yaml");
    let made = session.node.cluster.attachment("scratch").await.unwrap();
    session.node.publish(&made, &volume).await;
    session.until_size(16 * MIB).await;
    session.kubectl("get bva --output wide");
    session.in_container("ls -l /dev/xvda | cut -c 1-10").await;
    session.in_container("echo written in the container | dd of=/dev/xvda conv=notrunc").await;
    assert_eq!(volume.bytes(0..25), b"written in the container\n");

    let bigger = r#"{"spec":{"resources":{"requests":{"storage":"32Mi"}}}}"#;
    session.kubectl(&format!("patch pvc scratch --patch '{bigger}'"));
    // Its driver has expanded it.
    volume.resize(32 * MIB);
    session.node.cluster.claim_has("scratch", "32Mi").await;
    session.until_size(32 * MIB).await;
    session.kubectl("get bva --output wide");
    session.in_container("head -c 25 /dev/xvda").await;

    session.kubectl("delete bva scratch");
    session.in_container("ls /dev/xvda").await;
    volume.check_claimable().unwrap();
    page::compare_or_write("session", &format!("```\n{}```\n", session.text));
}
