//! The kinds of the group `admissionregistration.k8s.io`.

mod matching;
pub(crate) mod mutatingadmissionpolicy;
pub(crate) mod mutatingadmissionpolicybinding;
pub(crate) mod validatingadmissionpolicy;
pub(crate) mod validatingadmissionpolicybinding;
pub(crate) mod webhookconfiguration;
