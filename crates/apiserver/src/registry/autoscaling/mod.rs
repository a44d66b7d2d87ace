//! Autoscalers.

pub(crate) mod horizontalpodautoscaler;
