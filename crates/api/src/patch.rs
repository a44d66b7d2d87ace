//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

use serde_json::{Map, Value};

use crate::fields::{self, Field, Type, TypeDef};

/// Why a patch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The patch is no patch.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object.
    #[error("{0}")]
    DoesNotApply(String),
    /// A `test` of a JSON patch failed.
    #[error("{0}")]
    TestFailed(String),
}

/// Most operations that one JSON patch may have, as upstream limits it.
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Applies a JSON patch; on error the target is unchanged.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if patch.as_array().is_some_and(|a| a.len() > MAX_JSON_PATCH_OPERATIONS) {
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}"
        )));
    }
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Malformed(e.to_string()))?;
    json_patch::patch(target, &patch).map_err(|e| {
        let text = format!("the server rejected our request due to an error in our request: {e}");
        match e.kind {
            json_patch::PatchErrorKind::TestFailed => PatchError::TestFailed(text),
            _ => PatchError::DoesNotApply(text),
        }
    })
}

/// Applies a merge patch: objects merge, null deletes, all else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

/// Applies a strategic merge patch to an object of a type of the table.
pub fn strategic(target: &mut Value, patch: &Value, type_name: &str) -> Result<(), PatchError> {
    let def = fields::lookup(type_name);
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("a strategic merge patch must be an object".into()));
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return Ok(()) };
    merge_object(map, patch, def)
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

fn struct_of(ty: &Type) -> Option<&'static TypeDef> {
    match ty {
        Type::Ref(name) => fields::lookup(name).filter(|d| d.is.is_none()),
        _ => None,
    }
}

fn malformed<T>(text: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Malformed(text.into()))
}

fn merge_object(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    def: Option<&'static TypeDef>,
) -> Result<(), PatchError> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            target.clear();
            target.extend(patch.iter().filter(|(k, _)| *k != DIRECTIVE).map(|(k, v)| (k.clone(), v.clone())));
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return malformed(format!("unknown patch type found in map: {other}")),
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        let Some(keep) = keep.as_array() else { return malformed("$retainKeys must be a list") };
        target.retain(|key, _| keep.iter().any(|k| k.as_str() == Some(key)));
    }
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            let Some(remove) = value.as_array() else { return malformed(format!("{key} must be a list")) };
            if let Some(Value::Array(items)) = target.get_mut(field) {
                items.retain(|i| !remove.contains(i));
            }
            continue;
        }
        let field = def.and_then(|d| d.field(key));
        match value {
            Value::Null => {
                target.shift_remove(key);
            }
            Value::Object(patch) => {
                let slot = target.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(current) = slot else {
                    *slot = without_directives(value);
                    continue;
                };
                let replace = field.is_some_and(|f| matches!(f.ty, Type::Ref(_)) && f.strategy == Some("replace"));
                if replace {
                    *slot = without_directives(value);
                    continue;
                }
                // `$patch: delete` on a field removes the field itself.
                if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                    target.shift_remove(key);
                    continue;
                }
                let inner = field.and_then(|f| match &f.ty {
                    Type::Map(item) => struct_of(item),
                    ty => struct_of(ty),
                });
                merge_object(current, patch, inner)?;
            }
            Value::Array(patch_items) => {
                let order = patch.get(&format!("{SET_ORDER}{key}")).and_then(Value::as_array);
                match field.filter(|f| f.merges()) {
                    Some(field) => {
                        let slot = target.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                        if !slot.is_array() {
                            *slot = Value::Array(Vec::new());
                        }
                        if let Value::Array(items) = slot {
                            merge_list(items, patch_items, order, field)?;
                        }
                    }
                    None => {
                        target.insert(key.clone(), without_directives(value));
                    }
                }
            }
            scalar => {
                target.insert(key.clone(), scalar.clone());
            }
        }
    }
    // An order without changes still reorders.
    for (key, order) in patch {
        if let (Some(name), Some(order)) = (key.strip_prefix(SET_ORDER), order.as_array())
            && !patch.contains_key(name)
            && let (Some(field), Some(Value::Array(items))) = (def.and_then(|d| d.field(name)), target.get_mut(name))
        {
            sort_by_order(items, order, field.merge_key);
        }
    }
    Ok(())
}

fn merge_list(
    items: &mut Vec<Value>,
    patch: &[Value],
    order: Option<&Vec<Value>>,
    field: &Field,
) -> Result<(), PatchError> {
    let Some(merge_key) = field.merge_key else {
        // A merging list of scalars is a set.
        for value in patch {
            if !items.contains(value) {
                items.push(value.clone());
            }
        }
        if let Some(order) = order {
            sort_by_order(items, order, None);
        }
        return Ok(());
    };
    if patch.iter().any(|p| p.get(DIRECTIVE).and_then(Value::as_str) == Some("replace")) {
        *items = patch.iter().filter(|p| p.get(DIRECTIVE).is_none()).map(without_directives).collect();
        return Ok(());
    }
    let item_def = match &field.ty {
        Type::List(item) => struct_of(item),
        _ => None,
    };
    for value in patch {
        let Value::Object(entry) = value else {
            return malformed(format!("{}: entries of a merging list must be objects", field.name));
        };
        let Some(key) = entry.get(merge_key) else {
            return malformed(format!("map: {value} does not contain declared merge key: {merge_key}"));
        };
        match entry.get(DIRECTIVE).and_then(Value::as_str) {
            Some("delete") => items.retain(|i| i.get(merge_key) != Some(key)),
            None | Some("merge") => {
                let found = items.iter_mut().find(|i| i.get(merge_key) == Some(key));
                match found.and_then(Value::as_object_mut) {
                    Some(current) => merge_object(current, entry, item_def)?,
                    None => items.push(without_directives(value)),
                }
            }
            Some(other) => return malformed(format!("unknown patch type found in list: {other}")),
        }
    }
    if let Some(order) = order {
        sort_by_order(items, order, Some(merge_key));
    }
    Ok(())
}

/// Puts the items into the wanted order; items that it does not name keep their place relative to those
/// before them.
fn sort_by_order(items: &mut Vec<Value>, order: &[Value], merge_key: Option<&str>) {
    let position = |item: &Value| {
        order.iter().position(|o| match merge_key {
            Some(key) => o.get(key).is_some() && o.get(key) == item.get(key),
            None => o == item,
        })
    };
    let mut last = 0;
    let mut keyed: Vec<((usize, usize), Value)> = Vec::with_capacity(items.len());
    for (i, item) in items.drain(..).enumerate() {
        let place = match position(&item) {
            Some(p) => {
                last = p;
                (p, 0)
            }
            None => (last, i + 1),
        };
        keyed.push((place, item));
    }
    keyed.sort_by_key(|(place, _)| *place);
    items.extend(keyed.into_iter().map(|(_, item)| item));
}

/// The value without patch directives at any depth, and without nulls in objects.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(k, v)| {
                    !v.is_null()
                        && *k != DIRECTIVE
                        && *k != RETAIN_KEYS
                        && !k.starts_with(SET_ORDER)
                        && !k.starts_with(DELETE_FROM)
                })
                .map(|(k, v)| (k.clone(), without_directives(v)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter(|i| i.get(DIRECTIVE).and_then(Value::as_str) != Some("delete"))
                .map(without_directives)
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as j;

    use super::*;

    fn check(target: Value, patch: Value, want: Value) {
        let mut got = target;
        strategic(&mut got, &patch, "api.core.v1.Pod").unwrap();
        assert_eq!(got, want);
    }

    #[test]
    fn lists_merge_by_key() {
        check(
            j!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}),
            j!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}}),
            j!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}}),
        );
    }

    #[test]
    fn directives_delete_replace_and_order() {
        check(
            j!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            j!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            j!({"spec": {"containers": [{"name": "b"}]}}),
        );
        check(
            j!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            j!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
            j!({"spec": {"containers": [{"name": "c"}]}}),
        );
        check(
            j!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            j!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
            j!({"spec": {"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}}),
        );
        check(
            j!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            j!({"metadata": {"labels": {"a": null, "c": "3"}}}),
            j!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
        );
        check(
            j!({"metadata": {"finalizers": ["a", "b"]}}),
            j!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
            j!({"metadata": {"finalizers": ["b", "c"]}}),
        );
    }

    #[test]
    fn retain_keys_swaps_a_volume_source() {
        check(
            j!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            j!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
            j!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
        );
    }

    #[test]
    fn atomic_lists_are_replaced_and_bad_patches_refused() {
        check(
            j!({"spec": {"containers": [{"name": "a", "args": ["1", "2"]}]}}),
            j!({"spec": {"containers": [{"name": "a", "args": ["3"]}]}}),
            j!({"spec": {"containers": [{"name": "a", "args": ["3"]}]}}),
        );
        let mut v = j!({"spec": {"containers": []}});
        assert!(strategic(&mut v, &j!({"spec": {"containers": [{"image": "x"}]}}), "api.core.v1.Pod").is_err());
        assert!(strategic(&mut v, &j!([]), "api.core.v1.Pod").is_err());
        assert!(json(&mut v, &j!([{"op": "test", "path": "/spec", "value": 1}])).is_err());
        assert!(json(&mut v, &j!({"op": "add"})).is_err());
    }
}
