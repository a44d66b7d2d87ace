//! MutatingAdmissionPolicyBinding.

use super::validatingadmissionpolicybinding::{STRATEGY as VALIDATING, validate_binding};
use crate::registry::strategy::Strategy;

pub(crate) static STRATEGY: Strategy = Strategy { validate: |o, faults| validate_binding(&o["spec"], faults), ..BASE };

const BASE: Strategy = Strategy {
    generation: true,
    defaults: super::validatingadmissionpolicybinding::defaults,
    columns: VALIDATING.columns,
    row: super::validatingadmissionpolicybinding::row,
    ..Strategy::DEFAULT
};
