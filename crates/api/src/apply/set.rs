//! Sets of fields, as `metadata.managedFields` has them (FieldsV1).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths. An element is written as in FieldsV1: `f:` a field, `k:` an entry of a list by its keys, `v:` by
/// its value, `i:` by its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the path that leads here is in the set itself.
    pub member: bool,
    pub below: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// Reads FieldsV1; `None` if it is none.
    pub fn parse(value: &Value) -> Option<FieldSet> {
        let mut set = FieldSet::default();
        for (element, below) in value.as_object()? {
            if element == "." {
                set.member = true;
                continue;
            }
            if !["f:", "k:", "v:", "i:"].iter().any(|prefix| element.starts_with(prefix)) {
                return None;
            }
            let mut below_set = FieldSet::parse(below)?;
            // `{}` is the path itself.
            below_set.member |= below_set.below.is_empty();
            set.below.insert(element.clone(), below_set);
        }
        Some(set)
    }

    /// Writes FieldsV1.
    pub fn to_value(&self) -> Value {
        let mut map = Map::with_capacity(self.below.len());
        for (element, below) in &self.below {
            let mut value = below.to_value();
            if below.member
                && !below.below.is_empty()
                && let Value::Object(inner) = &mut value
            {
                inner.shift_insert(0, ".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), value);
        }
        Value::Object(map)
    }

    /// What leads to nothing is no part of a set.
    pub(super) fn tidy(&mut self) {
        self.below.retain(|_, below| {
            below.tidy();
            !below.is_empty()
        });
    }

    pub fn add(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (element, theirs) in &other.below {
            match self.below.get_mut(element) {
                Some(ours) => ours.add(theirs),
                None => drop(self.below.insert(element.clone(), theirs.clone())),
            }
        }
    }

    /// Removes each path of the other set, and no other.
    pub fn remove(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        for (element, theirs) in &other.below {
            if let Some(ours) = self.below.get_mut(element) {
                ours.remove(theirs);
                if ours.is_empty() {
                    self.below.remove(element);
                }
            }
        }
    }

    /// The paths of both sets.
    pub fn common(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { member: self.member && other.member, below: BTreeMap::new() };
        for (element, theirs) in &other.below {
            if let Some(ours) = self.below.get(element) {
                let below = ours.common(theirs);
                if !below.is_empty() {
                    out.below.insert(element.clone(), below);
                }
            }
        }
        out
    }

    /// The paths as messages show them: `.spec.containers[name="x"].image`.
    pub fn paths(&self) -> Vec<String> {
        fn walk(set: &FieldSet, at: &str, out: &mut Vec<String>) {
            for (element, below) in &set.below {
                let path = format!("{at}{}", shown(element));
                if below.member {
                    out.push(path.clone());
                }
                walk(below, &path, out);
            }
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }
}

fn shown(element: &str) -> String {
    let (kind, rest) = element.split_at(element.len().min(2));
    match kind {
        "f:" => format!(".{rest}"),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v:" => format!("[={rest}]"),
        _ => format!("[{rest}]"),
    }
}
