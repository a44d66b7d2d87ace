//! Which Ingresses are ours.

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

/// Our class's name.
pub const CLASS: &str = "skiff";
/// What classes of ours say in `spec.controller`.
pub const CONTROLLER: &str = "skiff.local/ingress";
/// Most manifests name this class; it is served unless another controller has it.
const COMMON_CLASS: &str = "nginx";
/// How a class was named before there were classes.
const ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Whether an Ingress is for this controller. `class` finds a class by name.
pub fn serves<C: AsRef<IngressClass>>(ingress: &Ingress, class: impl Fn(&str) -> Option<C>) -> bool {
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let annotated = || ingress.metadata.annotations.as_ref()?.get(ANNOTATION).map(String::as_str);
    let Some(name) = named.or_else(annotated) else {
        return false;
    };
    match class(name) {
        Some(class) => class.as_ref().spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER),
        None => name == CLASS || name == COMMON_CLASS,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn classes() {
        let class = |controller: &str| -> Arc<IngressClass> {
            Arc::new(serde_json::from_value(json!({"metadata": {}, "spec": {"controller": controller}})).unwrap())
        };
        let find = |classes: &[(&str, &str)], ingress: Value| {
            let ingress: Ingress = serde_json::from_value(ingress).unwrap();
            serves(&ingress, |name| classes.iter().find(|(n, _)| *n == name).map(|(_, controller)| class(controller)))
        };
        let named = |name: &str| json!({"metadata": {}, "spec": {"ingressClassName": name}});
        assert!(find(&[], named("skiff")) && find(&[], named("nginx")) && !find(&[], named("traefik")));
        assert!(!find(&[("nginx", "k8s.io/ingress-nginx")], named("nginx")), "somebody else's");
        assert!(find(&[("mine", CONTROLLER)], named("mine")));
        assert!(find(&[], json!({"metadata": {"annotations": {ANNOTATION: "nginx"}}, "spec": {}})));
        assert!(!find(&[], json!({"metadata": {}, "spec": {}})));
    }
}
