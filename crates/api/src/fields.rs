//! The table of facts: every published type of the API with its fields, their types and how they merge.
//!
//! It drives strict decoding, pruning, strategic merge, `kubectl explain` and the OpenAPI documents, so that
//! nothing about a field is written down twice. The data is `data/fields.txt`; its head explains the format.

use std::{collections::HashMap, sync::OnceLock};

const DATA: &str = include_str!("../data/fields.txt");

/// What a value looks like on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    String,
    Int32,
    Int64,
    Double,
    Boolean,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 in JSON.
    DateTime,
    IntOrString,
    /// An object of any content, such as `RawExtension`.
    Object,
    /// Any JSON value.
    Any,
}

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Scalar(Scalar),
    /// A type of the table, by name without the `io.k8s.` prefix.
    Ref(&'static str),
    List(Box<Type>),
    Map(Box<Type>),
}

/// How a list merges in server-side apply (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    Map,
}

/// One field of a type.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub required: bool,
    pub list: Option<ListKind>,
    /// Keys of the entries of a list of kind `map`.
    pub keys: Vec<&'static str>,
    /// `x-kubernetes-map-type`: `atomic` or `granular`.
    pub map: Option<&'static str>,
    /// Merge key of strategic merge patches.
    pub merge_key: Option<&'static str>,
    /// Patch strategy: `merge`, `retainKeys` or `merge,retainKeys`.
    pub strategy: Option<&'static str>,
    /// Number in protobuf, behind those of the messages that Go inlines in JSON. Empty if it has none.
    pub numbers: Vec<u32>,
    /// Whether Go tells nothing from zero here, so that a zero that was sent is one.
    pub pointer: bool,
    /// Whether the type is a struct.
    pub is_struct: bool,
    /// Whether Go writes the field also when it is zero.
    pub kept: bool,
    /// Go's name of the type, where it is not what `ty` would be called.
    pub go: Option<&'static str>,
    /// The struct that Go inlines the field from.
    pub inlined: Option<&'static str>,
}

impl Field {
    /// Whether strategic merge patches merge this list or map instead of replacing it.
    pub fn merges(&self) -> bool {
        self.strategy.is_some_and(|s| s.split(',').any(|s| s == "merge"))
    }

    /// Whether Go always has this struct, and writes it also when there is nothing in it. What only the server writes
    /// comes with it.
    pub fn is_always_there(&self) -> bool {
        self.is_struct && !self.pointer && self.name != "status"
    }

    /// Whether a patch names the only keys that survive (`retainKeys`).
    pub fn retains_keys(&self) -> bool {
        self.strategy.is_some_and(|s| s.split(',').any(|s| s == "retainKeys"))
    }
}

/// A published type.
#[derive(Debug)]
pub struct TypeDef {
    /// Name without the `io.k8s.` prefix, such as `api.core.v1.Pod`.
    pub name: &'static str,
    /// What stands on the wire where the type is not a struct, such as `Quantity`.
    pub is: Option<Scalar>,
    pub map: Option<&'static str>,
    pub fields: Vec<Field>,
}

impl TypeDef {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &self.fields[i])
    }
}

/// All types, in the order of their names.
pub fn types() -> impl Iterator<Item = &'static TypeDef> {
    table().entries.iter().map(Entry::def)
}

/// The type of this name (without the `io.k8s.` prefix).
pub fn lookup(name: &str) -> Option<&'static TypeDef> {
    let table = table();
    table.by_name.get(name).map(|&i| table.entries[i].def())
}

/// One type of the data. Most are never asked for, so each is parsed when it is: all of them would be a megabyte.
struct Entry {
    name: &'static str,
    /// The attributes behind the name.
    attributes: &'static str,
    /// The lines of the fields.
    fields: &'static str,
    def: OnceLock<TypeDef>,
}

impl Entry {
    fn def(&self) -> &TypeDef {
        self.def.get_or_init(|| {
            let mut def = TypeDef { name: self.name, is: None, map: None, fields: Vec::new() };
            for (key, value) in self.attributes.split(' ').filter_map(|w| w.split_once('=')) {
                match key {
                    "is" => def.is = scalar(value),
                    "map" => def.map = Some(value),
                    _ => unreachable!("data/fields.txt: unknown attribute {key}"),
                }
            }
            def.fields = self.fields.lines().map(field).collect();
            def.fields.sort_by_key(|f| f.name);
            def
        })
    }
}

struct Table {
    entries: Vec<Entry>,
    by_name: HashMap<&'static str, usize>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let blocks = DATA.split("\n= ").skip(1);
        let entries: Vec<Entry> = blocks
            .map(|block| {
                let (head, fields) = block.split_once('\n').unwrap_or((block, ""));
                let (name, attributes) = head.split_once(' ').unwrap_or((head, ""));
                Entry { name, attributes, fields, def: OnceLock::new() }
            })
            .collect();
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name, i)).collect();
        Table { entries, by_name }
    })
}

fn field(line: &'static str) -> Field {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    let (name, required) = match name.strip_suffix('!') {
        Some(name) => (name, true),
        None => (name, false),
    };
    let ty = parse_type(words.next().unwrap_or_default());
    let mut field = Field {
        name,
        ty,
        required,
        list: None,
        keys: Vec::new(),
        map: None,
        merge_key: None,
        strategy: None,
        numbers: Vec::new(),
        pointer: false,
        is_struct: false,
        kept: false,
        go: None,
        inlined: None,
    };
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "pb" => field.numbers = value.split('.').filter_map(|n| n.parse().ok()).collect(),
            "ptr" => field.pointer = true,
            "keep" => field.kept = true,
            "struct" => field.is_struct = true,
            "go" => field.go = Some(value),
            "in" => field.inlined = Some(value),
            "list" => {
                field.list = Some(match value {
                    "map" => ListKind::Map,
                    "set" => ListKind::Set,
                    _ => ListKind::Atomic,
                })
            }
            "keys" => field.keys = value.split(',').collect(),
            "map" => field.map = Some(value),
            "merge" => field.merge_key = Some(value),
            "strategy" => field.strategy = Some(value),
            _ => unreachable!("data/fields.txt: unknown attribute {key}"),
        }
    }
    field
}

fn parse_type(s: &'static str) -> Type {
    if let Some(inner) = s.strip_prefix("[]") {
        Type::List(Box::new(parse_type(inner)))
    } else if let Some(inner) = s.strip_prefix("{}") {
        Type::Map(Box::new(parse_type(inner)))
    } else {
        scalar(s).map_or(Type::Ref(s), Type::Scalar)
    }
}

fn scalar(s: &str) -> Option<Scalar> {
    Some(match s {
        "string" => Scalar::String,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "boolean" => Scalar::Boolean,
        "bytes" => Scalar::Bytes,
        "date-time" => Scalar::DateTime,
        "int-or-string" => Scalar::IntOrString,
        "object" => Scalar::Object,
        "any" => Scalar::Any,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_to_a_type() {
        fn check(owner: &str, ty: &Type) {
            match ty {
                Type::Ref(name) => assert!(lookup(name).is_some(), "{owner}: {name}"),
                Type::List(t) | Type::Map(t) => check(owner, t),
                Type::Scalar(_) => {}
            }
        }
        for def in types() {
            for field in &def.fields {
                check(&format!("{}.{}", def.name, field.name), &field.ty);
            }
        }
    }

    #[test]
    fn containers_merge_by_name() {
        let spec = lookup("api.core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.required && containers.merges());
        assert_eq!(containers.merge_key, Some("name"));
        assert_eq!(containers.ty, Type::List(Box::new(Type::Ref("api.core.v1.Container"))));
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.merges() && volumes.retains_keys());
    }
}
