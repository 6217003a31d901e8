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

/// The API server of the other tests is too old for rules in CEL, and drops them.
#[test]
fn nothing_but_the_limits_can_be_changed() {
    let generated = generated();
    let schema = &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let rules = schema["properties"]["spec"]["x-kubernetes-validations"].as_array().unwrap();
    let [rule] = &rules[..] else { panic!("{rules:#?}") };
    let rule = cel::Program::compile(rule["rule"].as_str().unwrap()).unwrap();
    let is_allowed = |old: &Value, new: &Value| {
        let mut context = cel::Context::default();
        context.add_variable("oldSelf", old).unwrap();
        context.add_variable("self", new).unwrap();
        rule.execute(&context).unwrap() == cel::Value::Bool(true)
    };
    let claim = |name: &str| json!({ "persistentVolumeClaim": { "claimName": name } });
    // As the API server has it, with its defaults.
    let device = json!({ "podName": "db-0", "containerName": "app", "source": claim("one"),
        "devicePath": "/dev/xvda", "readOnly": false });
    let mut mount = device.clone();
    mount.as_object_mut().unwrap().remove("devicePath");
    mount["mount"] = json!({ "path": "/data", "options": ["noatime"] });

    for spec in [&device, &mount] {
        let mut limited = spec.clone();
        limited["limits"] = json!({ "iops": 5 });
        for (old, new) in [(spec, &limited), (&limited, spec), (spec, spec)] {
            assert!(is_allowed(old, new), "{old} {new}");
        }
        for (field, value) in [
            ("podName", json!("db-1")),
            ("containerName", json!("other")),
            ("source", claim("two")),
            ("source", json!({ "hostPath": { "path": "/dev/vg/one" } })),
            ("devicePath", json!("/dev/xvdb")),
            ("mount", json!({ "path": "/data", "options": ["ro"] })),
            ("readOnly", json!(true)),
        ] {
            let mut changed = spec.clone();
            changed[field] = value;
            assert!(!is_allowed(spec, &changed), "{changed}");
        }
    }
    assert!(!is_allowed(&device, &mount) && !is_allowed(&mount, &device));
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
