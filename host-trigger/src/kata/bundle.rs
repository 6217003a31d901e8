//! Which sandbox a container is in, by its bundle's `config.json`
//! ([OCI runtime specification](https://github.com/opencontainers/runtime-spec/blob/main/config.md)).
//! Kata's Rust runtime keeps nothing of the kind itself.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use block_volume_qmp::Trust;
use serde::Deserialize;

use super::{
    annotations::Annotations,
    layout::{check_id, directories},
    run_file,
};
use crate::{Error, pod::PodView};

/// Where containerd has bundles, `<namespace>/<cid>`; k3s and RKE2 bring their own containerd.
const CONTAINERD: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/k3s/containerd/io.containerd.runtime.v2.task",
];
/// Where CRI-O has them, `<cid>/userdata`.
const CRIO: &str = "/run/containers/storage/overlay-containers";
/// A container with many mounts has some hundred KiB.
const MAX_CONFIG: u64 = 16 << 20;

/// The directories with bundles.
#[derive(Debug, Clone)]
pub struct Bundles {
    /// Of containerd: they have a directory for each namespace.
    pub containerd: Vec<PathBuf>,
    /// Of CRI-O.
    pub crio: Vec<PathBuf>,
}

impl Default for Bundles {
    fn default() -> Self {
        Self { containerd: CONTAINERD.map(PathBuf::from).to_vec(), crio: vec![CRIO.into()] }
    }
}

/// A container and the sandbox that it is in; the pause container is in the sandbox of its own ID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BundledContainer {
    pub(super) id: String,
    pub(super) sandbox: String,
}

impl Bundles {
    /// Whether the container `id` has a bundle.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub(super) fn has(&self, id: &str) -> Result<bool, Error> {
        Ok(self.files(id)?.iter().any(|(found, _)| found == id))
    }

    /// The containers whose IDs begin with `prefix`. A bundle that is not complete yet, or that
    /// another user could have written, has none.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub(super) fn containers(
        &self,
        prefix: &str,
        trust: &Trust,
    ) -> Result<Vec<BundledContainer>, Error> {
        let files = self.files(prefix)?.into_iter();
        let mut found: Vec<_> = files
            .filter_map(|(id, config)| {
                let annotations = annotations(&config, trust)?;
                let sandbox = annotations.sandbox().unwrap_or(&id).to_owned();
                check_id("sandbox", &sandbox).ok()?;
                Some(BundledContainer { id, sandbox })
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The pod of the container or of the sandbox `id`, and the container's name there; `None` if
    /// no container engine has noted them. What others than root could have written is not used.
    pub(crate) fn pod(&self, id: &str, trust: &Trust) -> Option<PodView> {
        let its = self.annotations_of(id, trust)?;
        let pod = its.pod().or_else(|| {
            // CRI-O notes the pod at its sandbox alone.
            let sandbox = its.sandbox().filter(|sandbox| check_id("sandbox", sandbox).is_ok())?;
            self.annotations_of(sandbox, trust)?.pod()
        })?;
        Some(PodView::new(&pod, its.container()))
    }

    fn annotations_of(&self, id: &str, trust: &Trust) -> Option<Annotations> {
        let files = self.files(id).ok()?.into_iter().filter(|(found, _)| found == id);
        files.filter_map(|(_, config)| annotations(&config, trust)).next()
    }

    /// An annotation of the container `id`, if its bundle can be used and has it.
    pub(super) fn annotation(&self, id: &str, name: &str, trust: &Trust) -> Option<String> {
        Some(self.annotations_of(id, trust)?.get(name)?.to_owned())
    }

    /// The bundles of such containers: the ID and the file `config.json`.
    fn files(&self, prefix: &str) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut parents = Vec::new();
        for root in &self.containerd {
            parents.extend(directories(root)?.iter().map(|name| (root.join(name), "")));
        }
        parents.extend(self.crio.iter().map(|root| (root.clone(), "userdata")));
        let mut files = Vec::new();
        for (parent, below) in parents {
            let ids = directories(&parent)?.into_iter().filter(|id| id.starts_with(prefix));
            files.extend(ids.map(|id| {
                let config = parent.join(&id).join(below).join("config.json");
                (id, config)
            }));
        }
        Ok(files)
    }
}

/// The annotations in `config`; `None` if the file cannot be used.
fn annotations(config: &Path, trust: &Trust) -> Option<Annotations> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: Option<Annotations>,
    }
    let mut text = Vec::new();
    run_file::open(config, trust).ok()??.take(MAX_CONFIG).read_to_end(&mut text).ok()?;
    let config = serde_json::from_slice::<Config>(&text).ok()?;
    Some(config.annotations.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use rstest::rstest;

    use super::{super::test_tree::tree, *};

    const CONTAINERD: &str = "containerd/k8s.io/c1/config.json";

    /// The containers in a tree with these files.
    fn containers(files: &[(&str, &str)], prefix: &str) -> Vec<(String, String)> {
        let root = tree(files);
        let found = bundles(root.path()).containers(prefix, &Trust::root()).unwrap();
        found.into_iter().map(|container| (container.id, container.sandbox)).collect()
    }

    fn bundles(root: &Path) -> Bundles {
        Bundles { containerd: vec![root.join("containerd")], crio: vec![root.join("crio")] }
    }

    #[rstest]
    #[case::containerd(
        CONTAINERD,
        r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1"}}"#,
        Some("s1")
    )]
    #[case::crio(
        "crio/c1/userdata/config.json",
        r#"{"annotations":{"io.kubernetes.cri-o.SandboxID":"s1"}}"#,
        Some("s1")
    )]
    #[case::without_cri(CONTAINERD, r#"{"annotations":{}}"#, Some("c1"))]
    #[case::without_annotations(CONTAINERD, r#"{"annotations":null}"#, Some("c1"))]
    #[case::beginning_of_a_file(CONTAINERD, r#"{"annotations":{"io.kub"#, None)]
    #[case::no_id(CONTAINERD, r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"../s1"}}"#, None)]
    #[case::another_place("containerd/c1/config.json", "{}", None)]
    fn the_sandbox_of_a_container_is_in_its_configuration(
        #[case] file: &str,
        #[case] text: &str,
        #[case] sandbox: Option<&str>,
    ) {
        let expected: Vec<_> =
            sandbox.map(|id| ("c1".to_owned(), id.to_owned())).into_iter().collect();
        assert_eq!(containers(&[(file, text)], "c"), expected);
        assert_eq!(containers(&[(file, text)], "d"), []);
    }

    #[test]
    fn an_annotation_is_that_of_the_very_container() {
        let root = tree(&[
            (CONTAINERD, r#"{"annotations":{"a":"1"}}"#),
            ("containerd/k8s.io/c11/config.json", r#"{"annotations":{"a":"2","b":"3"}}"#),
        ]);
        let annotation = |name| bundles(root.path()).annotation("c1", name, &Trust::root());
        assert_eq!((annotation("a").as_deref(), annotation("b")), (Some("1"), None));
    }

    #[test]
    fn a_configuration_that_others_can_write_is_not_used() {
        let root = tree(&[(CONTAINERD, "{}")]);
        let others = fs::Permissions::from_mode(0o666);
        fs::set_permissions(root.path().join(CONTAINERD), others).unwrap();
        assert_eq!(bundles(root.path()).containers("", &Trust::root()).unwrap(), []);
        assert!(bundles(root.path()).has("c1").unwrap());
    }

    #[test]
    fn without_a_container_engine_there_are_none() {
        assert_eq!(containers(&[], ""), []);
    }

    #[test]
    fn the_pod_of_a_container_is_in_its_annotations_or_in_its_sandboxs() {
        let root = tree(&[
            (
                CONTAINERD,
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1","io.kubernetes.cri.sandbox-namespace":"shop",
                "io.kubernetes.cri.sandbox-name":"db-0","io.kubernetes.cri.container-name":"app"}}"#,
            ),
            (
                "crio/c2/userdata/config.json",
                r#"{"annotations":{"io.kubernetes.cri-o.SandboxID":"s2","io.kubernetes.cri-o.Metadata":"{\"name\":\"app\"}"}}"#,
            ),
            (
                "crio/s2/userdata/config.json",
                r#"{"annotations":{"io.kubernetes.cri-o.SandboxID":"s2","io.kubernetes.cri-o.ContainerType":"sandbox",
                "io.kubernetes.cri-o.Metadata":"{\"name\":\"web\",\"namespace\":\"shop\"}"}}"#,
            ),
            (
                "crio/c3/userdata/config.json",
                r#"{"annotations":{"io.kubernetes.cri-o.SandboxID":"../s2"}}"#,
            ),
        ]);
        let pod = |id: &str| {
            let pod = bundles(root.path()).pod(id, &Trust::root());
            pod.map(|pod| pod.to_string()).unwrap_or_default()
        };
        assert_eq!(
            ["c1", "c2", "s2", "c3", "c4"].map(pod),
            ["shop/db-0 app", "shop/web app", "shop/web", "", ""]
        );
    }
}
