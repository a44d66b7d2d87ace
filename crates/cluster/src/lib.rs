//! Local clusters: nodes as sandboxes of namespaces.
