//! The definition of the resource in the manifests is that of the types, and says what is wanted.
//! `ECR_RUNTIME_WRITE_DOCS=1` writes it anew.

use std::{fs, path::Path};

use block_volume_kubernetes::resource;
use serde_json::{Value, json};

fn generated() -> Value {
    serde_json::to_value(resource::definition()).unwrap()
}

#[test]
fn the_manifest_is_generated_from_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/base/crd.json");
    let text = serde_json::to_string_pretty(&generated()).unwrap() + "\n";
    if std::env::var_os("ECR_RUNTIME_WRITE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        text,
        "{} is out of date: run just docs",
        path.display()
    );
}

#[test]
fn exactly_one_source_is_required() {
    let generated = generated();
    let schema = &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let source = &schema["properties"]["spec"]["properties"]["source"];
    let one_of = json!([
        { "required": ["persistentVolumeClaim"] },
        { "required": ["hostPath"] },
    ]);
    assert_eq!(source["oneOf"], one_of, "{source:#}");
}

#[test]
fn exactly_one_kind_of_path_is_required() {
    let generated = generated();
    let schema = &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let spec = &schema["properties"]["spec"];
    let one_of = json!([{ "required": ["devicePath"] }, { "required": ["mount"] }]);
    assert_eq!(spec["oneOf"], one_of, "{spec:#}");
    // A null would be a path that is there, for the rule above.
    for path in ["devicePath", "mount"] {
        assert_eq!(spec["properties"][path]["nullable"], Value::Null);
    }
}

#[test]
fn conditions_are_a_map_by_their_type() {
    let generated = generated();
    let schema = &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let conditions = &schema["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-list-type"], "map", "{conditions:#}");
    assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
}

#[test]
fn every_field_is_explained() {
    fn check(path: &str, schema: &Value) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(property["description"].is_string(), "{path} has no description");
            check(&path, property);
            check(&path, &property["items"]);
        }
    }
    let generated = generated();
    let schema = &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    check("spec", &schema["spec"]);
    check("status", &schema["status"]);
}
