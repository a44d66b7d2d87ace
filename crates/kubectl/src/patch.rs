//! Patches that kubectl makes: from what was applied before, what is to be, and what is there.
//!
//! Lists of built-in types merge by the key that the table of types has for them; a three-way patch takes away only
//! what was applied before and is gone now, and never what others have added.

use serde_json::{Map, Value, json};
use skiff_api::fields::{self, Field, Type, TypeDef};

/// The annotation that remembers what was applied.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object as it is to be remembered, as text; `object` gets that as its annotation.
pub(crate) fn remember(object: &mut Value) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.shift_remove(LAST_APPLIED);
    }
    let text = format!("{}\n", crate::print::json::compact(object));
    object["metadata"]["annotations"][LAST_APPLIED] = text.into();
}

/// What was applied before, or nothing.
pub(crate) fn remembered(object: &Value) -> Value {
    let text = object["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or(Value::Null)
}

/// Takes away all nulls, as an apply that creates an object does.
pub(crate) fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// A strategic merge patch that makes `modified` of `current`, given what was applied before. Empty if nothing is to do.
pub(crate) fn three_way_strategic(original: &Value, modified: &Value, current: &Value, type_name: &str) -> Value {
    let def = fields::lookup(type_name);
    let nothing = Map::new();
    let map = |value: &'_ Value| value.as_object().cloned().unwrap_or_default();
    let additions = Differ { deletions: false, additions: true };
    let deletions = Differ { deletions: true, additions: false };
    let delta = additions.maps(&map(current), &map(modified), def, false);
    let gone = match original {
        Value::Null => nothing,
        original => deletions.maps(&map(original), &map(modified), def, false),
    };
    Value::Object(join(gone, delta, def))
}

/// A strategic merge patch that makes `modified` of `original`.
pub(crate) fn two_way_strategic(original: &Value, modified: &Value, type_name: &str) -> Value {
    let both = Differ { deletions: true, additions: true };
    let map = |value: &Value| value.as_object().cloned().unwrap_or_default();
    Value::Object(both.maps(&map(original), &map(modified), fields::lookup(type_name), false))
}

/// A merge patch for kinds whose types are not known here.
pub(crate) fn three_way_merge(original: &Value, modified: &Value, current: &Value) -> Value {
    let mut patch = Map::new();
    keep(&two_way_merge(original, modified), true, &mut patch);
    let mut additions = Map::new();
    keep(&two_way_merge(current, modified), false, &mut additions);
    json_merge(&mut patch, additions);
    Value::Object(patch)
}

/// A merge patch that makes `modified` of `original`.
pub(crate) fn two_way_merge(original: &Value, modified: &Value) -> Value {
    let (Some(from), Some(to)) = (original.as_object(), modified.as_object()) else { return modified.clone() };
    let mut patch = Map::new();
    for (key, value) in to {
        match from.get(key) {
            Some(before) if before == value => {}
            Some(before) if before.is_object() && value.is_object() => {
                let inner = two_way_merge(before, value);
                if inner.as_object().is_some_and(|inner| !inner.is_empty()) {
                    patch.insert(key.clone(), inner);
                }
            }
            _ => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Only the nulls of a patch, or only what is not null.
fn keep(patch: &Value, nulls: bool, out: &mut Map<String, Value>) {
    for (key, value) in patch.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => {
                let mut inner = Map::new();
                keep(value, nulls, &mut inner);
                if !inner.is_empty() {
                    out.insert(key.clone(), Value::Object(inner));
                }
            }
            value if value.is_null() == nulls => drop(out.insert(key.clone(), value.clone())),
            _ => {}
        }
    }
}

fn json_merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(inner)), Value::Object(value)) => json_merge(inner, value),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn struct_of(ty: &Type) -> Option<&'static TypeDef> {
    match ty {
        Type::Ref(name) => fields::lookup(name).filter(|def| def.is.is_none()),
        Type::Map(inner) | Type::List(inner) => struct_of(inner),
        Type::Scalar(_) => None,
    }
}

/// What a difference is to tell.
#[derive(Clone, Copy)]
struct Differ {
    deletions: bool,
    additions: bool,
}

impl Differ {
    fn maps(
        self,
        from: &Map<String, Value>,
        to: &Map<String, Value>,
        def: Option<&'static TypeDef>,
        retain_keys: bool,
    ) -> Map<String, Value> {
        let mut patch = Map::new();
        for (key, value) in to {
            let field = def.and_then(|def| def.field(key));
            match (from.get(key), value) {
                (Some(Value::Object(before)), Value::Object(after)) => {
                    if field.is_some_and(|field| field.strategy == Some("replace")) {
                        self.replace(key, from, value, &mut patch);
                        continue;
                    }
                    let retain = field.is_some_and(Field::retains_keys);
                    let inner = self.maps(before, after, field.and_then(|field| struct_of(&field.ty)), retain);
                    if !inner.is_empty() {
                        patch.insert(key.clone(), Value::Object(inner));
                    }
                }
                (Some(Value::Array(before)), Value::Array(after)) => match field.filter(|field| field.merges()) {
                    Some(field) => self.lists(key, before, after, field, &mut patch),
                    None => self.replace(key, from, value, &mut patch),
                },
                _ => self.replace(key, from, value, &mut patch),
            }
        }
        if self.deletions {
            for key in from.keys().filter(|key| !to.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
        }
        let new_field = to.keys().any(|key| !from.contains_key(key));
        if retain_keys && !to.is_empty() && (!patch.is_empty() || new_field) {
            let mut keys: Vec<_> = to.keys().cloned().collect();
            keys.sort();
            patch.insert("$retainKeys".into(), keys.into());
        }
        patch
    }

    fn replace(self, key: &str, from: &Map<String, Value>, value: &Value, patch: &mut Map<String, Value>) {
        if self.additions && from.get(key) != Some(value) {
            patch.insert(key.to_owned(), value.clone());
        }
    }

    fn lists(self, key: &str, from: &[Value], to: &[Value], field: &Field, patch: &mut Map<String, Value>) {
        let Some(merge_key) = field.merge_key else {
            return self.sets(key, from, to, patch);
        };
        if from.is_empty() {
            if self.additions && !to.is_empty() {
                patch.insert(key.to_owned(), to.into());
            }
            return;
        }
        let find = |items: &[Value], wanted: &Value| items.iter().find(|item| item[merge_key] == *wanted).cloned();
        let mut changes = Vec::new();
        for item in to {
            match find(from, &item[merge_key]) {
                Some(before) => {
                    let (Some(before), Some(after)) = (before.as_object(), item.as_object()) else { continue };
                    let mut inner = self.maps(before, after, struct_of(&field.ty), field.retains_keys());
                    if !inner.is_empty() {
                        inner.insert(merge_key.to_owned(), item[merge_key].clone());
                        changes.push(Value::Object(inner));
                    }
                }
                None if self.additions => changes.push(item.clone()),
                None => {}
            }
        }
        if self.deletions {
            for item in from.iter().filter(|item| find(to, &item[merge_key]).is_none()) {
                changes.push(json!({merge_key: item[merge_key], "$patch": "delete"}));
            }
        }
        let order = |items: &[Value]| items.iter().map(|item| item[merge_key].clone()).collect::<Vec<_>>();
        let reordered = self.deletions && order(from) != order(to);
        if !changes.is_empty() || reordered {
            let keys: Vec<Value> = to.iter().map(|item| json!({merge_key: item[merge_key]})).collect();
            patch.insert(format!("$setElementOrder/{key}"), keys.into());
        }
        if !changes.is_empty() {
            patch.insert(key.to_owned(), changes.into());
        }
    }

    /// Lists of scalars that merge.
    fn sets(self, key: &str, from: &[Value], to: &[Value], patch: &mut Map<String, Value>) {
        let added: Vec<Value> = match self.additions {
            true => to.iter().filter(|item| !from.contains(item)).cloned().collect(),
            false => Vec::new(),
        };
        let gone: Vec<Value> = match self.deletions {
            true => from.iter().filter(|item| !to.contains(item)).cloned().collect(),
            false => Vec::new(),
        };
        if !from.is_empty() && (!added.is_empty() || !gone.is_empty() || self.deletions && from != to) {
            patch.insert(format!("$setElementOrder/{key}"), to.into());
        }
        if !added.is_empty() {
            patch.insert(key.to_owned(), added.into());
        }
        if !gone.is_empty() {
            patch.insert(format!("$deleteFromPrimitiveList/{key}"), gone.into());
        }
    }
}

/// One patch of one that deletes and one that adds and changes.
fn join(mut patch: Map<String, Value>, delta: Map<String, Value>, def: Option<&'static TypeDef>) -> Map<String, Value> {
    for (key, value) in delta {
        let field = def.and_then(|def| def.field(&key));
        let inner = field.and_then(|field| struct_of(&field.ty));
        match (patch.get_mut(&key), value) {
            (Some(Value::Object(before)), Value::Object(after)) => {
                let joined = join(std::mem::take(before), after, inner);
                *before = joined;
            }
            (Some(Value::Array(before)), Value::Array(after)) if !key.starts_with('$') => {
                match field.filter(|field| field.merges()).and_then(|field| field.merge_key) {
                    Some(merge_key) => {
                        for item in after {
                            let place = before.iter_mut().find(|old| old[merge_key] == item[merge_key]);
                            match (place, item) {
                                (Some(Value::Object(old)), Value::Object(item)) => {
                                    let joined = join(std::mem::take(old), item, inner);
                                    *old = joined;
                                }
                                (_, item) => before.push(item),
                            }
                        }
                    }
                    None => *before = after,
                }
            }
            (_, value) => drop(patch.insert(key, value)),
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOYMENT: &str = "api.apps.v1.Deployment";

    /// Applies what the patch says and compares.
    fn check(original: Value, modified: Value, current: Value, want: Value) -> Value {
        let patch = three_way_strategic(&original, &modified, &current, DEPLOYMENT);
        let mut got = current;
        skiff_api::patch::strategic(&mut got, &patch, DEPLOYMENT).unwrap();
        assert_eq!(got, want, "{patch}");
        patch
    }

    fn containers(containers: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": containers}}}})
    }

    #[test]
    fn what_others_added_stays_and_what_was_applied_goes() {
        check(
            containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
            containers(json!([{"name": "a", "image": "2"}])),
            containers(
                json!([{"name": "a", "image": "1", "imagePullPolicy": "Always"}, {"name": "b", "image": "1"}, {"name": "sidecar"}]),
            ),
            containers(json!([{"name": "a", "image": "2", "imagePullPolicy": "Always"}, {"name": "sidecar"}])),
        );
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"replicas": 3}}),
            json!({"metadata": {"labels": {"a": "2"}}, "spec": {}}),
            json!({"metadata": {"labels": {"a": "1", "b": "1", "c": "1"}}, "spec": {"replicas": 5, "paused": true}}),
            json!({"metadata": {"labels": {"a": "2", "c": "1"}}, "spec": {"paused": true}}),
        );
    }

    #[test]
    fn nothing_to_do_is_an_empty_patch() {
        let object = containers(json!([{"name": "a", "ports": [{"containerPort": 80}]}]));
        let current =
            containers(json!([{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}], "image": "x"}]));
        assert_eq!(check(object.clone(), object, current.clone(), current), json!({}));
    }

    #[test]
    fn a_volume_gets_another_source() {
        let volumes = |source: Value| json!({"spec": {"template": {"spec": {"volumes": [source]}}}});
        let path = volumes(json!({"name": "v", "hostPath": {"path": "/x"}}));
        check(
            volumes(json!({"name": "v", "emptyDir": {}})),
            path.clone(),
            volumes(json!({"name": "v", "emptyDir": {}})),
            path,
        );
    }

    #[test]
    fn merge_patches_of_unknown_kinds() {
        let patch = three_way_merge(
            &json!({"spec": {"a": 1, "gone": 1}}),
            &json!({"spec": {"a": 2, "list": [1]}}),
            &json!({"spec": {"a": 1, "gone": 1, "other": 1}}),
        );
        assert_eq!(patch, json!({"spec": {"gone": null, "a": 2, "list": [1]}}));
    }
}
