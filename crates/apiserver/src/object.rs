//! Stored objects: immutable values with their bytes.

use std::{borrow::Cow, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};
use skiff_api::{
    Kind,
    selector::{FieldSelector, LabelSelector},
};
use skiff_store::{KeyValue, Revision};

/// The stored bytes are no object; only damage or a foreign writer can be the reason.
#[derive(Debug, thiserror::Error)]
#[error("stored object {key} cannot be decoded")]
pub struct UndecodableError {
    pub key: Arc<str>,
    #[source]
    pub source: Option<serde_json::Error>,
}

/// An object as it was at one revision. All readers and watchers share it.
#[derive(Debug)]
pub struct Object {
    /// Key in the store.
    pub key: Arc<str>,
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// The revision that wrote it: its resourceVersion.
    pub revision: Revision,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the order of the kind's list.
    fields: Box<[Box<str>]>,
    /// JSON with the resourceVersion, as clients get it.
    pub bytes: Bytes,
}

/// Removes fields without a value, at any depth.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.values().any(Value::is_null) {
                map.retain(|_, v| !v.is_null());
            }
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// What the cache needs to know of a kind to index its objects.
#[derive(Clone, Copy, Debug)]
pub struct Indexing {
    /// Paths that field selectors may name, beside `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// Reads such a field; most are plain paths.
    pub field: fn(&Value, &str) -> String,
}

impl Object {
    /// Decodes what the store holds.
    pub fn from_kv(kv: &KeyValue, indexing: Indexing) -> Result<Object, UndecodableError> {
        Object::new(kv.key.clone(), &kv.value, kv.mod_revision, indexing)
    }

    /// An object of stored bytes, shown with a resourceVersion.
    pub fn new(
        key: Arc<str>,
        stored: &[u8],
        revision: Revision,
        indexing: Indexing,
    ) -> Result<Object, UndecodableError> {
        let value =
            pick::parts(stored, indexing).map_err(|e| UndecodableError { key: key.clone(), source: Some(e) })?;
        let bytes = with_revision(stored, revision).ok_or(UndecodableError { key: key.clone(), source: None })?;
        let meta = &value["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default().into();
        let labels = meta["labels"]
            .as_object()
            .map(|m| m.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect())
            .unwrap_or_default();
        Ok(Object {
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            revision,
            labels,
            fields: indexing.selectable.iter().map(|f| (indexing.field)(&value, f).into()).collect(),
            bytes,
            key,
        })
    }

    /// The object as a value. Decoded anew at each call: the bytes are what is kept.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("the bytes were decoded when the object was made")
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    /// One of the kind's selectable fields; `selectable` is the kind's list of them.
    pub fn field(&self, selectable: &[&str], path: &str) -> Option<&str> {
        let i = selectable.iter().position(|s| *s == path)?;
        self.fields.get(i).map(|v| &**v)
    }

    /// The same object shown at another revision, as the last state of a deleted one is.
    pub fn at(&self, revision: Revision) -> Option<Object> {
        let stored = without_revision(&self.bytes)?;
        Some(Object {
            key: self.key.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            revision,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            bytes: with_revision(&stored, revision)?,
        })
    }
}

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: all namespaces.
    pub namespace: String,
    /// Empty: all names.
    pub name: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Filter {
    /// Whether the object is selected. `selectable` is the kind's list of selectable fields.
    pub fn matches(&self, object: &Object, selectable: &[&str]) -> bool {
        (self.namespace.is_empty() || *self.namespace == *object.namespace)
            && (self.name.is_empty() || *self.name == *object.name)
            && self.labels.matches(|key| object.label(key))
            && (self.fields.is_empty()
                || self.fields.matches(|path| match path {
                    "metadata.name" => Some(Cow::Borrowed(&*object.name)),
                    "metadata.namespace" => Some(Cow::Borrowed(&*object.namespace)),
                    _ => object.field(selectable, path).map(Cow::Borrowed),
                }))
    }
}

/// The value at a dotted path as a field selector sees it; nothing is the empty string.
pub fn plain_field(value: &Value, path: &str) -> String {
    let mut v = value;
    for part in path.split('.') {
        v = &v[part];
    }
    match v {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The bytes to store: JSON that begins with kind, apiVersion and metadata, so that a resourceVersion can be
/// put in without decoding.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let Some(map) = value.as_object() else { return out };
    out.push(b'{');
    let mut first = true;
    let head = ["kind", "apiVersion", "metadata"];
    let ordered = head
        .iter()
        .filter_map(|k| map.get_key_value(*k))
        .chain(map.iter().filter(|(k, _)| !head.contains(&k.as_str())));
    for (key, value) in ordered {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        // Writing JSON into memory cannot fail.
        serde_json::to_writer(&mut out, key).expect("a string is JSON");
        out.push(b':');
        serde_json::to_writer(&mut out, value).expect("a value is JSON");
    }
    out.push(b'}');
    out
}

/// Removes and returns `metadata.resourceVersion`.
pub fn take_revision(value: &mut Value) -> Option<String> {
    let meta = value.get_mut("metadata")?.as_object_mut()?;
    match meta.shift_remove("resourceVersion") {
        Some(Value::String(s)) if !s.is_empty() => Some(s),
        _ => None,
    }
}

/// Where `metadata` begins, in bytes that [`encode`] made.
fn metadata_start(stored: &[u8]) -> Option<usize> {
    const MARK: &[u8] = b"\"metadata\":{";
    Some(stored.windows(MARK.len()).take(512).position(|w| w == MARK)? + MARK.len())
}

/// What [`with_revision`] was given.
fn without_revision(shown: &[u8]) -> Option<Vec<u8>> {
    const FIELD: &[u8] = b"\"resourceVersion\":\"";
    let at = metadata_start(shown)?;
    let rest = shown[at..].strip_prefix(FIELD)?;
    let end = rest.iter().position(|b| *b == b'"')?;
    let rest = &rest[end + 1..];
    Some([&shown[..at], rest.strip_prefix(b",").unwrap_or(rest)].concat())
}

/// Stored bytes with `metadata.resourceVersion` put in.
pub fn with_revision(stored: &[u8], revision: Revision) -> Option<Bytes> {
    let at = metadata_start(stored)?;
    let mut out = BytesMut::with_capacity(stored.len() + 44);
    out.put_slice(&stored[..at]);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.0.to_string().as_bytes());
    out.put_slice(if stored.get(at) == Some(&b'}') { b"\"" } else { b"\"," });
    out.put_slice(&stored[at..]);
    Some(out.freeze())
}

/// Where objects of a kind are kept: `/registry/pods/`.
pub fn kind_prefix(kind: &Kind) -> String {
    match kind.storage {
        skiff_api::kinds::Storage::Stored(prefix) => format!("/registry/{prefix}/"),
        _ => unreachable!("only stored kinds have a key: {}", kind.kind),
    }
}

/// The key of an object: `/registry/pods/default/nginx`.
pub fn object_key(prefix: &str, namespaced: bool, namespace: &str, name: &str) -> Arc<str> {
    if namespaced { format!("{prefix}{namespace}/{name}").into() } else { format!("{prefix}{name}").into() }
}

/// `metadata` for writing; made if the object has none.
pub fn meta_mut(value: &mut Value) -> &mut Map<String, Value> {
    let slot = value
        .as_object_mut()
        .expect("objects are JSON objects once decoded")
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("made an object just above")
}

/// A text of `metadata`; empty if it is not there.
pub fn meta_str<'a>(value: &'a Value, field: &str) -> &'a str {
    value["metadata"][field].as_str().unwrap_or_default()
}

/// Reads only what the cache indexes by; the rest of an object is skipped without being kept.
mod pick {
    use std::fmt;

    use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
    use serde_json::{Map, Value};

    use super::Indexing;

    const METADATA: [&str; 4] = ["metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels"];

    /// The object with nothing but those parts of its metadata and its selectable fields.
    pub(super) fn parts(stored: &[u8], indexing: Indexing) -> serde_json::Result<Value> {
        let paths: Vec<&str> = METADATA.iter().chain(indexing.selectable).copied().collect();
        let mut deserializer = serde_json::Deserializer::from_slice(stored);
        let value = Pick(&paths).deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    }

    /// A field's name, copied only if it has escapes.
    #[derive(serde::Deserialize)]
    struct Key<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

    /// The paths below the value at hand that are wanted.
    struct Pick<'a>(&'a [&'a str]);

    impl<'de> DeserializeSeed<'de> for Pick<'_> {
        type Value = Value;
        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
            d.deserialize_any(self)
        }
    }

    impl<'de> Visitor<'de> for Pick<'_> {
        type Value = Value;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
            let mut picked = Map::new();
            while let Some(Key(key)) = map.next_key()? {
                if self.0.contains(&&*key) {
                    let value = map.next_value()?;
                    picked.insert(key.into_owned(), value);
                    continue;
                }
                let below: Vec<&str> = self.0.iter().filter_map(|p| p.strip_prefix(&*key)?.strip_prefix('.')).collect();
                if below.is_empty() {
                    map.next_value::<IgnoredAny>()?;
                } else {
                    let value = map.next_value_seed(Pick(&below))?;
                    picked.insert(key.into_owned(), value);
                }
            }
            Ok(Value::Object(picked))
        }
        // Where an object was expected there may be anything; none of it is wanted.
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Value::Null)
        }
        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_str<E>(self, _: &str) -> Result<Value, E> {
            Ok(Value::Null)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Indexing = Indexing { selectable: &["spec.nodeName"], field: plain_field };

    fn object(value: Value) -> Object {
        Object::new("/registry/x".into(), &encode(&value), Revision(7), PLAIN).unwrap()
    }

    #[test]
    fn the_revision_is_put_in_without_decoding() {
        let o = object(
            json!({"spec": {"nodeName": "n"}, "metadata": {"name": "a", "labels": {"x": "y"}}, "apiVersion": "v1", "kind": "Pod"}),
        );
        assert_eq!(
            std::str::from_utf8(&o.bytes).unwrap(),
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"a","labels":{"x":"y"}},"spec":{"nodeName":"n"}}"#
        );
        assert_eq!(o.label("x"), Some("y"));
        let filter = Filter { fields: FieldSelector::parse("spec.nodeName=n").unwrap(), ..Filter::default() };
        assert!(filter.matches(&o, PLAIN.selectable));
        let filter = Filter { fields: FieldSelector::parse("spec.nodeName!=n").unwrap(), ..Filter::default() };
        assert!(!filter.matches(&o, PLAIN.selectable));
    }

    #[test]
    fn a_mark_inside_a_value_does_not_mislead() {
        let o = object(
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": "\"metadata\":{"}}),
        );
        assert_eq!(o.value()["metadata"]["resourceVersion"], "7");
        assert_eq!(o.value()["data"]["k"], "\"metadata\":{");
    }

    #[test]
    fn the_last_state_of_a_deleted_object_carries_the_deletions_revision() {
        let o = object(json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}));
        let gone = o.at(Revision(9)).unwrap();
        assert_eq!(gone.value()["metadata"], json!({"resourceVersion": "9", "name": "a"}));
    }
}
