//! What the two service accounts may not do: every verb that they do not need is tried.

use kube::{Client, core::Request};
use serde_json::{Value, json};

use crate::{api_server::User, cluster::Cluster};

const ATTACHMENTS: &str = "block-volume.ecr-runtime.dev";
const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];

/// What each account may do, cluster-wide: group, resource, subresource, verbs.
type Rights = &'static [(&'static str, &'static str, &'static str, &'static [&'static str])];

const CONTROLLER: Rights = &[
    (ATTACHMENTS, "blockvolumeattachments", "", &["get", "list", "watch", "patch"]),
    (ATTACHMENTS, "blockvolumeattachments", "status", &["patch"]),
    (ATTACHMENTS, "blockvolumeattachments", "finalizers", &["update"]),
    ("", "pods", "", &["get", "list", "watch", "create", "delete"]),
    ("", "persistentvolumeclaims", "", &["get", "list", "watch"]),
    ("", "nodes", "", &["get"]),
];
const NODE: Rights = &[
    (ATTACHMENTS, "blockvolumeattachments", "", &["get", "list", "watch"]),
    (ATTACHMENTS, "blockvolumeattachments", "status", &["patch"]),
    ("events.k8s.io", "events", "", &["create", "patch"]),
];
/// What is of value to one who has taken an account.
const VALUABLE: [(&str, &str, &str); 17] = [
    (ATTACHMENTS, "blockvolumeattachments", ""),
    (ATTACHMENTS, "blockvolumeattachments", "status"),
    (ATTACHMENTS, "blockvolumeattachments", "finalizers"),
    ("", "pods", ""),
    ("", "pods", "exec"),
    ("", "pods", "ephemeralcontainers"),
    ("", "secrets", ""),
    ("", "configmaps", ""),
    ("", "serviceaccounts", "token"),
    ("", "persistentvolumes", ""),
    ("", "persistentvolumeclaims", ""),
    ("", "nodes", ""),
    ("", "namespaces", ""),
    ("events.k8s.io", "events", ""),
    ("coordination.k8s.io", "leases", ""),
    ("rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("apiextensions.k8s.io", "customresourcedefinitions", ""),
];

async fn may(client: &Client, group: &str, resource: &str, subresource: &str, verb: &str) -> bool {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "group": group, "resource": resource, "subresource": subresource, "verb": verb,
        }},
    });
    let request = Request::new("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
    let request = request.create(&Default::default(), review.to_string().into_bytes()).unwrap();
    let reply: Value = client.request(request).await.unwrap();
    reply["status"]["allowed"] == true
}

#[tokio::test]
async fn each_account_may_do_what_it_needs_and_nothing_else() {
    let cluster = Cluster::start().await;
    for (user, rights) in [(User::Controller, CONTROLLER), (User::Node, NODE), (User::Plain, &[])] {
        let client = cluster.server.client(user);
        for (group, resource, subresource) in VALUABLE {
            for verb in VERBS {
                let expected = rights.iter().any(|(a, b, c, verbs)| {
                    (*a, *b, *c) == (group, resource, subresource) && verbs.contains(&verb)
                });
                let allowed = may(&client, group, resource, subresource, verb).await;
                let what = format!("{user:?}: {verb} {group} {resource}/{subresource}");
                assert_eq!(allowed, expected, "{what}");
            }
        }
    }
}
