//! CEL, the expression language of validation rules and admission policies: compiling, values, Kubernetes' functions.
//!
//! Nothing of it is in memory until the first expression is met.

mod cost;
pub(crate) mod mutation;
mod walk;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use cel::{Context, Env, ExecutionError, Program, Value as CelValue, extensions, extractors::This};
use parking_lot::Mutex;
use serde_json::Value;

pub(crate) use self::cost::Budget;
use self::cost::{Counted, EXCEEDED, Meter};

/// These many compiled expressions are kept.
const KEPT: usize = 512;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(true);
    for extension in [extensions::strings, extensions::lists, extensions::math, extensions::encoders] {
        if let Err(error) = env.add_extension(extension) {
            tracing::error!(%error, "a library of CEL functions is missing");
        }
    }
    Arc::new(env)
});

/// How deep brackets, and how many operators, an expression may have: parser and evaluator go down with them, and
/// must not reach the end of a thread's stack.
const MAX_BRACKETS: usize = 48;
const MAX_OPERATORS: usize = 500;

/// Whether an expression is of a size that can be worked on. What looks like an operator in a text counts as well.
fn check_size(text: &str) -> Result<(), String> {
    let (mut depth, mut deepest, mut operators) = (0_usize, 0, 0_usize);
    for c in text.bytes() {
        match c {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'!' | b'?' | b'<' | b'>' => operators += 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    operators += ["&&", "||", "==", "in"].iter().map(|name| text.matches(name).count()).sum::<usize>();
    if deepest > MAX_BRACKETS {
        return Err(format!("expression recursion limit exceeded: {MAX_BRACKETS}"));
    }
    if operators > MAX_OPERATORS {
        return Err(format!("expression has more than {MAX_OPERATORS} operators"));
    }
    Ok(())
}

/// A compiled expression.
pub struct Expression {
    program: Program,
    counted: Counted,
}

impl Expression {
    /// Whether it has a variable of this name.
    pub fn uses(&self, variable: &str) -> bool {
        self.program.references().variables().contains(&variable)
    }
}

/// Compiles an expression, once for as long as it is in use.
pub fn compile(text: &str) -> Result<Arc<Expression>, String> {
    check_size(text)?;
    static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Expression>>>> = LazyLock::new(Mutex::default);
    if let Some(program) = COMPILED.lock().get(text) {
        return Ok(program.clone());
    }
    let program = ENVIRONMENT.compile(text).map_err(|e| e.to_string())?;
    let counted = Counted::new(program.expression().clone());
    let program = Arc::new(Expression { program, counted });
    let mut compiled = COMPILED.lock();
    if compiled.len() >= KEPT {
        compiled.clear();
    }
    compiled.insert(text.to_owned(), program.clone());
    Ok(program)
}

/// Why an expression cannot be one over these variables; nothing if it can.
pub fn fault(text: &str, variables: &[&str]) -> Option<String> {
    let program = match compile(text) {
        Ok(program) => program,
        Err(e) => return Some(format!("compilation failed: {e}")),
    };
    let references = program.program.references();
    let undeclared = references
        .variables()
        .into_iter()
        .find(|v| !variables.contains(v) && !TYPES.contains(v) && !v.starts_with(['@', '_']) && !is_bound(v, text))?;
    Some(format!("compilation failed: ERROR: <input>:1:1: undeclared reference to '{undeclared}' (in container '')"))
}

/// Whether a macro such as `all(x, …)` gives this name its meaning: it then stands first in the macro's brackets.
fn is_bound(name: &str, text: &str) -> bool {
    let after_bracket = |(at, _): (usize, &str)| text[..at].trim_end().ends_with('(');
    let before_comma = |(at, _): (usize, &str)| text[at + name.len()..].trim_start().starts_with(',');
    text.match_indices(name).any(|found| after_bracket(found) && before_comma(found))
}

/// Names of types, which expressions may use as values.
const TYPES: [&str; 11] =
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "type", "null_type", "optional"];

/// A JSON value; whole numbers become `int`, as they are in schemas.
pub fn value(json: &Value) -> CelValue {
    match json {
        Value::Null => CelValue::Null,
        Value::Bool(b) => CelValue::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(i) => CelValue::Int(i),
            None => CelValue::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(s) => CelValue::String(Arc::new(s.clone())),
        Value::Array(list) => CelValue::List(Arc::new(list.iter().map(value).collect())),
        Value::Object(map) => {
            CelValue::from(map.iter().map(|(k, v)| (k.clone(), value(v))).collect::<HashMap<String, CelValue>>())
        }
    }
}

/// Evaluates an expression over these variables.
pub fn evaluate(expression: &Expression, variables: &[(&str, CelValue)]) -> Result<CelValue, String> {
    evaluate_counted(&expression.counted, variables, None)
}

fn evaluate_counted(
    counted: &Counted,
    variables: &[(&str, CelValue)],
    budget: Option<&Budget>,
) -> Result<CelValue, String> {
    let mut context = Context::with_env(ENVIRONMENT.clone());
    for (name, value) in variables {
        context.add_variable_from_value(*name, value.clone());
    }
    add_functions(&mut context).map_err(|e| e.to_string())?;
    let meter = Meter::begin(&mut context, counted).map_err(|e| e.to_string())?;
    let result = CelValue::resolve(&counted.expression, &context);
    // Said also where something else hides the fault.
    if meter.end(budget) {
        return Err(EXCEEDED.to_owned());
    }
    result.map_err(|e| match e {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        other => other.to_string(),
    })
}

/// Evaluates what must be a truth.
pub fn holds(text: &str, variables: &[(&str, CelValue)]) -> Result<bool, String> {
    truth(evaluate(&*compile(text)?, variables)?)
}

/// The same, at the cost of a budget.
pub fn holds_within(text: &str, variables: &[(&str, CelValue)], budget: &Budget) -> Result<bool, String> {
    truth(evaluate_counted(&compile(text)?.counted, variables, Some(budget))?)
}

fn truth(value: CelValue) -> Result<bool, String> {
    match value {
        CelValue::Bool(b) => Ok(b),
        other => Err(format!("cel expression evaluates to {:?} instead of bool", other.type_of())),
    }
}

/// Evaluates what must be a text, such as a message.
pub fn text(expression: &str, variables: &[(&str, CelValue)]) -> Result<String, String> {
    match evaluate(&*compile(expression)?, variables)? {
        CelValue::String(s) => Ok(s.to_string()),
        other => Err(format!("messageExpression should evaluate to a string, not {:?}", other.type_of())),
    }
}

/// Kubernetes' own functions that the library does not have.
fn add_functions(context: &mut Context<'_, '_>) -> Result<(), cel::DeclarationError> {
    let fault = |name: &'static str| move |e: regex::Error| ExecutionError::function_error(name, e);
    context.add_function("find", move |This(text): This<Arc<String>>, pattern: Arc<String>| {
        let regex = regex::Regex::new(&pattern).map_err(fault("find"))?;
        cel::ResolveResult::Ok(regex.find(&text).map(|m| m.as_str().to_owned()).unwrap_or_default().into())
    })?;
    context.add_function("findAll", move |This(text): This<Arc<String>>, pattern: Arc<String>| {
        let regex = regex::Regex::new(&pattern).map_err(fault("findAll"))?;
        cel::ResolveResult::Ok(regex.find_iter(&text).map(|m| m.as_str().to_owned()).collect::<Vec<String>>().into())
    })?;
    context.add_function("isQuantity", |text: Arc<String>| text.parse::<skiff_api::quantity::Quantity>().is_ok())?;
    context.add_function("escapeKey", |key: Arc<String>| key.replace('~', "~0").replace('/', "~1"))?;
    context.add_function("sum", |This(list): This<Arc<Vec<CelValue>>>| {
        list.iter().try_fold(CelValue::Int(0), |sum, item| match (sum, item) {
            (CelValue::Int(a), CelValue::Int(b)) => {
                a.checked_add(*b).map(CelValue::Int).ok_or_else(|| ExecutionError::function_error("sum", "overflow"))
            }
            (CelValue::Int(0), CelValue::Float(b)) => Ok(CelValue::Float(*b)),
            (CelValue::Float(a), CelValue::Float(b)) => Ok(CelValue::Float(a + b)),
            _ => Err(ExecutionError::function_error("sum", "no numbers")),
        })
    })?;
    context.add_function("isSorted", |This(list): This<Arc<Vec<CelValue>>>| {
        list.windows(2).all(|pair| pair[0].partial_cmp(&pair[1]).is_some_and(std::cmp::Ordering::is_le))
    })?;
    Ok(())
}

/// Nanoseconds of a duration as Go writes it, such as `1h30m` or `1.5s`.
pub fn duration(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12), ("d", 8.64e13)];
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    if rest == "0" {
        return Some(0.0);
    }
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..end])?;
        total += number * unit;
        rest = &rest[end..];
    }
    Some(sign * total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_of_policies_and_rules() {
        let object = value(
            &json!({"metadata": {"labels": {"environment": "dev"}}, "spec": {"replicas": 3, "names": ["a", "b"]}}),
        );
        let variables = [("object", object)];
        for good in [
            "has(object.metadata.labels) && has(object.metadata.labels.environment)",
            "object.metadata.labels.environment in ['dev', 'staging', 'prod']",
            "object.spec.replicas <= 5 && object.spec.replicas == 3",
            "object.spec.names.all(n, n.size() == 1) && object.spec.names.isSorted()",
            "!has(object.spec.missing)",
            "'abc 123'.find('[0-9]+') == '123' && 'Abc'.lowerAscii() == 'abc'",
            "[1, 2, 3].sum() == 6 && isQuantity('100Mi')",
            "object.metadata.?labels[?'none'].orValue('x') == 'x'",
            "'a%sc'.format(['b']) == 'abc' && 'abc'.matches('^a.*')",
        ] {
            assert_eq!(holds(good, &variables), Ok(true), "{good}");
        }
        assert_eq!(holds("object.metadata.labels.team == 'x'", &variables), Err("no such key: team".into()));
        assert!(holds("object.spec.replicas", &variables).is_err());
        assert_eq!(text("'replicas: ' + string(object.spec.replicas)", &variables), Ok("replicas: 3".into()));
        assert!(fault("object.x ==", &["object"]).is_some());
        assert!(fault("self.x", &["object"]).is_some_and(|f| f.contains("undeclared reference to 'self'")));
        assert_eq!(fault("object.items.all(i, i > 0)", &["object"]), None);
    }

    #[test]
    fn deep_expressions_are_refused() {
        let brackets = |n: usize| "(".repeat(n) + "1" + &")".repeat(n);
        let lists = |n: usize| "[".repeat(n) + "1" + &"]".repeat(n) + " == []";
        for deep in
            [brackets(5000), lists(5000), "!".repeat(9001) + "true", "1+".repeat(9000) + "1", "a.".repeat(9000) + "b"]
        {
            assert!(compile(&deep).is_err());
        }
        assert!(compile(&("1 in ".repeat(9000) + "[1]")).is_err() && compile(&("1==".repeat(9000) + "1")).is_err());
        // What is not refused fits on the stack of the runtime's threads.
        let (b, o) = (MAX_BRACKETS, MAX_OPERATORS);
        let all = [
            brackets(b),
            lists(b),
            "!".repeat(o) + "true",
            "-".repeat(o) + "1",
            "1+".repeat(o) + "1",
            "a.".repeat(o) + "b",
            "true ? 1 : ".repeat(o) + "1",
            "true && ".repeat(o) + "true",
        ];
        for large in all {
            let work = move || compile(&large).map(|p| evaluate(&p, &[]).is_ok());
            let done = std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join();
            assert!(done.is_ok());
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Some(5.4e12));
        assert_eq!(duration("-1.5s"), Some(-1.5e9));
        assert_eq!(duration("1"), None);
    }
}
