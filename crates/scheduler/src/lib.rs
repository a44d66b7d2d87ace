//! The scheduler: a framework of filter and score plugins.
