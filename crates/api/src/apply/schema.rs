//! What field ownership needs to know of types: which values have parts that can be owned apart.

use serde_json::Value;

use crate::fields::{self, Field, ListKind, Type, TypeDef};

const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of a value: of the table of types, or of a custom kind's schema.
#[derive(Clone, Copy, Debug)]
pub enum Schema<'a> {
    Def(&'static TypeDef),
    Field(&'static Field),
    Type(&'static Type),
    /// The root of a custom object; its metadata is that of every object.
    CustomRoot(&'a Value),
    Custom(&'a Value),
    /// Nothing is known: objects have parts, lists are whole.
    Unknown,
}

/// How a value is taken apart.
pub(super) enum Shape<'a> {
    /// Owned as a whole.
    Whole,
    Map(Schema<'a>),
    /// A list whose entries are told apart by these keys.
    Keyed(Vec<&'a str>, Schema<'a>),
    /// A list of values, each there once.
    Set,
}

impl<'a> Schema<'a> {
    /// The type of this name, without the `io.k8s.` prefix.
    pub fn of_type(name: &str) -> Schema<'static> {
        fields::lookup(name).map_or(Schema::Unknown, Schema::Def)
    }

    pub(super) fn shape(self) -> Shape<'a> {
        match self {
            Schema::Def(def) if def.is.is_some() || def.map == Some("atomic") => Shape::Whole,
            Schema::Def(_) | Schema::Unknown | Schema::CustomRoot(_) => Shape::Map(self),
            Schema::Field(field) if field.map == Some("atomic") => Shape::Whole,
            Schema::Field(field) => match (&field.ty, field.list) {
                (Type::List(item), Some(ListKind::Map)) => Shape::Keyed(field.keys.clone(), Schema::Type(item)),
                (Type::List(_), Some(ListKind::Set)) => Shape::Set,
                (Type::List(_), _) => Shape::Whole,
                (ty, _) => Schema::Type(ty).shape(),
            },
            Schema::Type(Type::Scalar(_) | Type::List(_)) => Shape::Whole,
            Schema::Type(Type::Map(_)) => Shape::Map(self),
            Schema::Type(Type::Ref(name)) => Schema::of_type(name).shape(),
            Schema::Custom(schema) => custom_shape(schema),
        }
    }

    /// The type of a field of a struct or map, and what it is there.
    pub(super) fn field(self, name: &str) -> (Schema<'a>, Role) {
        match self {
            Schema::Def(def) => match def.field(name) {
                Some(field) => (Schema::Field(field), Role::Named { always: is_always_there(field) }),
                None => (Schema::Unknown, Role::Entry),
            },
            Schema::Type(Type::Map(item)) => (Schema::Type(item), Role::Entry),
            Schema::CustomRoot(_) if name == "metadata" => (Schema::of_type(OBJECT_META), Role::Named { always: true }),
            Schema::CustomRoot(schema) | Schema::Custom(schema) => {
                if let Some(field) = schema["properties"].get(name) {
                    return (Schema::Custom(field), Role::Named { always: false });
                }
                let more = &schema["additionalProperties"];
                (if more.is_object() { Schema::Custom(more) } else { Schema::Unknown }, Role::Entry)
            }
            Schema::Field(_) | Schema::Type(_) | Schema::Unknown => (Schema::Unknown, Role::Entry),
        }
    }

    /// What a key has that an entry of a keyed list leaves out.
    pub(super) fn key_default(self, key: &str) -> Option<Value> {
        match self {
            Schema::Custom(item) => item["properties"][key].get("default").cloned(),
            // The only keys of built-in types that have a default, in ports of containers and Services.
            _ if key == "protocol" => Some("TCP".into()),
            _ => None,
        }
    }
}

/// What a part is in the value that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A field that its type names. Go writes some of them always, empty or not.
    Named { always: bool },
    /// An entry of a map or list.
    Entry,
}

/// Whether Go's encoding has the field also when nothing is in it.
fn is_always_there(field: &Field) -> bool {
    match &field.ty {
        Type::Ref(name) => !field.pointer && fields::lookup(name).is_some_and(|d| d.is.is_none()),
        Type::List(_) => field.required,
        _ => false,
    }
}

fn custom_shape(schema: &Value) -> Shape<'_> {
    let text = |name: &str| schema[name].as_str().unwrap_or_default();
    let preserves = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match (text("type"), text("x-kubernetes-list-type")) {
        ("array", "map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            Shape::Keyed(keys.filter_map(Value::as_str).collect(), Schema::Custom(&schema["items"]))
        }
        ("array", "set") => Shape::Set,
        ("array", _) => Shape::Whole,
        ("object", _) if text("x-kubernetes-map-type") == "atomic" => Shape::Whole,
        ("object", _) => Shape::Map(Schema::Custom(schema)),
        ("", _) if preserves => Shape::Map(Schema::Unknown),
        _ => Shape::Whole,
    }
}

/// A part of a value that can be owned by itself.
pub(super) struct Part<'v, 's> {
    /// As it stands in FieldsV1: `f:name`, `k:{"name":"x"}`, `v:"x"`.
    pub element: String,
    pub schema: Schema<'s>,
    pub value: &'v Value,
    pub role: Role,
}

/// The parts of a value; `None` if it is owned as a whole.
pub(super) fn parts<'v, 's>(schema: Schema<'s>, value: &'v Value) -> Option<Vec<Part<'v, 's>>> {
    match (schema.shape(), value) {
        (Shape::Map(of), Value::Object(map)) => Some(
            map.iter()
                .map(|(name, value)| {
                    let (schema, role) = of.field(name);
                    Part { element: format!("f:{name}"), schema, value, role }
                })
                .collect(),
        ),
        (Shape::Keyed(keys, item), Value::Array(list)) => Some(
            list.iter()
                .filter_map(|value| {
                    let element = key_element(&keys, item, value).ok()?;
                    Some(Part { element, schema: item, value, role: Role::Entry })
                })
                .collect(),
        ),
        (Shape::Set, Value::Array(list)) => Some(
            list.iter()
                .map(|value| Part { element: format!("v:{value}"), schema: Schema::Unknown, value, role: Role::Entry })
                .collect(),
        ),
        // Null stands for an empty list or map.
        (Shape::Map(_) | Shape::Keyed(..) | Shape::Set, Value::Null) if !matches!(schema, Schema::Unknown) => {
            Some(Vec::new())
        }
        _ => None,
    }
}

/// `k:{"name":"x"}` of an entry, with the keys in order; the name of a key that it lacks.
pub(super) fn key_element(keys: &[&str], item: Schema<'_>, entry: &Value) -> Result<String, String> {
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    let mut out = String::from("k:{");
    for (i, key) in sorted.into_iter().enumerate() {
        let value = match entry.get(key).filter(|v| !v.is_null()) {
            Some(value) => value.clone(),
            None => item.key_default(key).ok_or_else(|| key.to_owned())?,
        };
        if i > 0 {
            out.push(',');
        }
        out.push_str(&format!("{}:{value}", Value::from(key)));
    }
    out.push('}');
    Ok(out)
}
