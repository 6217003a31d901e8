//! The manifests are applied, and deleted again, by kubectl.

use std::{fs, path::Path, process::Command};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        rbac::v1::ClusterRole,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::Api;

use crate::{
    api_server::{ApiServer, User, programs},
    wait::until,
};

/// A kustomization of the manifests, and what kubectl of Debian 13 makes of it.
fn built(kustomization: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    for part in ["base", "pod-monitor"] {
        let to = directory.path().join(part);
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(manifests.join(part)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n";
    let kustomization = format!("{head}resources: [base]\n{kustomization}");
    fs::write(directory.path().join("kustomization.yaml"), kustomization).unwrap();
    let program = programs().join("trixie/usr/bin/kubectl");
    let ran = Command::new(program).arg("kustomize").arg(directory.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// Without the rules in CEL: the API server of the tests does not know them, and refuses what it
/// does not know if it is to apply it.
const WITHOUT_CEL: &str = "patches:
- target: { kind: CustomResourceDefinition }
  patch: |
    - op: remove
      path: /spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations
";

#[tokio::test]
async fn manifests_can_be_applied_twice_and_deleted() {
    let server = ApiServer::start().await;
    let client = server.client(User::Admin);
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base.yaml");
    fs::write(&base, built(WITHOUT_CEL)).unwrap();
    let file = format!("--filename={}", base.display());
    for _ in 0..2 {
        server.kubectl(&["apply", "--server-side", &file]);
    }
    let deployments = Api::<Deployment>::namespaced(client.clone(), "block-volume");
    let agents = Api::<DaemonSet>::namespaced(client.clone(), "block-volume");
    let controller = deployments.get("block-volume-controller").await.unwrap();
    let container = &controller.spec.unwrap().template.spec.unwrap().containers[0];
    assert_eq!(container.image.as_deref(), Some("block-volume-kubernetes:0.1.0"));
    let environment = container.env.iter().flatten();
    let image = environment.filter(|variable| variable.name == "IMAGE");
    let image: Vec<_> = image.map(|variable| &variable.value).collect();
    assert_eq!(image, [&container.image], "attachment pods have another image");
    assert!(agents.get_opt("block-volume-node").await.unwrap().is_some());

    server.kubectl(&["delete", "--wait=false", &file]);
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let roles = Api::<ClusterRole>::all(client);
    let name = "blockvolumeattachments.block-volume.ecr-runtime.dev";
    until("nothing is left", || async {
        deployments.get_opt("block-volume-controller").await.unwrap().is_none()
            && agents.get_opt("block-volume-node").await.unwrap().is_none()
            && definitions.get_opt(name).await.unwrap().is_none()
            && roles.get_opt("block-volume-controller").await.unwrap().is_none()
            && roles.get_opt("block-volume-node").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn the_base_is_built_with_the_component_for_prometheus() {
    let built = built("namespace: block-volume\ncomponents: [pod-monitor]\n");
    let monitor = built.split("---\n").find(|one| one.contains("kind: PodMonitor")).unwrap();
    for line in ["  name: block-volume", "  namespace: block-volume", "    port: http"] {
        assert!(monitor.lines().any(|one| one.trim_end() == line), "{line:?}: {monitor}");
    }
    assert!(built.contains("kind: DaemonSet") && built.contains("kind: Deployment"));
}
