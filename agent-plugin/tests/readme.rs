//! The builder's guide (README.md) cannot rot: each block of code in it is the text of a file that
//! is compiled or evaluated in `examples/kata-agent`, and each input of the policy is what the
//! service asks with.

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

/// A fenced block, and the comments right before it.
struct Block {
    origins: Vec<String>,
    language: String,
    text: String,
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn blocks() -> Vec<Block> {
    let text = read("README.md");
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
                origins: std::mem::take(&mut origins),
                language: language.to_owned(),
                text,
            });
        } else {
            assert!(origins.is_empty(), "no block after {origins:?}");
        }
    }
    blocks
}

#[test]
fn every_block_of_code_is_the_text_of_a_file_that_is_compiled() {
    let mut whole = Vec::new();
    for block in blocks()
        .iter()
        .filter(|block| !["console", "text", "json"].contains(&block.language.as_str()))
    {
        let [origin] = block.origins.as_slice() else {
            panic!("not held against a file:\n{}", block.text)
        };
        if let Some(file) = origin.strip_prefix("all of ") {
            assert!(
                block.text == read(file),
                "README.md does not have {file} as it is: copy it anew"
            );
            whole.push(file.to_owned());
        } else if let Some(file) = origin.strip_prefix("lines of ") {
            let found = read(file).contains(&format!("\n{}", block.text));
            assert!(found, "{file} does not have these lines any more:\n{}", block.text);
        } else {
            panic!("{origin}");
        }
    }
    let files = ["src/block_volume.rs", "src/own_port.rs", "src/no_pause.rs", "policy.rego"];
    assert_eq!(whole, files.map(|file| format!("examples/kata-agent/{file}")));
}

/// Denies everything, and notes what it was asked.
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
async fn every_input_of_the_policy_is_what_the_service_asks_with() {
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

    let documented =
        blocks().into_iter().filter(|block| block.language == "json").flat_map(|block| {
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
