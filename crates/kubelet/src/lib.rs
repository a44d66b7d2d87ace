//! The kubelet: pods into containers through CRI.
