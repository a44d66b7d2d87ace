//! What an expression may cost: so that none keeps the server busy, however large the object is that it looks at.
//!
//! The evaluator counts nothing itself. Everything that takes long is a loop over a list or map, so each loop is made
//! to pay for what it goes through before it begins: as much for an element as there are nodes in its body. The limits
//! are upstream's; its costs are finer.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use cel::{
    Context, DeclarationError, ExecutionError, IdedExpr, ResolveResult, Value as CelValue,
    common::ast::{CallExpr, Expr, LiteralValue},
};

use super::walk;

/// No expression may be called so.
const CHARGE: &str = "@charge";
/// What one evaluation may cost.
const PER_CALL: i64 = 1_000_000;
/// What all rules of one object may cost together.
const PER_OBJECT: i64 = 10_000_000;
/// How upstream says that one was too dear.
pub(super) const EXCEEDED: &str = "operation cancelled: actual cost limit exceeded";

/// What is left for a number of evaluations.
pub(crate) struct Budget(AtomicI64);

impl Budget {
    /// For the rules of one object.
    pub(crate) fn of_object() -> Budget {
        Budget(PER_OBJECT.into())
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) <= 0
    }
}

/// An expression that pays for its loops.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) expression: IdedExpr,
    /// What it costs without them.
    cost: i64,
}

impl Counted {
    pub(super) fn new(mut expression: IdedExpr) -> Counted {
        let cost = charge(&mut expression);
        Counted { expression, cost }
    }
}

/// Makes all loops pay; the number of nodes is returned.
fn charge(expression: &mut IdedExpr) -> i64 {
    let mut nodes = 1_i64;
    let Ok(()) = walk::below::<Infallible>(expression, &mut |child| {
        nodes = nodes.saturating_add(charge(child));
        Ok(())
    });
    if let Expr::Comprehension(of) = &mut expression.expr {
        let range = std::mem::take(&mut of.iter_range);
        let each = IdedExpr { id: range.id, expr: Expr::Literal(LiteralValue::Int(nodes.into())) };
        let call = CallExpr { func_name: CHARGE.to_owned(), target: None, args: vec![range, each] };
        of.iter_range = IdedExpr { id: expression.id, expr: Expr::Call(call) };
    }
    nodes
}

/// Counts one evaluation.
pub(super) struct Meter(Arc<AtomicI64>);

impl Meter {
    /// Begins to count, in this context.
    pub(super) fn begin(context: &mut Context<'_, '_>, of: &Counted) -> Result<Meter, DeclarationError> {
        let left = Arc::new(AtomicI64::new(PER_CALL.saturating_sub(of.cost)));
        let pays = left.clone();
        context.add_function(CHARGE, move |range: CelValue, each: i64| -> ResolveResult {
            let elements = match &range {
                CelValue::List(list) => list.len(),
                CelValue::Map(map) => map.map.len(),
                _ => 0,
            };
            let cost = i64::try_from(elements).unwrap_or(i64::MAX).saturating_mul(each);
            if pays.fetch_sub(cost.min(PER_CALL), Ordering::Relaxed) < cost {
                return Err(ExecutionError::function_error(CHARGE, EXCEEDED));
            }
            Ok(range)
        })?;
        Ok(Meter(left))
    }

    /// Whether the limit was reached. What was spent is taken from a budget.
    pub(super) fn end(&self, budget: Option<&Budget>) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        if let Some(budget) = budget {
            budget.0.fetch_sub(PER_CALL - left.max(0), Ordering::Relaxed);
        }
        left < 0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loops_have_an_end() {
        let list: Vec<i64> = (0..1000).collect();
        let variables = [("self", super::super::value(&json!(list)))];
        let holds = |text: &str| super::super::holds(text, &variables);
        assert_eq!(holds("self.all(a, a >= 0)"), Ok(true));
        assert_eq!(holds("self.filter(a, a > 990).all(a, self.exists(b, b == a))"), Ok(true));
        assert_eq!(holds("self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"), Err(EXCEEDED.to_owned()));
        assert_eq!(holds("self.map(a, self.map(b, self.map(c, a))).size() > 0"), Err(EXCEEDED.to_owned()));
        // Nor can the fault be hidden.
        assert_eq!(holds("self.all(a, self.all(b, self.all(c, true))) || true"), Err(EXCEEDED.to_owned()));
    }

    #[test]
    fn budgets_are_spent() {
        let list: Vec<i64> = (0..20_000).collect();
        let variables = [("self", super::super::value(&json!(list)))];
        let budget = Budget::of_object();
        let mut times = 0;
        while !budget.is_spent() {
            assert_eq!(super::super::holds_within("self.all(a, a >= 0)", &variables, &budget), Ok(true));
            times += 1;
        }
        assert!((10..200).contains(&times), "{times}");
    }
}
