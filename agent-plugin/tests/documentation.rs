//! Compares the documentation with the code: each code block in the crate's README, the builder's
//! guide and the pages beside it is the text of a file that is compiled or evaluated in
//! `examples/kata-agent` or `kata-agent-3`, and each documented input of the policy is what the
//! service sends.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_plugin::{
    Agent, Container, ContainerError, Denied,
    api::{block_volume as wire, block_volume_ttrpc::BlockVolumeClient},
};
use async_trait::async_trait;
use serde_json::Value;
use ttrpc::r#async::{Client, Server};

/// The pages, relative to the crate.
const PAGES: [&str; 5] = [
    "README.md",
    "../docs/builders-guide.md",
    "../docs/policy.md",
    "../docs/guest-kernel.md",
    "../docs/conformance.md",
];

/// A fenced block, and the comments right before it.
struct Block {
    page: &'static str,
    origins: Vec<String>,
    language: String,
    text: String,
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn blocks() -> impl Iterator<Item = Block> {
    PAGES.into_iter().flat_map(blocks_of)
}

fn blocks_of(page: &'static str) -> Vec<Block> {
    let text = read(page);
    let (mut blocks, mut origins, mut lines) = (Vec::new(), Vec::new(), text.lines());
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("<!-- ") {
            origins.push(comment.strip_suffix(" -->").expect("one line").to_owned());
        } else if let Some(language) = line.strip_prefix("```") {
            let text = lines
                .by_ref()
                .take_while(|line| *line != "```")
                .map(|line| format!("{line}\n"))
                .collect();
            blocks.push(Block {
                page,
                origins: std::mem::take(&mut origins),
                language: language.to_owned(),
                text,
            });
        } else {
            assert!(origins.is_empty(), "{page}: no block after {origins:?}");
        }
    }
    blocks
}

#[test]
fn every_code_block_is_the_text_of_a_compiled_file() {
    let mut whole = Vec::new();
    for block in
        blocks().filter(|block| !["console", "text", "json"].contains(&block.language.as_str()))
    {
        let page = block.page;
        let [origin] = block.origins.as_slice() else {
            panic!("{page}: a code block without its file:\n{}", block.text)
        };
        if let Some(file) = origin.strip_prefix("all of ") {
            assert!(block.text == read(file), "{page} differs from {file}: copy the file again");
            whole.push(file.to_owned());
        } else if let Some(file) = origin.strip_prefix("lines of ") {
            let found = read(file).contains(&format!("\n{}", block.text));
            assert!(found, "{page}: {file} no longer has these lines:\n{}", block.text);
        } else if origin.starts_with("the version form of ") {
            // ci/publish builds the example with this line.
            let version = env!("CARGO_PKG_VERSION");
            let line = format!("agent-plugin = {{ version = \"{version}\", optional = true }}\n");
            assert_eq!(block.text, line, "{page}");
        } else {
            panic!("{page}: {origin}");
        }
    }
    let files = [
        "kata-agent/src/block_volume.rs",
        "kata-agent/src/block_volume/spec.rs",
        "kata-agent/src/block_volume/audit_log.rs",
        "kata-agent-3/src/getters/own_port.rs",
        "kata-agent-3/src/fields/block_volume/spec.rs",
        "kata-agent/src/no_pause.rs",
        "kata-agent/rules.rego",
    ];
    assert_eq!(whole, files.map(|file| format!("examples/{file}")));
}

/// Denies everything, and records each call.
#[derive(Default)]
struct Policy(Mutex<Vec<(String, Value)>>);

#[async_trait]
impl Agent for Policy {
    async fn container(&self, _: &str) -> Result<Container, ContainerError> {
        Err(ContainerError::Unknown)
    }

    async fn authorize(&self, method: &str, request: &Value) -> Result<(), Denied> {
        self.0.lock().unwrap().push((method.to_owned(), request.clone()));
        Err(Denied("no".into()))
    }
}

fn attachment() -> wire::Attachment {
    wire::Attachment {
        container_id: "c1".into(),
        controller: "0000:00:01.0".into(),
        address: Some(wire::ScsiAddress { target: 255, lun: 1, ..Default::default() }).into(),
        serial: "0123456789abcdef".into(),
        size: 16 << 20,
        path: "/dev/xvda".into(),
        access: wire::Access::ACCESS_READ_WRITE.into(),
        mode: 0o660,
        ..Default::default()
    }
}

#[tokio::test]
async fn every_documented_input_of_the_policy_is_what_the_service_sends() {
    let policy = Arc::new(Policy::default());
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/agent.sock", directory.path().display());
    let service = agent_plugin::service(policy.clone());
    let mut server = Server::new().bind(&address).unwrap().register_service(service);
    server.start().await.unwrap();
    let client = BlockVolumeClient::new(Client::connect(&address).await.unwrap());
    let context = || ttrpc::context::with_duration(Duration::from_secs(20));

    let (attachments, timeout_ms) = (vec![attachment()], 1000);
    let detachment =
        wire::Detachment { attachment: Some(attachment()).into(), ..Default::default() };
    let detachments = vec![detachment];
    let probe = wire::ProbeRequest {
        container_id: "c1".into(),
        paths: vec!["/dev/xvda".into()],
        mount_paths: vec!["/data".into()],
        ..Default::default()
    };
    client.probe(context(), &probe).await.unwrap();
    let attach =
        wire::AttachRequest { attachments: attachments.clone(), timeout_ms, ..Default::default() };
    client.attach(context(), &attach).await.unwrap();
    let detach =
        wire::DetachRequest { detachments: detachments.clone(), timeout_ms, ..Default::default() };
    client.detach(context(), &detach).await.unwrap();
    let inspect = wire::InspectRequest { attachments: detachments, ..Default::default() };
    client.inspect(context(), &inspect).await.unwrap();
    let resize = wire::ResizeRequest { attachments, timeout_ms, ..Default::default() };
    client.resize(context(), &resize).await.unwrap();

    let documented = blocks().filter(|block| block.language == "json").flat_map(|block| {
        let input: Value = serde_json::from_str(&block.text).expect("JSON");
        block.origins.into_iter().map(move |origin| {
            (
                origin.strip_prefix("input of ").expect("an input of the policy").to_owned(),
                input.clone(),
            )
        })
    });
    let asked = policy.0.lock().unwrap();
    assert_eq!(*asked, documented.collect::<Vec<_>>());
}
