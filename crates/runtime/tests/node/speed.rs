//! How long a pod takes. Prints; fails only when it is far off, as other work runs beside.

use crate::Test;

pub(crate) const TESTS: &[Test] = &[];
