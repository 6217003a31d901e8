//! Completion of names in bash: the function that `completions bash` prints, called as bash does.

use std::{path::Path, process::Command, sync::Arc};

use crate::common::{
    Host,
    fake_cri::{FakeCri, running, sandbox},
    volume::Image,
};

const MIB: u64 = 1 << 20;

/// A host with a container engine, and the script in a file.
struct Node {
    host: Host,
    engine: Arc<FakeCri>,
}

impl Node {
    async fn boot() -> Self {
        let host = Host::boot().await;
        let engine = FakeCri::serve(&host.path("cri.sock"));
        *engine.sandboxes.lock().unwrap() =
            vec![sandbox("s1", "shop", "db:0", true), sandbox("s8", "shop", "runc", true)];
        *engine.containers.lock().unwrap() =
            [vec![running("c1", "app", 0), running("c2", "api", 0)]].into();
        let script = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"))
            .args(["completions", "bash"])
            .output()
            .unwrap();
        std::fs::write(host.path("ecr-runtime.bash"), script.stdout).unwrap();
        Self { host, engine }
    }

    /// Completes `ecr-runtime LINE` at its end, in which `word` is what bash takes for the word
    /// that is being typed.
    async fn complete(&self, line: &str, word: &str) -> Vec<String> {
        let programs = Path::new(env!("CARGO_BIN_EXE_ecr-runtime")).parent().unwrap();
        let line = line
            .replace("RUN", &format!("--run-dir {}", self.host.path("").display()))
            .replace("CRI", &format!("--cri {}", self.engine.socket.display()));
        let session = r#"
            PATH=$2:$PATH
            source "$1"
            function=$(complete -p ecr-runtime | sed "s/.* -F //; s/ .*//")
            COMP_LINE="ecr-runtime $3" COMP_POINT=${#COMP_LINE}
            read -ra COMP_WORDS <<<"$COMP_LINE"
            if [[ -z $4 ]]; then COMP_WORDS+=(""); fi
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            "$function" ecr-runtime "$4" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf "%s\\n" "${COMPREPLY[@]}""#;
        let script = self.host.path("ecr-runtime.bash");
        let mut bash = tokio::process::Command::new("bash");
        bash.args(["--norc", "-uc", session, "bash"]).arg(script).arg(programs);
        bash.arg(&line).arg(word).env_remove("CONTAINER_RUNTIME_ENDPOINT");
        let output = bash.output().await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{line}: {errors}");
        let names = String::from_utf8(output.stdout).unwrap();
        names.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn pods_containers_sandboxes_and_volumes_are_completed() {
    let node = Node::boot().await;
    let image = Image::of(MIB);
    let plugged = node.host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let id = plugged.body.volumes[0].id.clone();
    let list = "RUN CRI block-volume list";
    // A pod that is not Kata's cannot get a volume.
    assert_eq!(node.complete(&format!("{list} --pod "), "").await, ["shop/db:0"]);
    assert_eq!(node.complete(&format!("{list} --pod sh"), "sh").await, ["shop/db:0"]);
    // Bash takes "0" for the word.
    assert_eq!(node.complete(&format!("{list} --pod shop/db:"), "").await, ["0"]);
    assert_eq!(node.complete(&format!("{list} --pod=shop/d"), "shop/d").await, ["shop/db:0"]);
    assert_eq!(node.complete(&format!("{list} --pod web"), "web").await, [""; 0]);
    let of_pod = format!("{list} --pod shop/db:0 --container ");
    assert_eq!(node.complete(&of_pod, "").await, ["api", "app"]);
    assert_eq!(node.complete(&format!("{of_pod}ap"), "ap").await, ["api", "app"]);
    assert_eq!(node.complete(&format!("{list} --container "), "").await, ["c1", "c2"]);
    assert_eq!(node.complete(&format!("{list} --sandbox "), "").await, ["s1"]);
    let inspect = "RUN CRI block-volume inspect";
    for sandbox in ["--sandbox s1", "--pod shop/db:0", "--container c1"] {
        let line = format!("{inspect} {sandbox} --volume ");
        assert_eq!(node.complete(&line, "").await, [id.as_str()]);
        let line = format!("{inspect} {sandbox} --device-path /dev");
        assert_eq!(node.complete(&line, "/dev").await, ["/dev/xvda"]);
    }
}

#[tokio::test]
async fn options_and_words_are_completed_as_before() {
    let node = Node::boot().await;
    assert_eq!(node.complete("che", "che").await, ["check"]);
    let options = node.complete("block-volume list --po", "--po").await;
    assert_eq!(options, ["--pod"]);
}

#[tokio::test]
async fn what_cannot_be_told_is_not_completed_and_nothing_is_said() {
    let node = Node::boot().await;
    *node.engine.on_call.lock().unwrap() = crate::common::fake_cri::OnCall::Hangs;
    let list = "RUN CRI block-volume list";
    assert_eq!(node.complete(&format!("{list} --pod "), "").await, [""; 0]);
    let list = "RUN --cri /nonexistent/cri.sock block-volume list";
    assert_eq!(node.complete(&format!("{list} --pod "), "").await, [""; 0]);
    let list = "--run-dir /nonexistent block-volume list";
    assert_eq!(node.complete(&format!("{list} --volume "), "").await, [""; 0]);
}
