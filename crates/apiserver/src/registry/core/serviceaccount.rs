//! ServiceAccount.

use crate::registry::{
    strategy::{Strategy, col, int_col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    columns: &[name_col(), int_col("Secrets"), col("Age")],
    row: |o| {
        let secrets = o["secrets"].as_array().map_or(0, Vec::len);
        vec![o["metadata"]["name"].clone(), secrets.into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};
