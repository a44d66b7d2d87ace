//! Going through an expression.

use cel::{
    IdedExpr,
    common::ast::{EntryExpr, Expr},
};

/// Calls `visit` with every expression directly below one, until it fails.
pub(super) fn below<E>(
    expression: &mut IdedExpr,
    visit: &mut dyn FnMut(&mut IdedExpr) -> Result<(), E>,
) -> Result<(), E> {
    match &mut expression.expr {
        Expr::Call(call) => {
            call.target.iter_mut().try_for_each(|target| visit(target))?;
            call.args.iter_mut().try_for_each(visit)
        }
        Expr::List(list) => list.elements.iter_mut().try_for_each(visit),
        Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| entries(&mut entry.expr, visit)),
        Expr::Struct(of) => of.entries.iter_mut().try_for_each(|entry| entries(&mut entry.expr, visit)),
        Expr::Select(select) => visit(&mut select.operand),
        Expr::Comprehension(of) => {
            let parts = [&mut of.iter_range, &mut of.accu_init, &mut of.loop_cond, &mut of.loop_step, &mut of.result];
            parts.into_iter().try_for_each(visit)
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Ok(()),
    }
}

fn entries<E>(entry: &mut EntryExpr, visit: &mut dyn FnMut(&mut IdedExpr) -> Result<(), E>) -> Result<(), E> {
    match entry {
        EntryExpr::StructField(field) => visit(&mut field.value),
        EntryExpr::MapEntry(entry) => {
            visit(&mut entry.key)?;
            visit(&mut entry.value)
        }
    }
}
