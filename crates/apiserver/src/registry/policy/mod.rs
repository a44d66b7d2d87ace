//! Disruption budgets.

pub(crate) mod poddisruptionbudget;
