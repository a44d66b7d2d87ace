//! Lease.

use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    create_on_update: true,
    unconditional_update: false,
    validate: |o, faults| {
        let spec = &o["spec"];
        if let Some(s) = spec["leaseDurationSeconds"].as_i64()
            && s <= 0
        {
            faults.invalid("spec.leaseDurationSeconds", s, "must be greater than 0");
        }
        faults.non_negative("spec.leaseTransitions", spec["leaseTransitions"].as_i64().unwrap_or(0));
    },
    columns: &[name_col(), col("Holder"), col("Age")],
    row: |o| vec![o["metadata"]["name"].clone(), table::text_or(&o["spec"]["holderIdentity"], ""), table::created(o)],
    ..Strategy::DEFAULT
};
