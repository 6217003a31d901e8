//! What the two service accounts may do: each verb on each resource of value is tried, those that
//! were not granted above all. What a user needs.

use block_volume_kubernetes::resource::{BlockVolumeAttachment, ConditionType, Truth};
use kube::{Api, Client, api::PostParams};
use serde_json::json;

use crate::{
    api_server::User,
    cluster::{Cluster, NAMESPACE},
    fake_host::FakeHost,
    tenant::{attachment, object},
};

const ATTACHMENTS: &str = "apis/block-volume.ecr-runtime.dev/v1alpha1";
const CORE: &str = "api/v1";
const EVENTS: &str = "apis/events.k8s.io/v1";
const LEASES: &str = "apis/coordination.k8s.io/v1";
const VERBS: [&str; 8] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What each account may do, cluster-wide: group, resource, subresource, verbs.
type Rights = &'static [(&'static str, &'static str, &'static str, &'static [&'static str])];

const CONTROLLER: Rights = &[
    (ATTACHMENTS, "blockvolumeattachments", "", &["get", "list", "watch", "patch"]),
    (ATTACHMENTS, "blockvolumeattachments", "status", &["patch"]),
    (ATTACHMENTS, "blockvolumeattachments", "finalizers", &["update"]),
    (CORE, "pods", "", &["get", "list", "watch", "create", "delete"]),
    (CORE, "persistentvolumeclaims", "", &["get", "list", "watch"]),
    (CORE, "nodes", "", &["get"]),
];
const NODE: Rights = &[
    (ATTACHMENTS, "blockvolumeattachments", "", &["get", "list", "watch"]),
    (ATTACHMENTS, "blockvolumeattachments", "status", &["patch"]),
    (EVENTS, "events", "", &["create", "patch"]),
];
/// What is of value to one who has taken an account: group, resource, subresource, whether it is in
/// a namespace.
const VALUABLE: [(&str, &str, &str, bool); 20] = [
    (ATTACHMENTS, "blockvolumeattachments", "", true),
    (ATTACHMENTS, "blockvolumeattachments", "status", true),
    (ATTACHMENTS, "blockvolumeattachments", "finalizers", true),
    (CORE, "pods", "", true),
    (CORE, "pods", "status", true),
    (CORE, "pods", "exec", true),
    (CORE, "pods", "ephemeralcontainers", true),
    (CORE, "secrets", "", true),
    (CORE, "configmaps", "", true),
    (CORE, "serviceaccounts", "token", true),
    (CORE, "persistentvolumes", "", false),
    (CORE, "persistentvolumeclaims", "", true),
    (CORE, "persistentvolumeclaims", "status", true),
    (CORE, "nodes", "", false),
    (CORE, "nodes", "proxy", false),
    (CORE, "namespaces", "", false),
    (EVENTS, "events", "", true),
    (LEASES, "leases", "", true),
    ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", "", false),
    ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions", "", false),
];

/// A request: `verb` on the object of this name, or on all.
#[derive(Debug, Clone, Copy)]
struct Attempt<'a> {
    group: &'a str,
    namespace: Option<&'a str>,
    resource: &'a str,
    subresource: &'a str,
    name: &'a str,
    verb: &'a str,
}

impl Attempt<'_> {
    /// Whether there is such a request: what is below an object has no list.
    fn exists(&self) -> bool {
        self.subresource.is_empty() || !["list", "watch", "deletecollection"].contains(&self.verb)
    }

    fn request(&self) -> hyper::Request<Vec<u8>> {
        let Self { group, resource, subresource, name, verb, .. } = self;
        let namespace = self.namespace.map(|name| format!("/namespaces/{name}"));
        let all = format!("/{group}{}/{resource}", namespace.unwrap_or_default());
        let one = format!("{all}/{name}/{subresource}").trim_end_matches('/').to_owned();
        let (method, path) = match *verb {
            "get" => ("GET", one),
            "list" => ("GET", all),
            "watch" => ("GET", format!("{all}?watch=true&timeoutSeconds=1")),
            "create" if subresource.is_empty() => ("POST", format!("{all}?dryRun=All")),
            "create" => ("POST", format!("{one}?dryRun=All")),
            "update" => ("PUT", format!("{one}?dryRun=All")),
            "patch" => ("PATCH", format!("{one}?dryRun=All")),
            "delete" => ("DELETE", format!("{one}?dryRun=All")),
            "deletecollection" => ("DELETE", format!("{all}?dryRun=All")),
            other => panic!("{other}"),
        };
        let patch = method == "PATCH";
        let body = "application/merge-patch+json";
        let request = hyper::Request::builder().method(method).uri(path);
        let request = request.header("content-type", if patch { body } else { "application/json" });
        let has_body = ["POST", "PUT", "PATCH"].contains(&method);
        request.body(if has_body { b"{}".to_vec() } else { Vec::new() }).unwrap()
    }

    /// Whether the API server lets `client` try it. What it says of the object, or of the empty
    /// body, is another matter.
    async fn is_allowed(&self, client: &Client) -> bool {
        let Self { verb, resource, subresource, .. } = self;
        let of = if subresource.is_empty() { "" } else { "/" };
        let refusal = format!("cannot {verb} resource \"{resource}{of}{subresource}\"");
        match client.request_text(self.request()).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                assert!(status.message.contains(&refusal), "{self:?}: {status:?}");
                false
            }
            _ => true,
        }
    }
}

#[tokio::test]
async fn each_account_may_do_what_it_needs_and_nothing_else() {
    let cluster = Cluster::start().await;
    let mut refused = 0;
    for (user, rights) in [(User::Controller, CONTROLLER), (User::Node, NODE), (User::Plain, &[])] {
        let client = cluster.server.client(user);
        for (group, resource, subresource, is_namespaced) in VALUABLE {
            for verb in VERBS {
                let namespace = is_namespaced.then_some(NAMESPACE);
                let attempt =
                    Attempt { group, namespace, resource, subresource, name: "one", verb };
                if !attempt.exists() {
                    continue;
                }
                let expected = rights.iter().any(|(a, b, c, verbs)| {
                    (*a, *b, *c) == (group, resource, subresource) && verbs.contains(&verb)
                });
                let allowed = attempt.is_allowed(&client).await;
                assert_eq!(allowed, expected, "{user:?}: {attempt:?}");
                refused += usize::from(!allowed);
            }
        }
    }
    println!("{refused} requests were refused");
}

#[tokio::test]
async fn of_all_leases_the_controller_may_have_its_own() {
    let cluster = Cluster::start().await;
    let own = "block-volume-controller";
    for (user, namespace, name, granted) in [
        (User::Controller, "block-volume", own, &["get", "create", "update"][..]),
        (User::Controller, "block-volume", "another", &["create"]),
        (User::Controller, "kube-system", own, &[]),
        (User::Node, "block-volume", own, &[]),
    ] {
        let client = cluster.server.client(user);
        for verb in VERBS {
            let (group, namespace) = (LEASES, Some(namespace));
            let (resource, subresource) = ("leases", "");
            let attempt = Attempt { group, namespace, resource, subresource, name, verb };
            let allowed = attempt.is_allowed(&client).await;
            assert_eq!(allowed, granted.contains(&verb), "{user:?}: {attempt:?}");
        }
    }
}

#[tokio::test]
async fn a_user_needs_the_right_to_create_attachments_in_a_namespace() {
    let cluster = Cluster::with_pod().await;
    let host = FakeHost::default();
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    let client = cluster.server.client(User::Plain);
    let attachments = Api::<BlockVolumeAttachment>::namespaced(client.clone(), NAMESPACE);
    let mut path = attachment("one", "db-0");
    path["spec"]["source"] = json!({ "hostPath": { "path": "/dev/vg/one" } });
    let new: BlockVolumeAttachment = object(path);
    let create = async || attachments.create(&PostParams::default(), &new).await;
    create().await.unwrap_err();
    let (role, subject) = ("attach-volumes", "--user=user");
    let in_namespace = &format!("--namespace={NAMESPACE}");
    cluster.server.kubectl(&[
        "create",
        "role",
        role,
        in_namespace,
        "--verb=create",
        "--resource=blockvolumeattachments.block-volume.ecr-runtime.dev",
    ]);
    let grant = ["create", "rolebinding", role, in_namespace, &format!("--role={role}"), subject];
    cluster.server.kubectl(&grant);
    // The rule is known to the API server a moment later.
    crate::wait::until("the user may create it", || async { create().await.is_ok() }).await;
    cluster.until_condition("one", ConditionType::Attached, Truth::True, "Attached").await;
    let elsewhere = Api::<BlockVolumeAttachment>::namespaced(client, "block-volume");
    elsewhere.create(&PostParams::default(), &new).await.unwrap_err();
}
