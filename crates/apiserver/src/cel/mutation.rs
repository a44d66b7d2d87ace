//! Expressions that make patches: `Object{…}` for apply configurations, `JSONPatch{…}` for JSON patches.
//!
//! Values of these types are maps to the evaluator. That their names are right is looked at in the expression itself.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use base64::Engine as _;
use cel::{
    IdedExpr, Value as CelValue,
    common::ast::{EntryExpr, Expr, LiteralValue, MapEntryExpr, MapExpr, StructExpr},
};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::{KEPT, cost::Counted, walk};

/// Names that such expressions may use beside their variables: that of a library.
pub(crate) const NAMES: [&str; 1] = ["jsonpatch"];

/// A type that patches are made of.
const OBJECT: &str = "Object";
const JSON_PATCH: &str = "JSONPatch";
const JSON_PATCH_FIELDS: [&str; 4] = ["op", "path", "from", "value"];

/// An expression that makes a patch.
pub(crate) struct Mutation(Counted);

/// Compiles an expression that makes a patch, once for as long as it is in use.
pub(crate) fn compile(text: &str) -> Result<Arc<Mutation>, String> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Mutation>>>> = LazyLock::new(Mutex::default);
    if let Some(expression) = COMPILED.lock().get(text) {
        return Ok(expression.clone());
    }
    let mut expression = super::compile(text)?.program.expression().clone();
    rewrite(&mut expression, None)?;
    let expression = Arc::new(Mutation(Counted::new(expression)));
    let mut compiled = COMPILED.lock();
    if compiled.len() >= KEPT {
        compiled.clear();
    }
    compiled.insert(text.to_owned(), expression.clone());
    Ok(expression)
}

/// Evaluates a compiled expression, and returns what it makes as JSON.
pub(crate) fn evaluate(expression: &Mutation, variables: &[(&str, CelValue)]) -> Result<Value, String> {
    json(&super::evaluate_counted(&expression.0, variables, None)?)
}

/// Makes maps of typed values. `wanted` is the type that stands here, if the field that it is for says so.
fn rewrite(expression: &mut IdedExpr, wanted: Option<&str>) -> Result<(), String> {
    match &mut expression.expr {
        Expr::Struct(of) => {
            let map = map_of(std::mem::take(of), wanted)?;
            expression.expr = Expr::Map(map);
        }
        Expr::Call(call) => {
            // The one library with a name of its own.
            if call.target.as_ref().is_some_and(|t| t.expr == Expr::Ident(NAMES[0].to_owned())) {
                call.target = None;
            }
            walk::below(expression, &mut |below| rewrite(below, None))?;
        }
        Expr::List(list) => {
            for element in &mut list.elements {
                rewrite(element, wanted)?;
            }
        }
        _ => walk::below(expression, &mut |below| rewrite(below, None))?,
    }
    Ok(())
}

fn map_of(of: StructExpr, wanted: Option<&str>) -> Result<MapExpr, String> {
    let name = of.type_name.trim_start_matches('.').to_owned();
    if let Some(wanted) = wanted
        && wanted != name
    {
        return Err(format!(
            "type mismatch: unexpected type name {name:?}, expected {wanted:?}, which matches field name path from root Object type"
        ));
    }
    let is_object = name == OBJECT || name.starts_with("Object.");
    if !is_object && name != JSON_PATCH {
        return Err(format!("undeclared reference to '{name}' (in container '')"));
    }
    let mut map = MapExpr::default();
    for mut entry in of.entries {
        let EntryExpr::StructField(field) = entry.expr else { continue };
        if !is_object && !JSON_PATCH_FIELDS.contains(&field.field.as_str()) {
            return Err(format!("undefined field '{}'", field.field));
        }
        let mut value = field.value;
        let below = is_object.then(|| format!("{name}.{}", field.field));
        rewrite(&mut value, below.as_deref())?;
        let key = Expr::Literal(LiteralValue::String(field.field.into()));
        let key = IdedExpr { id: entry.id, expr: key };
        entry.expr = EntryExpr::MapEntry(MapEntryExpr { key, value, optional: field.optional });
        map.entries.push(entry);
    }
    Ok(map)
}

/// A value of an expression as JSON.
fn json(value: &CelValue) -> Result<Value, String> {
    Ok(match value {
        CelValue::Null => Value::Null,
        CelValue::Bool(b) => (*b).into(),
        CelValue::Int(i) => (*i).into(),
        CelValue::UInt(u) => (*u).into(),
        CelValue::Float(f) => (*f).into(),
        CelValue::String(s) => s.as_str().into(),
        CelValue::Bytes(b) => base64::engine::general_purpose::STANDARD.encode(b.as_slice()).into(),
        CelValue::List(list) => list.iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        CelValue::Map(map) => {
            let entries = map.map.iter().map(|(key, value)| Ok((key.to_string(), json(value)?)));
            entries.collect::<Result<Map<_, _>, String>>()?.into()
        }
        other => return Err(format!("a value of type {:?} cannot be part of an object", other.type_of())),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(text: &str) -> Result<Value, String> {
        let object = super::super::value(&json!({"metadata": {"name": "n"}, "spec": {"names": ["a", "b"]}}));
        evaluate(&*compile(text)?, &[("object", object)])
    }

    #[test]
    fn typed_values_are_objects() {
        assert_eq!(
            made("Object{spec: Object.spec{replicas: 2, names: object.spec.names + ['c']}}"),
            Ok(json!({"spec": {"replicas": 2, "names": ["a", "b", "c"]}}))
        );
        let containers =
            "Object{spec: Object.spec{containers: object.spec.names.map(n, Object.spec.containers{name: n})}}";
        assert_eq!(made(containers), Ok(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})));
        let patch = "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b~c'), value: Object.metadata{x: true}}]";
        assert_eq!(made(patch), Ok(json!([{"op": "add", "path": "/metadata/labels/a~1b~0c", "value": {"x": true}}])));
    }

    #[test]
    fn names_of_types_are_checked() {
        let fault = made("Object{spec: Object.other{replicas: 2}}").unwrap_err();
        assert!(
            fault.starts_with("type mismatch: unexpected type name \"Object.other\", expected \"Object.spec\""),
            "{fault}"
        );
        assert!(made("Strange{}").is_err());
        assert!(made("[JSONPatch{operation: 'add'}]").is_err());
    }
}
