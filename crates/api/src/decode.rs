//! From bytes to an object: JSON or YAML, with duplicate fields, unknown fields and wrong types found on the way.

use std::fmt::{self, Write as _};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{
    fields::{self, Field, Scalar, Type, TypeDef},
    quantity::Quantity,
};

/// Nesting deeper than this is refused, as upstream's decoder does at 10,000; no honest object comes near.
const MAX_DEPTH: usize = 128;

/// Why bytes are no object.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON or YAML at all.
    #[error("{0}")]
    Syntax(String),
    /// A field holds a value of a type that it cannot hold. The text is that of Go's decoder.
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")]
    Type { found: String, owner: String, path: String, wanted: String },
    /// A value has the right type but no meaning, such as a quantity of letters.
    #[error("{0}")]
    Value(String),
}

/// A decoded value and the duplicate fields that were found: the last of them won.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Parses JSON and notes duplicate fields by path.
pub fn json(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { state: &mut state, depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|v| deserializer.end().map(|()| v))
        .map_err(|e| DecodeError::Syntax(go_syntax_error(bytes, &e)))?;
    Ok(Decoded { value, duplicates: state.duplicates })
}

/// A syntax error in the words of Go's decoder, which clients know.
fn go_syntax_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let line_start = match error.line().checked_sub(2) {
        Some(n) => bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(n).map_or(0, |(i, _)| i + 1),
        None => 0,
    };
    let text = error.to_string();
    let place = [
        ("expected value", "looking for beginning of value"),
        ("expected ident", "in literal"),
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing comma", "looking for beginning of value"),
        ("trailing characters", "after top-level value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("control character", "in string literal"),
        ("invalid escape", "in string escape code"),
        ("invalid number", "in numeric literal"),
    ]
    .into_iter()
    .find_map(|(ours, gos)| text.starts_with(ours).then_some(gos));
    let at = (line_start + error.column()).checked_sub(1).and_then(|i| bytes.get(i..));
    match (place, at.and_then(|rest| String::from_utf8_lossy(&rest[..rest.len().min(4)]).chars().next())) {
        (Some(place), Some(found)) => format!("invalid character {found:?} {place}"),
        _ => text,
    }
}

/// Parses one YAML document. Duplicate keys are a syntax error in YAML.
pub fn yaml(text: &str) -> Result<Decoded, DecodeError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| {
        // The first line says what and where; what follows shows the text.
        let shown = e.to_string();
        let first = shown.lines().next().unwrap_or_default();
        let what = first.strip_prefix("error: ").unwrap_or(first);
        DecodeError::Syntax(format!("error converting YAML to JSON: yaml: {what}"))
    })?;
    Ok(Decoded { value, duplicates: Vec::new() })
}

#[derive(Default)]
struct State {
    path: String,
    duplicates: Vec<String>,
}

struct Seed<'s> {
    state: &'s mut State,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(de::Error::custom("exceeded max depth"));
        }
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let base = self.state.path.len();
        loop {
            let _ = write!(self.state.path, "[{}]", items.len());
            let item = seq.next_element_seed(Seed { state: self.state, depth: self.depth + 1 })?;
            self.state.path.truncate(base);
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let base = self.state.path.len();
        while let Some(key) = map.next_key::<String>()? {
            if base > 0 {
                self.state.path.push('.');
            }
            self.state.path.push_str(&key);
            let value = map.next_value_seed(Seed { state: self.state, depth: self.depth + 1 })?;
            if object.contains_key(&key) {
                self.state.duplicates.push(self.state.path.clone());
            }
            self.state.path.truncate(base);
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Brings a value into the form of its type: unknown fields are removed and returned by path, nulls of fields and what
/// Go does not tell from them are dropped, structs that are always there in Go are there, quantities become canonical,
/// and a value of a wrong type is an error.
pub fn conform(value: &mut Value, type_name: &str) -> Result<Vec<String>, DecodeError> {
    conform_as(value, type_name, Extent::Whole)
}

/// What is brought into the form of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// An object as Go has it in memory.
    Whole,
    /// What somebody applies: it says no more and no less than what it says, as its fields become theirs.
    Applied,
}

/// [`conform`] of something else than a whole object.
pub fn conform_as(value: &mut Value, type_name: &str, extent: Extent) -> Result<Vec<String>, DecodeError> {
    let def = fields::lookup(type_name).ok_or_else(|| DecodeError::Value(format!("no type {type_name}")))?;
    let mut walk = Walk { extent, path: String::new(), go_path: String::new(), unknown: Vec::new() };
    walk.def(value, def, def, None)?;
    Ok(walk.unknown)
}

struct Walk {
    extent: Extent,
    path: String,
    /// As Go's decoder names it: without indices and keys, and with the structs that fields are inlined from.
    go_path: String,
    unknown: Vec<String>,
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn short_name(def: &TypeDef) -> &str {
    def.name.rsplit('.').next().unwrap_or(def.name)
}

/// How Go names the type, for the message of a wrong one.
fn go_type(ty: &Type) -> String {
    match ty {
        Type::Scalar(s) => match s {
            Scalar::String => "string".into(),
            Scalar::Int32 => "int32".into(),
            Scalar::Int64 => "int64".into(),
            Scalar::Double => "float64".into(),
            Scalar::Boolean => "bool".into(),
            Scalar::Bytes => "[]uint8".into(),
            Scalar::DateTime => "time.Time".into(),
            Scalar::IntOrString => "intstr.IntOrString".into(),
            Scalar::Object | Scalar::Any => "interface {}".into(),
        },
        Type::Ref(name) => {
            let mut parts = name.rsplit('.');
            let (kind, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{package}.{kind}")
        }
        Type::List(t) => format!("[]{}", go_type(t)),
        Type::Map(t) => format!("map[string]{}", go_type(t)),
    }
}

impl Walk {
    fn wrong(&self, value: &Value, ty: &Type, owner: &TypeDef, go: Option<&str>) -> DecodeError {
        let found = match (value, ty) {
            // A number that is not of the wanted kind is told.
            (Value::Number(n), Type::Scalar(Scalar::Int32 | Scalar::Int64)) => format!("number {n}"),
            (Value::Number(n), _) if go == Some("int32") => format!("number {n}"),
            _ => json_type(value).to_owned(),
        };
        let wanted = go.map_or_else(|| go_type(ty), str::to_owned);
        DecodeError::Type { found, owner: short_name(owner).to_owned(), path: self.go_path.clone(), wanted }
    }

    /// `go` is Go's name of the type, where it has one of its own.
    fn value(&mut self, value: &mut Value, ty: &Type, owner: &TypeDef, go: Option<&str>) -> Result<(), DecodeError> {
        match ty {
            Type::Scalar(s) => self.scalar(value, *s, ty, owner, go),
            Type::Ref(name) => match fields::lookup(name) {
                Some(def) => self.def(value, def, owner, go),
                None => Ok(()),
            },
            Type::List(item) => {
                let Value::Array(items) = value else { return Err(self.wrong(value, ty, owner, go)) };
                let go = go.and_then(|go| go.strip_prefix("[]"));
                let base = self.path.len();
                for (i, v) in items.iter_mut().enumerate() {
                    let _ = write!(self.path, "[{i}]");
                    self.entry(v, item, owner, go)?;
                    self.path.truncate(base);
                }
                Ok(())
            }
            Type::Map(item) => {
                let Value::Object(map) = value else { return Err(self.wrong(value, ty, owner, go)) };
                let go = go.and_then(|go| Some(go.strip_prefix("map[")?.split_once(']')?.1));
                let base = self.path.len();
                for (k, v) in map.iter_mut() {
                    self.path.push('.');
                    self.path.push_str(k);
                    self.entry(v, item, owner, go)?;
                    self.path.truncate(base);
                }
                Ok(())
            }
        }
    }

    /// An entry of a list or map. A null one is the zero value of its type.
    fn entry(&mut self, value: &mut Value, ty: &Type, owner: &TypeDef, go: Option<&str>) -> Result<(), DecodeError> {
        if value.is_null() {
            *value = zero(ty);
        }
        self.value(value, ty, owner, go)
    }

    fn scalar(
        &mut self,
        value: &mut Value,
        scalar: Scalar,
        ty: &Type,
        owner: &TypeDef,
        go: Option<&str>,
    ) -> Result<(), DecodeError> {
        let good = match scalar {
            Scalar::String => value.is_string(),
            Scalar::Bytes => {
                if let Some(text) = value.as_str() {
                    use base64::Engine as _;
                    if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
                        return Err(DecodeError::Value(illegal_base64(text)));
                    }
                }
                value.is_string()
            }
            Scalar::DateTime => {
                match value.as_str() {
                    Some(text) => {
                        let time: jiff::Timestamp = text
                        .parse()
                        .map_err(|_| DecodeError::Value(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"")))?;
                        // Offsets become UTC, as the stored form has it; the precision stays.
                        if !text.ends_with('Z') {
                            *value = Value::String(time.to_string());
                        }
                        true
                    }
                    None => false,
                }
            }
            Scalar::Int32 => whole(value).is_some_and(|n| i32::try_from(n).is_ok()),
            Scalar::Int64 => whole(value).is_some(),
            Scalar::Double => value.is_number(),
            Scalar::Boolean => value.is_boolean(),
            Scalar::IntOrString => value.is_string() || whole(value).is_some_and(|n| i32::try_from(n).is_ok()),
            Scalar::Object => value.is_object(),
            Scalar::Any => true,
        };
        if !good {
            // What is no string is read as a number.
            let go = if scalar == Scalar::IntOrString { Some("int32") } else { go };
            return Err(self.wrong(value, ty, owner, go));
        }
        // 3.0 is a whole number in JSON; it is kept as one.
        if matches!(scalar, Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString)
            && value.is_f64()
            && let Some(n) = whole(value)
        {
            *value = n.into();
        }
        Ok(())
    }

    fn def(
        &mut self,
        value: &mut Value,
        def: &'static TypeDef,
        owner: &TypeDef,
        go: Option<&str>,
    ) -> Result<(), DecodeError> {
        if let Some(scalar) = def.is {
            if def.name == "apimachinery.pkg.api.resource.Quantity" {
                return quantity(value);
            }
            return self.scalar(value, scalar, &Type::Ref(def.name), owner, go);
        }
        let Value::Object(map) = value else { return Err(self.wrong(value, &Type::Ref(def.name), owner, go)) };
        let whole = self.extent == Extent::Whole;
        for field in def.fields.iter().filter(|field| whole && field.is_always_there()) {
            let value = map.entry(field.name).or_insert(Value::Null);
            if value.is_null() {
                *value = Value::Object(Map::new());
            }
        }
        let (base, go_base) = (self.path.len(), self.go_path.len());
        let mut dropped = false;
        for (key, v) in map.iter_mut() {
            if base > 0 {
                self.path.push('.');
            }
            self.path.push_str(key);
            match def.field(key) {
                Some(_) if v.is_null() => dropped = true,
                Some(field) => {
                    for part in field.inlined.into_iter().chain([field.name]) {
                        if !self.go_path.is_empty() {
                            self.go_path.push('.');
                        }
                        self.go_path.push_str(part);
                    }
                    self.value(v, &field.ty, def, field.go)?;
                    if whole && is_omitted(v, field) {
                        *v = Value::Null;
                        dropped = true;
                    }
                }
                None => {
                    dropped = true;
                    self.unknown.push(self.path.clone());
                }
            }
            self.path.truncate(base);
            self.go_path.truncate(go_base);
        }
        if dropped {
            map.retain(|key, v| !v.is_null() && def.field(key).is_some());
        }
        Ok(())
    }
}

/// Whether Go would not write the field, because it cannot tell its zero from nothing (`omitempty`).
fn is_omitted(value: &Value, field: &Field) -> bool {
    !field.pointer
        && !field.kept
        && match (&field.ty, value) {
            (Type::List(_), Value::Array(items)) => items.is_empty(),
            (Type::Map(_), Value::Object(map)) => map.is_empty(),
            (Type::Scalar(Scalar::String | Scalar::Bytes), Value::String(text)) => text.is_empty(),
            (Type::Scalar(Scalar::Int32 | Scalar::Int64), Value::Number(n)) => n.as_i64() == Some(0),
            (Type::Scalar(Scalar::Boolean), Value::Bool(on)) => !on,
            _ => false,
        }
}

/// Makes a quantity canonical. What is neither text nor number is no better than text of the wrong form.
fn quantity(value: &mut Value) -> Result<(), DecodeError> {
    let text = match &*value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let quantity: Quantity =
        text.parse().map_err(|e: crate::quantity::ParseError| DecodeError::Value(e.to_string()))?;
    let canonical = quantity.to_string();
    if value.as_str() != Some(&canonical) {
        *value = Value::String(canonical);
    }
    Ok(())
}

fn illegal_base64(text: &str) -> String {
    let position = text
        .bytes()
        .position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=')))
        // What is missing is told of the last four that were begun.
        .unwrap_or(text.len() / 4 * 4);
    format!("illegal base64 data at input byte {position}")
}

fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64))
}

/// Go's zero value of a type.
fn zero(ty: &Type) -> Value {
    match ty {
        Type::Scalar(Scalar::String | Scalar::Bytes | Scalar::DateTime) => "".into(),
        Type::Scalar(Scalar::Boolean) => false.into(),
        Type::Scalar(Scalar::Any) => Value::Null,
        Type::Scalar(Scalar::Object) | Type::Map(_) => Value::Object(Map::new()),
        Type::Scalar(_) => 0.into(),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Ref(name) => match fields::lookup(name).and_then(|d| d.is) {
            Some(scalar) if *name != "apimachinery.pkg.api.resource.Quantity" => zero(&Type::Scalar(scalar)),
            Some(_) => "0".into(),
            None => Value::Object(Map::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as j;

    use super::*;

    #[test]
    fn duplicates_are_found_and_the_last_wins() {
        let d = json(br#"{"a":1,"b":{"c":[{"d":1,"d":2}]},"a":3}"#).unwrap();
        assert_eq!(d.duplicates, ["b.c[0].d", "a"]);
        assert_eq!(d.value, j!({"a": 3, "b": {"c": [{"d": 2}]}}));
    }

    #[test]
    fn depth_and_garbage_are_refused() {
        assert!(json("[".repeat(100_000).as_bytes()).is_err());
        assert!(json(b"{} x").is_err());
        assert!(json(b"").is_err());
    }

    #[test]
    fn conforming_prunes_and_reports() {
        let mut v = j!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "creationTimestamp": null}, "spec": {
            "containers": [{"name": "c", "imagee": "x", "resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}}}], "nope": 1}});
        let unknown = conform(&mut v, "api.core.v1.Pod").unwrap();
        assert_eq!(unknown, ["spec.containers[0].imagee", "spec.nope"]);
        assert_eq!(
            v,
            j!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]}})
        );
    }

    #[test]
    fn wrong_types_are_named_as_go_names_them() {
        let mut v = j!({"spec": {"replicas": "three"}});
        assert_eq!(
            conform(&mut v, "api.apps.v1.Deployment").unwrap_err().to_string(),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
    }

    #[test]
    fn entries_of_lists_and_maps_are_not_part_of_gos_paths() {
        let mut v = j!({"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}});
        assert_eq!(
            conform(&mut v, "api.core.v1.Pod").unwrap_err().to_string(),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string"
        );
        let mut v = j!({"data": {"k": 1}});
        assert_eq!(
            conform(&mut v, "api.core.v1.ConfigMap").unwrap_err().to_string(),
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
        );
    }

    #[test]
    fn syntax_errors_are_gos() {
        for (text, want) in [
            ("{", "unexpected end of JSON input"),
            ("{a}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1\n 2}", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
        ] {
            assert_eq!(json(text.as_bytes()).unwrap_err().to_string(), want, "{text}");
        }
    }

    #[test]
    fn bad_base64_and_quantities() {
        let mut v = j!({"data": {"a": "!"}});
        assert!(conform(&mut v, "api.core.v1.Secret").unwrap_err().to_string().starts_with("illegal base64"));
        let mut v = j!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}});
        assert!(conform(&mut v, "api.core.v1.Pod").unwrap_err().to_string().contains("quantities must match"));
    }
}
