//! Links the program at fixed addresses.
//!
//! A position-independent program is relocated at its start, which makes a private copy of about a megabyte in every
//! process; a node runs this program once for each pod. What address randomisation would protect here is memory-safe
//! code.
fn main() {
    for argument in ["-no-pie", "-static"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
