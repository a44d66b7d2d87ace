use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-02T03:04:05Z";
const LATER: &str = "2026-01-02T03:04:06Z";

fn by<'a>(manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, subresource: "", api_version: "apps/v1", now }
}

fn deployments() -> Schema<'static> {
    Schema::of_type("api.apps.v1.Deployment")
}

fn deployment(replicas: u32, containers: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers},
        }},
    })
}

fn fields(managed: &Managed, manager: &str) -> Value {
    let all = managed.to_value();
    let found = all.as_array().unwrap().iter().find(|e| e["manager"] == manager);
    found.map(|e| e["fieldsV1"].clone()).unwrap_or_default()
}

#[test]
fn an_updater_owns_what_it_changed_in_the_form_of_go() {
    let ports = json!([{"containerPort": 80, "protocol": "TCP"}]);
    let new = deployment(1, json!([{"name": "c", "image": "i", "resources": {}, "ports": ports}]));
    let mut managed = Managed::default();
    managed.update(&compare(deployments(), &json!({}), &new), &by("create", NOW));
    assert_eq!(
        fields(&managed, "create"),
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:image": {}, "f:name": {}, "f:resources": {},
                    "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                        ".": {}, "f:containerPort": {}, "f:protocol": {},
                    }},
                }}},
            }},
        })
    );
    assert_eq!(Managed::parse(&managed.to_value()), Some(managed));
}

#[test]
fn conflicts_are_refused_and_forced() {
    let config = |n: u32| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": n}});
    let live = deployment(1, json!([{"name": "c", "image": "i"}]));
    let mut managed = Managed::default();
    managed.update(&compare(deployments(), &json!({}), &live), &by("kubectl-client-side-apply", NOW));
    let refused = managed.apply(deployments(), &live, &config(3), &by("x", NOW), false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    // The same value is no conflict: both own it.
    let mut shared = managed.clone();
    assert_eq!(shared.apply(deployments(), &live, &config(1), &by("x", NOW), false).unwrap(), live);
    assert_eq!(fields(&shared, "x"), json!({"f:spec": {"f:replicas": {}}}));
    let new = managed.apply(deployments(), &live, &config(3), &by("x", NOW), true).unwrap();
    assert_eq!(new["spec"]["replicas"], 3);
    assert!(fields(&managed, "kubectl-client-side-apply")["f:spec"]["f:replicas"].is_null());
    // An image of a container of another applier.
    let containers = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": 4, "template": {"spec": {"containers": [{"name": "c", "image": "other"}]}},
    }});
    let refused = managed.apply(deployments(), &new, &containers, &by("y", NOW), false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.template.spec.containers[name=\"c\"].image\nconflicts with \"x\":\n- .spec.replicas"
    );
}

#[test]
fn what_is_applied_no_longer_goes_unless_others_own_it() {
    let config =
        |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    let maps = Schema::of_type("api.core.v1.ConfigMap");
    let mut managed = Managed::default();
    let v = managed.apply(maps, &json!({}), &config(json!({"a": "1", "b": "1"})), &by("x", NOW), false).unwrap();
    let v = managed.apply(maps, &v, &config(json!({"b": "1", "c": "1"})), &by("y", NOW), false).unwrap();
    assert_eq!(v["data"], json!({"a": "1", "b": "1", "c": "1"}));
    let v = managed.apply(maps, &v, &config(json!({})), &by("x", NOW), false).unwrap();
    assert_eq!(v["data"], json!({"b": "1", "c": "1"}));
    assert_eq!(fields(&managed, "y"), json!({"f:data": {"f:b": {}, "f:c": {}}}));
    let again = managed.clone();
    let same = managed.apply(maps, &v, &config(json!({"b": "1", "c": "1"})), &by("y", LATER), false).unwrap();
    assert_eq!((&same, &managed), (&v, &again));
    let v = managed.apply(
        maps,
        &v,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}),
        &by("y", NOW),
        false,
    );
    assert!(v.unwrap()["data"].as_object().is_none_or(|d| d.is_empty()));
}

#[test]
fn a_container_goes_with_what_was_defaulted_in_it() {
    let config = |names: &[&str]| {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": "i"})).collect();
        deployment(1, containers.into())
    };
    let mut managed = Managed::default();
    let mut v = managed.apply(deployments(), &json!({}), &config(&["a", "b"]), &by("x", NOW), false).unwrap();
    v["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
    let v = managed.apply(deployments(), &v, &config(&["b"]), &by("x", NOW), false).unwrap();
    assert_eq!(v["spec"]["template"]["spec"]["containers"], json!([{"name": "b", "image": "i"}]));
    let twice = managed.apply(deployments(), &v, &config(&["b", "b"]), &by("x", NOW), false).unwrap_err();
    assert_eq!(twice.to_string(), "errors:\n  .spec.template.spec.containers: duplicate entries for key [name=\"b\"]");
}

#[test]
fn lists_keep_the_order_of_the_configuration() {
    let maps = Schema::of_type("api.core.v1.ConfigMap");
    let meta = |f: &[&str]| json!({"metadata": {"finalizers": f}});
    let mut live = meta(&["a/1", "b/1", "c/1"]);
    merge(maps, &mut live, &meta(&["c/1", "x/1", "a/1"]));
    let mut names: Vec<&str> =
        live["metadata"]["finalizers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(names.iter().position(|n| *n == "c/1") < names.iter().position(|n| *n == "x/1"), "{names:?}");
    assert!(names.iter().position(|n| *n == "x/1") < names.iter().position(|n| *n == "a/1"), "{names:?}");
    names.sort_unstable();
    assert_eq!(names, ["a/1", "b/1", "c/1", "x/1"]);
}

#[test]
fn custom_kinds_go_by_their_schema() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                  "items": {"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "args": {"type": "array", "items": {"type": "string"}},
        "ref": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string"}}},
    }}}});
    let object = json!({"kind": "K", "metadata": {"name": "x", "labels": {"l": "1"}}, "spec": {
        "ports": [{"port": 1, "name": "a"}], "tags": ["t"], "args": ["x"], "ref": {"a": "b"},
    }});
    let mut managed = Managed::default();
    managed.apply(Schema::CustomRoot(&schema), &json!({}), &object, &by("x", NOW), false).unwrap();
    assert_eq!(
        fields(&managed, "x"),
        json!({"f:metadata": {"f:labels": {"f:l": {}}}, "f:spec": {
            "f:args": {}, "f:ports": {"k:{\"port\":1}": {".": {}, "f:name": {}, "f:port": {}}},
            "f:ref": {}, "f:tags": {"v:\"t\"": {}},
        }})
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_from_its_own_side() {
    let mut live = deployment(1, json!([{"name": "c", "image": "i"}]));
    let last = live.to_string();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: last});
    let mut managed = Managed::default();
    managed.update(&compare(deployments(), &json!({}), &live), &by("kubectl-client-side-apply", NOW));
    let config = json!({"spec": {"replicas": 5}});
    managed.clone().apply(deployments(), &live, &config, &by("kubectl", NOW), false).unwrap();
    managed.apply(deployments(), &live, &config, &by("other", NOW), false).unwrap_err();
}

#[test]
fn many_updaters_become_few() {
    let maps = Schema::of_type("api.core.v1.ConfigMap");
    let mut managed = Managed::default();
    let mut v = json!({"data": {}});
    for i in 0..30 {
        let mut next = v.clone();
        next["data"][format!("k{i}")] = "v".into();
        let now = format!("2026-01-02T03:04:{i:02}Z");
        managed.update(&compare(maps, &v, &next), &by(&format!("m{i}"), &now));
        v = next;
    }
    let all = managed.to_value();
    assert_eq!(all.as_array().unwrap().len(), 10);
    assert_eq!(fields(&managed, "ancient-changes")["f:data"].as_object().unwrap().len(), 21);
}

fn data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", "[0-2]", 0..4).prop_map(|m| json!({"metadata": {"name": "x"}, "data": m}))
}

proptest! {
    #[test]
    fn sets_survive_writing_and_reading(value in data()) {
        let set = fields_of(Schema::of_type("api.core.v1.ConfigMap"), &value);
        prop_assert_eq!(FieldSet::parse(&set.to_value()), Some(set));
    }

    #[test]
    fn nothing_belongs_to_two_that_disagree(steps in prop::collection::vec((data(), 0..3_usize, any::<bool>()), 1..12)) {
        let maps = Schema::of_type("api.core.v1.ConfigMap");
        let mut live = json!({});
        let mut managed = Managed::default();
        for (config, who, force) in steps {
            let manager = ["x", "y", "z"][who];
            let Ok(new) = managed.apply(maps, &live, &config, &by(manager, NOW), force) else {
                prop_assert!(!force);
                continue;
            };
            // What was applied is there, and nothing is there that nobody applied.
            for (k, v) in config["data"].as_object().unwrap() {
                prop_assert_eq!(&new["data"][k], v);
            }
            let mut owned = FieldSet::default();
            for entry in managed.to_value().as_array().unwrap() {
                owned.add(&FieldSet::parse(&entry["fieldsV1"]).unwrap());
            }
            for k in new["data"].as_object().into_iter().flatten().map(|(k, _)| k) {
                prop_assert!(owned.paths().contains(&format!(".data.{k}")), "{} {:?}", k, owned.paths());
            }
            // Applying again changes nothing.
            let mut again = managed.clone();
            prop_assert_eq!(&again.apply(maps, &new, &config, &by(manager, LATER), force).unwrap(), &new);
            prop_assert_eq!(&again, &managed);
            live = new;
        }
    }
}
