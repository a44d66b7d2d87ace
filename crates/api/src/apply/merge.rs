//! What applying does to values: the fields of a configuration, what differs, and the merge itself.

use serde_json::{Map, Value};

use super::{
    schema::{Part, Role, Schema, Shape, key_element, parts},
    set::FieldSet,
};

/// The fields that a configuration sets.
pub fn fields_of(schema: Schema<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(schema, value, &mut set);
    set.member = false;
    set
}

fn collect(schema: Schema<'_>, value: &Value, into: &mut FieldSet) {
    match parts(schema, value) {
        Some(parts) if !parts.is_empty() => {
            for part in parts {
                let below = into.below.entry(part.element).or_default();
                collect(part.schema, part.value, below);
                below.member |= part.role == Role::Entry;
            }
        }
        _ => into.member = true,
    }
}

/// What an object has that another one has not, or not so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Fields that are new or have a new value.
    pub changed: FieldSet,
    pub removed: FieldSet,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// What became of the fields between two states of an object.
pub fn compare(schema: Schema<'_>, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    walk(schema, old, new, &mut difference.changed, &mut difference.removed);
    difference.changed.tidy();
    difference.removed.tidy();
    difference
}

fn walk(schema: Schema<'_>, old: &Value, new: &Value, changed: &mut FieldSet, removed: &mut FieldSet) {
    if old == new {
        return;
    }
    let (Some(before), Some(now)) = (parts(schema, old), parts(schema, new)) else {
        changed.member = true;
        return;
    };
    // Objects are looked up by name; long lists of entries are rare.
    let mut before: std::collections::HashMap<String, Part<'_, '_>> =
        before.into_iter().map(|p| (p.element.clone(), p)).collect();
    for part in now {
        let was = before.remove(&part.element);
        if was.as_ref().is_some_and(|w| w.value == part.value) {
            continue;
        }
        let (c, r) =
            (changed.below.entry(part.element.clone()).or_default(), removed.below.entry(part.element).or_default());
        match was {
            Some(was) => walk(part.schema, was.value, part.value, c, r),
            None if part.role == (Role::Named { always: true }) => {
                walk(part.schema, &empty_like(part.value), part.value, c, r);
            }
            None => all(part.schema, part.value, c),
        }
    }
    for (element, part) in before {
        all(part.schema, part.value, removed.below.entry(element).or_default());
    }
}

fn empty_like(value: &Value) -> Value {
    if value.is_array() { Value::Array(Vec::new()) } else { Value::Object(Map::new()) }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// A value with all its parts.
fn all(schema: Schema<'_>, value: &Value, into: &mut FieldSet) {
    into.member = true;
    for part in parts(schema, value).into_iter().flatten() {
        all(part.schema, part.value, into.below.entry(part.element).or_default());
    }
}

/// Puts a configuration into an object: its fields win, what it does not name stays.
pub fn merge(schema: Schema<'_>, live: &mut Value, config: &Value) {
    match (schema.shape(), &mut *live, config) {
        (Shape::Map(of), Value::Object(live), Value::Object(config)) => {
            for (name, theirs) in config {
                match live.get_mut(name) {
                    Some(ours) => merge(of.field(name).0, ours, theirs),
                    None => drop(live.insert(name.clone(), theirs.clone())),
                }
            }
        }
        (Shape::Keyed(keys, item), Value::Array(ours), Value::Array(theirs)) => {
            let name = |v: &Value| key_element(&keys, item, v).unwrap_or_default();
            *ours = merge_lists(std::mem::take(ours), theirs, &name, &|live, config| merge(item, live, config));
        }
        (Shape::Set, Value::Array(ours), Value::Array(theirs)) => {
            *ours = merge_lists(std::mem::take(ours), theirs, &|v| v.to_string(), &|_, _| {});
        }
        _ => *live = config.clone(),
    }
}

/// The lists and objects of a configuration that are one value to their type, as paths such as `.spec.args`: who sets
/// one of them replaces all that was in it.
pub fn atomics(schema: Schema<'_>, config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    find_atomics(schema, config, &mut String::new(), &mut found);
    found
}

fn find_atomics(schema: Schema<'_>, config: &Value, path: &mut String, found: &mut Vec<String>) {
    let base = path.len();
    match (schema.shape(), config) {
        (Shape::Whole, Value::Object(_) | Value::Array(_)) => found.push(path.clone()),
        (Shape::Map(of), Value::Object(map)) => {
            for (name, value) in map {
                path.push('.');
                path.push_str(name);
                find_atomics(of.field(name).0, value, path, found);
                path.truncate(base);
            }
        }
        (Shape::Keyed(_, item), Value::Array(list)) => {
            for (i, value) in list.iter().enumerate() {
                path.push_str(&format!("[{i}]"));
                find_atomics(item, value, path, found);
                path.truncate(base);
            }
        }
        _ => {}
    }
}

/// The entries of the configuration in its order, with those that it does not name where they stood between them.
fn merge_lists(
    live: Vec<Value>,
    config: &[Value],
    name: &dyn Fn(&Value) -> String,
    merge: &dyn Fn(&mut Value, &Value),
) -> Vec<Value> {
    let wanted: Vec<String> = config.iter().map(name).collect();
    let mut live: Vec<(String, Option<Value>)> = live.into_iter().map(|v| (name(&v), Some(v))).collect();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let (mut next_live, mut next) = (0, 0);
    while next_live < live.len() || next < config.len() {
        if let Some((element, value)) = live.get_mut(next_live)
            && (value.is_none() || !wanted.contains(element) || next == config.len())
        {
            out.extend(value.take());
            next_live += 1;
            continue;
        }
        // The next live entry, if there is one, is named by the configuration: it comes in the order given there.
        let found = live.iter_mut().find(|(element, value)| *element == wanted[next] && value.is_some());
        match found.and_then(|(_, value)| value.take()) {
            Some(mut value) => {
                merge(&mut value, &config[next]);
                out.push(value);
            }
            None => out.push(config[next].clone()),
        }
        next += 1;
    }
    out
}

/// Removes the fields that were applied before and that nobody has any more.
pub(super) fn prune(schema: Schema<'_>, value: &mut Value, before: &FieldSet, owned: &FieldSet) {
    static NOTHING: FieldSet = FieldSet { member: false, below: std::collections::BTreeMap::new() };
    let step = |element: &str, schema: Schema<'_>, role: Role, part: &mut Value| -> bool {
        let Some(before) = before.below.get(element) else { return true };
        let owned = owned.below.get(element).unwrap_or(&NOTHING);
        let counts = |set: &FieldSet| set.member || (role != Role::Entry && !set.below.is_empty());
        if counts(before) && !counts(owned) {
            return false;
        }
        let was_empty = is_empty(part);
        prune(schema, part, before, owned);
        was_empty || !is_empty(part) || owned.member
    };
    match (schema.shape(), value) {
        (Shape::Map(of), Value::Object(map)) => map.retain(|name, part| {
            let (schema, role) = of.field(name);
            step(&format!("f:{name}"), schema, role, part)
        }),
        (Shape::Keyed(keys, item), Value::Array(list)) => list.retain_mut(|part| {
            key_element(&keys, item, part).map_or(true, |element| step(&element, item, Role::Entry, part))
        }),
        (Shape::Set, Value::Array(list)) => {
            list.retain_mut(|part| step(&format!("v:{part}"), Schema::Unknown, Role::Entry, part))
        }
        _ => {}
    }
}

/// What cannot be applied: entries of lists that cannot be told apart, each with its path.
pub(super) fn check(schema: Schema<'_>, value: &Value, at: &str, faults: &mut Vec<String>) {
    let shown = |element: &str| {
        let mut set = FieldSet::default();
        set.below.insert(element.to_owned(), FieldSet { member: true, ..FieldSet::default() });
        set.paths().concat()
    };
    if let (Shape::Keyed(keys, item), Value::Array(list)) = (schema.shape(), value) {
        for (i, entry) in list.iter().enumerate() {
            if let Err(key) = key_element(&keys, item, entry) {
                faults.push(format!(
                    "{at}: element {i}: associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                ));
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    for part in parts(schema, value).into_iter().flatten() {
        let path = format!("{at}{}", shown(&part.element));
        if !seen.insert(part.element.clone()) {
            let entry = path.strip_prefix(at).unwrap_or_default();
            let what =
                if part.element.starts_with("k:") { "duplicate entries for key" } else { "duplicate entry for value" };
            faults.push(format!("{at}: {what} {entry}"));
            continue;
        }
        check(part.schema, part.value, &path, faults);
    }
}
