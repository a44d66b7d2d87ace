//! Objects in protobuf, as Go clients send them: turned into JSON values with the numbers of the table of fields.
//!
//! The bytes begin with `k8s\0` and an envelope that names apiVersion and kind. Go writes every field that is no
//! pointer, also zeros; the table says which zeros mean something.

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::{
    fields::{self, Field, Scalar, Type, TypeDef},
    kinds,
};

const MAGIC: &[u8] = b"k8s\0";
/// Messages in messages deeper than this are refused.
const MAX_DEPTH: usize = 100;

/// The bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("proto: unexpected end of message")]
    Truncated,
    #[error("proto: wrong wire type {wire} for field {field}")]
    WireType { wire: u8, field: String },
    #[error("proto: text of field {0} is not UTF-8")]
    Text(String),
    #[error("proto: value of field {0} is not JSON")]
    Json(String),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Kind { api_version: String, kind: String },
    #[error("proto: nested too deeply")]
    Depth,
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// An object from its envelope.
pub fn decode(bytes: &[u8]) -> Result<Value> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader { rest: body };
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => {
                let mut meta = Reader { rest: reader.bytes()? };
                while let Some((number, wire)) = meta.tag()? {
                    match (number, wire) {
                        (1, 2) => api_version = text(meta.bytes()?, "apiVersion")?,
                        (2, 2) => kind = text(meta.bytes()?, "kind")?,
                        _ => meta.skip(wire)?,
                    }
                }
            }
            (2, 2) => raw = reader.bytes()?,
            _ => reader.skip(wire)?,
        }
    }
    let unknown = || ProtobufError::Kind { api_version: api_version.clone(), kind: kind.clone() };
    let def = definition(&api_version, &kind).ok_or_else(unknown)?;
    let mut object = Map::new();
    object.insert("kind".into(), kind.clone().into());
    object.insert("apiVersion".into(), api_version.clone().into());
    message(raw, def, &[], &mut object, 0)?;
    Ok(Value::Object(object))
}

/// The type of a kind, also of those that are no resources, such as `DeleteOptions`.
fn definition(api_version: &str, kind: &str) -> Option<&'static TypeDef> {
    if let Some(kind) = kinds::by_api_version(api_version, kind) {
        return fields::lookup(&kind.type_name());
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    fields::lookup(&format!("api.{package}.{version}.{kind}"))
        .or_else(|| fields::lookup(&format!("apimachinery.pkg.apis.meta.v1.{kind}")))
}

/// Reads tags and values one after the other.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(ProtobufError::Truncated)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Truncated)
    }

    /// Number and wire type of the next field; nothing at the end.
    fn tag(&mut self) -> Result<Option<(u32, u8)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Truncated)?;
        Ok(Some((number, (tag & 7) as u8)))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.rest.len() {
            return Err(ProtobufError::Truncated);
        }
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let n = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Truncated)?;
        self.take(n)
    }

    fn skip(&mut self, wire: u8) -> Result<()> {
        match wire {
            0 => self.varint().map(|_| ()),
            1 => self.take(8).map(|_| ()),
            2 => self.bytes().map(|_| ()),
            5 => self.take(4).map(|_| ()),
            _ => Err(ProtobufError::WireType { wire, field: "unknown".into() }),
        }
    }
}

fn text(bytes: &[u8], field: &str) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| ProtobufError::Text(field.to_owned()))
}

/// Reads a message into an object. `inside` are the numbers of the inlined messages that led here.
fn message(
    bytes: &[u8],
    def: &'static TypeDef,
    inside: &[u32],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Depth);
    }
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.tag()? {
        let mut path = inside.to_vec();
        path.push(number);
        let found = def.fields.iter().find(|f| f.numbers.starts_with(&path));
        match found {
            Some(field) if field.numbers.len() == path.len() => value(&mut reader, wire, field, out, depth)?,
            Some(_) if wire == 2 => message(reader.bytes()?, def, &path, out, depth + 1)?,
            // A field of a version that this table does not know.
            _ => reader.skip(wire)?,
        }
    }
    Ok(())
}

fn value(reader: &mut Reader<'_>, wire: u8, field: &Field, out: &mut Map<String, Value>, depth: usize) -> Result<()> {
    match &field.ty {
        Type::List(item) => {
            let item = one(reader, wire, item, field.name, depth)?;
            match out.entry(field.name).or_insert_with(|| Value::Array(Vec::new())) {
                Value::Array(items) => items.push(item),
                other => *other = Value::Array(vec![item]),
            }
        }
        Type::Map(item) => {
            if wire != 2 {
                return Err(ProtobufError::WireType { wire, field: field.name.to_owned() });
            }
            let (key, item) = entry(reader.bytes()?, item, field.name, depth)?;
            match out.entry(field.name).or_insert_with(|| Value::Object(Map::new())) {
                Value::Object(map) => {
                    map.insert(key, item);
                }
                other => *other = Value::Object(Map::from_iter([(key, item)])),
            }
        }
        ty => {
            let v = one(reader, wire, ty, field.name, depth)?;
            if !v.is_null() && (field.pointer || !is_zero(&v)) {
                out.insert(field.name.to_owned(), v);
            }
        }
    }
    Ok(())
}

fn is_zero(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
    }
}

/// A map's entry: the key is field 1, the value field 2.
fn entry(bytes: &[u8], ty: &Type, name: &str, depth: usize) -> Result<(String, Value)> {
    let mut reader = Reader { rest: bytes };
    let (mut key, mut found) = (String::new(), None);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire, ty) {
            (1, 2, _) => key = text(reader.bytes()?, name)?,
            // A list in a map is a message that holds the list.
            (2, 2, Type::List(item)) => {
                let mut list = Reader { rest: reader.bytes()? };
                let mut items = Vec::new();
                while let Some((number, wire)) = list.tag()? {
                    if number == 1 {
                        items.push(one(&mut list, wire, item, name, depth)?);
                    } else {
                        list.skip(wire)?;
                    }
                }
                found = Some(Value::Array(items));
            }
            (2, ..) => found = Some(one(&mut reader, wire, ty, name, depth)?),
            _ => reader.skip(wire)?,
        }
    }
    let zero = match ty {
        Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double) => 0.into(),
        Type::Scalar(Scalar::Boolean) => false.into(),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Ref(_) | Type::Map(_) => Value::Object(Map::new()),
        Type::Scalar(_) => "".into(),
    };
    Ok((key, found.unwrap_or(zero)))
}

fn one(reader: &mut Reader<'_>, wire: u8, ty: &Type, name: &str, depth: usize) -> Result<Value> {
    let wrong = || ProtobufError::WireType { wire, field: name.to_owned() };
    match ty {
        Type::Scalar(scalar) => match (scalar, wire) {
            (Scalar::String, 2) => Ok(text(reader.bytes()?, name)?.into()),
            (Scalar::Bytes, 2) => Ok(base64::engine::general_purpose::STANDARD.encode(reader.bytes()?).into()),
            (Scalar::Boolean, 0) => Ok((reader.varint()? != 0).into()),
            // Negative numbers are sign-extended to 64 bits.
            (Scalar::Int32 | Scalar::Int64, 0) => Ok((reader.varint()? as i64).into()),
            (Scalar::Double, 1) => {
                let bytes: [u8; 8] = reader.take(8)?.try_into().map_err(|_| ProtobufError::Truncated)?;
                Ok(f64::from_le_bytes(bytes).into())
            }
            (Scalar::Object | Scalar::Any, 2) => raw_json(reader.bytes()?, name),
            _ => Err(wrong()),
        },
        Type::Ref(type_name) => {
            if wire != 2 {
                return Err(wrong());
            }
            let bytes = reader.bytes()?;
            let Some(def) = fields::lookup(type_name) else { return Ok(Value::Null) };
            special(bytes, def, name, depth).unwrap_or_else(|| {
                let mut object = Map::new();
                message(bytes, def, &[], &mut object, depth + 1)?;
                Ok(Value::Object(object))
            })
        }
        Type::List(_) | Type::Map(_) => Err(wrong()),
    }
}

/// Bytes in field 1 that are JSON.
fn raw_json(bytes: &[u8], name: &str) -> Result<Value> {
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.tag()? {
        if number == 1 && wire == 2 {
            let raw = reader.bytes()?;
            if raw.is_empty() {
                return Ok(Value::Null);
            }
            // The same limits as for any JSON that clients send.
            return crate::decode::json(raw).map(|d| d.value).map_err(|_| ProtobufError::Json(name.to_owned()));
        }
        reader.skip(wire)?;
    }
    Ok(Value::Null)
}

/// Types whose JSON is not that of their message.
fn special(bytes: &[u8], def: &'static TypeDef, name: &str, depth: usize) -> Option<Result<Value>> {
    let short = def.name.rsplit('.').next().unwrap_or_default();
    Some(match short {
        "Time" | "MicroTime" => time(bytes, short == "MicroTime"),
        "Quantity" => first_text(bytes, name),
        "IntOrString" => int_or_string(bytes, name),
        "RawExtension" | "FieldsV1" | "JSON" => raw_json(bytes, name),
        "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
            schema_or(bytes, def, short, name, depth)
        }
        _ => return None,
    })
}

fn time(bytes: &[u8], micro: bool) -> Result<Value> {
    let mut reader = Reader { rest: bytes };
    let (mut seconds, mut nanos) = (0i64, 0i32);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 0) => seconds = reader.varint()? as i64,
            (2, 0) => nanos = reader.varint()? as i32,
            _ => reader.skip(wire)?,
        }
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let Ok(time) = jiff::Timestamp::new(seconds, nanos) else { return Ok(Value::Null) };
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

fn first_text(bytes: &[u8], name: &str) -> Result<Value> {
    let mut reader = Reader { rest: bytes };
    let mut found = Value::Null;
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => found = text(reader.bytes()?, name)?.into(),
            _ => reader.skip(wire)?,
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8], name: &str) -> Result<Value> {
    let mut reader = Reader { rest: bytes };
    let (mut is_text, mut int, mut string) = (false, 0i64, String::new());
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 0) => is_text = reader.varint()? == 1,
            (2, 0) => int = reader.varint()? as i64,
            (3, 2) => string = text(reader.bytes()?, name)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if is_text { string.into() } else { int.into() })
}

/// A schema, or what may stand in its place.
fn schema_or(bytes: &[u8], def: &'static TypeDef, short: &str, name: &str, depth: usize) -> Result<Value> {
    let props = def.name.strip_suffix(short).map(|package| format!("{package}JSONSchemaProps"));
    let props = props.and_then(|n| fields::lookup(&n)).ok_or(ProtobufError::Depth)?;
    let schema = |bytes: &[u8]| {
        let mut object = Map::new();
        message(bytes, props, &[], &mut object, depth + 1)?;
        Ok(Value::Object(object))
    };
    let mut reader = Reader { rest: bytes };
    let (mut one, mut list, mut allows) = (None, Vec::new(), false);
    while let Some((number, wire)) = reader.tag()? {
        match (short, number, wire) {
            ("JSONSchemaPropsOrBool", 1, 0) => allows = reader.varint()? != 0,
            ("JSONSchemaPropsOrBool", 2, 2) => one = Some(schema(reader.bytes()?)?),
            ("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", 1, 2) => one = Some(schema(reader.bytes()?)?),
            ("JSONSchemaPropsOrArray", 2, 2) => list.push(schema(reader.bytes()?)?),
            ("JSONSchemaPropsOrStringArray", 2, 2) => list.push(text(reader.bytes()?, name)?.into()),
            _ => reader.skip(wire)?,
        }
    }
    Ok(match one {
        Some(schema) => schema,
        None if short == "JSONSchemaPropsOrBool" => allows.into(),
        None => Value::Array(list),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A field of bytes.
    fn len(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend(bytes);
        out
    }
    fn int(number: u8, n: u8) -> Vec<u8> {
        vec![number << 3, n]
    }
    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [len(1, api_version.as_bytes()), len(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), len(1, &meta), len(2, raw)].concat()
    }

    #[test]
    fn a_deployment_is_read_with_its_meaningful_zeros() {
        let container = [len(1, b"c"), len(2, b"nginx"), len(12, &len(1, &len(1, &len(1, b"x"))))].concat();
        let template = [len(1, &[]), len(2, &len(2, &container))].concat();
        let spec = [int(1, 0), int(5, 0), len(3, &template), len(4, &[])].concat();
        let raw = [len(1, &[len(1, b"web"), len(3, b"")].concat()), len(2, &spec), len(3, &int(1, 0))].concat();
        assert_eq!(
            decode(&envelope("apps/v1", "Deployment", &raw)).unwrap(),
            json!({
                "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web"},
                "spec": {"replicas": 0, "template": {"spec": {"containers": [
                    {"name": "c", "image": "nginx", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
                ]}}},
            })
        );
    }

    #[test]
    fn inlined_messages_maps_and_special_types() {
        // A volume's source is a message of its own in protobuf and inlined in JSON.
        let volume = [len(1, b"v"), len(2, &len(2, &[]))].concat();
        let meta = [len(1, b"p"), len(11, &[len(1, b"a"), len(2, b"b")].concat()), len(8, &int(1, 1))].concat();
        let raw = [len(1, &meta), len(2, &len(1, &volume))].concat();
        assert_eq!(
            decode(&envelope("v1", "Pod", &raw)).unwrap(),
            json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "1970-01-01T00:00:01Z"},
                "spec": {"volumes": [{"name": "v", "emptyDir": {}}]},
            })
        );
        let raw = [len(2, &[len(1, b"k"), len(2, b"v")].concat())].concat();
        let secret = decode(&envelope("v1", "Secret", &raw)).unwrap();
        assert_eq!(secret["data"], json!({"k": "dg=="}));
        let options = decode(&envelope("v1", "DeleteOptions", &int(1, 0))).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 0);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&envelope("v1", "Pod", &bytes[..bytes.len().min(100)]));
            let _ = decode(&bytes);
        }
    }
}
