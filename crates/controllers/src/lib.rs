//! The controllers, all of one shape on one runtime.
