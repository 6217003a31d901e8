//! The formats of kubectl's option `--output`, and its dry run.

use clap::ValueEnum;
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;

use super::error::Error;
use crate::resource::{BlockVolumeAttachment, GROUP};

/// How objects are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// The name alone
    Name,
    /// As JSON
    Json,
    /// As YAML
    Yaml,
    /// More columns
    Wide,
}

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum DryRun {
    /// It is done
    #[default]
    None,
    /// What would be sent is printed, and the API server is not asked to
    Client,
    /// The API server checks it, and changes nothing
    Server,
}

impl DryRun {
    /// What is added to the line that says what happened.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (client dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

/// A list of attachments, as kubectl prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentList<'a> {
    api_version: &'static str,
    kind: &'static str,
    items: &'a [BlockVolumeAttachment],
}

/// One attachment; `None` if the format is one for people.
///
/// # Errors
/// It cannot be printed so.
pub(super) fn one(
    format: Option<Output>,
    attachment: &BlockVolumeAttachment,
) -> Result<Option<String>, Error> {
    match format {
        Some(Output::Name) => Ok(Some(name(attachment))),
        format => document(format, attachment),
    }
}

/// Attachments; `None` if the format is one for people.
///
/// # Errors
/// They cannot be printed so.
pub(super) fn many(
    format: Option<Output>,
    items: &[BlockVolumeAttachment],
) -> Result<Option<String>, Error> {
    match format {
        Some(Output::Name) => Ok(Some(items.iter().map(name).collect())),
        format => document(format, &AttachmentList { api_version: "v1", kind: "List", items }),
    }
}

fn name(attachment: &BlockVolumeAttachment) -> String {
    let kind = BlockVolumeAttachment::kind(&()).to_lowercase();
    format!("{kind}.{GROUP}/{}\n", attachment.name_any())
}

fn document(format: Option<Output>, value: &impl Serialize) -> Result<Option<String>, Error> {
    match format {
        Some(Output::Json) => match serde_json::to_string_pretty(value) {
            Ok(text) => Ok(Some(text + "\n")),
            Err(e) => Err(Error::Format { format: "JSON", source: e.into() }),
        },
        Some(Output::Yaml) => match serde_saphyr::to_string(value) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(Error::Format { format: "YAML", source: e.into() }),
        },
        Some(Output::Name | Output::Wide) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn an_object_is_printed_as_kubectl_does() {
        let one_of = |format| one(Some(format), &sample::attachment()).unwrap().unwrap();
        assert_eq!(
            one_of(Output::Name),
            "blockvolumeattachment.block-volume.ecr-runtime.dev/scratch\n"
        );
        let yaml = one_of(Output::Yaml);
        assert!(yaml.contains("\nkind: BlockVolumeAttachment\n"), "{yaml}");
        let json: serde_json::Value = serde_json::from_str(&one_of(Output::Json)).unwrap();
        assert_eq!(json["spec"]["devicePath"], "/dev/xvda");
        assert_eq!(one(Some(Output::Wide), &sample::attachment()).unwrap(), None);
        let json = many(Some(Output::Json), &[sample::attachment()]).unwrap().unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["kind"], json["items"].as_array().unwrap().len()), (&"List".into(), 1));
    }
}
