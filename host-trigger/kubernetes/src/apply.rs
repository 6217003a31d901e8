//! Writing a part of an attachment
//! ([server-side apply](https://kubernetes.io/docs/reference/using-api/server-side-apply/)).

use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{error::Error, resource::BlockVolumeAttachment};

/// The version of the API, as an object names it.
pub(crate) fn api_version() -> String {
    BlockVolumeAttachment::api_version(&()).into_owned()
}

/// Applies `body` as the fields of the status that `manager` owns.
///
/// # Errors
/// The attachment is gone, or the API server does not accept it.
pub(crate) async fn apply_status(
    client: &Client,
    attachment: &BlockVolumeAttachment,
    manager: &str,
    body: &Value,
) -> Result<(), Error> {
    let namespace = attachment.namespace().unwrap_or_default();
    let all = Api::<BlockVolumeAttachment>::namespaced(client.clone(), &namespace);
    let wanted = json!({
        "apiVersion": api_version(),
        "kind": "BlockVolumeAttachment",
        "metadata": { "uid": attachment.metadata.uid },
        "status": body,
    });
    let force = PatchParams::apply(manager).force();
    all.patch_status(&attachment.name_any(), &force, &Patch::Apply(&wanted)).await?;
    Ok(())
}
