//! What containers must not be able to do.

use crate::Test;

pub(crate) const TESTS: &[Test] = &[];
