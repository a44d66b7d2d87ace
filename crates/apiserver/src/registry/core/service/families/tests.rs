use super::*;

const SINGLE_V4: &[Family] = &[Family::V4];
const DUAL: &[Family] = &[Family::V4, Family::V6];
const DUAL_V6: &[Family] = &[Family::V6, Family::V4];

fn service(spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "selector": {"a": "b"}}});
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    service
}

/// The families and the policy that a new Service gets, or what is wrong with it.
fn created(spec: Value, cluster: &[Family]) -> Result<(Vec<String>, String), Vec<String>> {
    let mut new = service(spec);
    normalize(&mut new, None);
    let mut faults = Faults::default();
    init(&mut new, None, cluster, &mut faults);
    told(&new, &faults)
}

fn told(o: &Value, faults: &Faults) -> Result<(Vec<String>, String), Vec<String>> {
    if !faults.0.is_empty() {
        return Err(faults.0.iter().map(ToString::to_string).collect());
    }
    let families = list(&o["spec"]["ipFamilies"]).iter().map(|f| f.as_str().unwrap().to_owned()).collect();
    Ok((families, o["spec"]["ipFamilyPolicy"].as_str().unwrap_or_default().to_owned()))
}

fn families(names: &[&str], policy: &str) -> Result<(Vec<String>, String), Vec<String>> {
    Ok((names.iter().map(|name| (*name).to_owned()).collect(), policy.to_owned()))
}

fn refused(message: &str) -> Result<(Vec<String>, String), Vec<String>> {
    Err(vec![message.to_owned()])
}

#[test]
fn what_is_left_out_is_filled_in() {
    assert_eq!(created(json!({}), SINGLE_V4), families(&["IPv4"], SINGLE));
    assert_eq!(created(json!({}), DUAL), families(&["IPv4"], SINGLE));
    assert_eq!(created(json!({}), DUAL_V6), families(&["IPv6"], SINGLE));
    assert_eq!(created(json!({"ipFamilyPolicy": PREFER}), SINGLE_V4), families(&["IPv4"], PREFER));
    assert_eq!(created(json!({"ipFamilyPolicy": PREFER}), DUAL), families(&["IPv4", "IPv6"], PREFER));
    assert_eq!(created(json!({"ipFamilyPolicy": REQUIRE}), DUAL_V6), families(&["IPv6", "IPv4"], REQUIRE));
    let second_first = json!({"ipFamilyPolicy": PREFER, "ipFamilies": ["IPv6"]});
    assert_eq!(created(second_first, DUAL), families(&["IPv6", "IPv4"], PREFER));
    assert_eq!(created(json!({"ipFamilies": ["IPv6"]}), DUAL), families(&["IPv6"], SINGLE));
    // Addresses tell the families.
    assert_eq!(created(json!({"clusterIP": "fd00::1"}), DUAL), families(&["IPv6"], SINGLE));
    let both = json!({"ipFamilyPolicy": REQUIRE, "clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"]});
    assert_eq!(created(both, DUAL), families(&["IPv6", "IPv4"], REQUIRE));
    assert_eq!(created(json!({"type": "ExternalName"}), DUAL), families(&[], ""));
}

#[test]
fn headless_services() {
    let by_hand = |spec: Value| {
        let mut all = json!({"clusterIP": "None", "selector": null});
        for (field, value) in spec.as_object().unwrap() {
            all[field] = value.clone();
        }
        all
    };
    // Without a selector both families are there, whatever the cluster has.
    assert_eq!(created(by_hand(json!({})), SINGLE_V4), families(&["IPv4", "IPv6"], REQUIRE));
    assert_eq!(created(by_hand(json!({"ipFamilies": ["IPv6"]})), SINGLE_V4), families(&["IPv6", "IPv4"], REQUIRE));
    let single = by_hand(json!({"ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv6"]}));
    assert_eq!(created(single, SINGLE_V4), families(&["IPv6"], SINGLE));
    assert_eq!(created(json!({"clusterIP": "None"}), DUAL), families(&["IPv4"], SINGLE));
    let dual = json!({"clusterIP": "None", "ipFamilyPolicy": PREFER});
    assert_eq!(created(dual.clone(), DUAL), families(&["IPv4", "IPv6"], PREFER));
    assert_eq!(created(dual, SINGLE_V4), families(&["IPv4"], PREFER));
}

#[test]
fn what_the_cluster_does_not_have_is_refused() {
    assert_eq!(
        created(json!({"ipFamilyPolicy": REQUIRE}), SINGLE_V4),
        refused(
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
        )
    );
    assert_eq!(
        created(json!({"ipFamilies": ["IPv6"]}), SINGLE_V4),
        refused("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster")
    );
    assert_eq!(
        created(json!({"clusterIP": "fd00::1"}), SINGLE_V4),
        refused("spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster")
    );
}

#[test]
fn fields_have_to_fit_together() {
    let check = |spec: Value| created(spec, DUAL).unwrap_err();
    let list = |ips: Value| json!({"clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": PREFER});
    for (spec, message) in [
        (
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
        ),
        (json!({"ipFamilies": ["IPv4", "IPv4"]}), "spec.ipFamilies[1]: Duplicate value: \"IPv4\""),
        (
            json!({"ipFamilies": ["IPv5"]}),
            "spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
        ),
        (
            json!({"ipFamilyPolicy": "Both"}),
            "spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
        ),
        (
            json!({"clusterIPs": ["10.0.0.1"]}),
            "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified",
        ),
        (
            json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.1"]}),
            "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: first value must match `clusterIP`",
        ),
        (
            list(json!(["None", "10.0.0.1"])),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.0.0.1\"]: 'None' must be the first and only value",
        ),
        (
            list(json!(["10.0.0.1", "10.0.0.2"])),
            "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
    ] {
        assert!(check(spec.clone()).contains(&message.to_owned()), "{spec}: {:?}", check(spec.clone()));
    }
}

/// What becomes of a Service with an update that says only this; faults of both steps.
fn updated(old: &Value, change: Value) -> Result<(Vec<String>, String), Vec<String>> {
    let mut new = old.clone();
    for (field, value) in change.as_object().unwrap() {
        if value.is_null() {
            remove(&mut new["spec"], field);
        } else {
            new["spec"][field] = value.clone();
        }
    }
    if new["spec"]["clusterIP"].is_null() {
        new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
    }
    normalize(&mut new, Some(old));
    let mut faults = Faults::default();
    init(&mut new, Some(old), DUAL, &mut faults);
    if faults.0.is_empty() {
        validate_update(&new, old, &mut faults);
    }
    told(&new, &faults)
}

#[test]
fn a_second_family_comes_and_goes() {
    let single = service(
        json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": SINGLE}),
    );
    assert_eq!(updated(&single, json!({})), families(&["IPv4"], SINGLE));
    for policy in [PREFER, REQUIRE] {
        assert_eq!(updated(&single, json!({"ipFamilyPolicy": policy})), families(&["IPv4", "IPv6"], policy));
    }
    assert_eq!(
        updated(&single, json!({"ipFamilies": ["IPv6"]})).unwrap_err(),
        ["spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`"]
    );
    assert_eq!(
        updated(&single, json!({"clusterIP": "10.0.0.2"})).unwrap_err(),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
    );
    let dual = service(json!({
        "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": PREFER,
    }));
    assert_eq!(updated(&dual, json!({})), families(&["IPv4", "IPv6"], PREFER));
    assert_eq!(updated(&dual, json!({"ipFamilyPolicy": SINGLE})), families(&["IPv4"], SINGLE));
    // Old clients leave the newer fields out.
    let plain = json!({"ipFamilyPolicy": null, "ipFamilies": null, "clusterIPs": null});
    assert_eq!(updated(&dual, plain), families(&["IPv4", "IPv6"], PREFER));
    assert_eq!(
        updated(&dual, json!({"clusterIPs": ["10.0.0.1"]})).unwrap_err(),
        [
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP"
        ]
    );
    assert_eq!(
        updated(&dual, json!({"ipFamilies": ["IPv4"]})).unwrap_err(),
        [
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family"
        ]
    );
    assert_eq!(
        updated(&dual, json!({"clusterIPs": ["10.0.0.1", "fd00::2"]})).unwrap_err(),
        ["spec.clusterIPs[1]: Invalid value: [\"10.0.0.1\",\"fd00::2\"]: may not change once set"]
    );
}

#[test]
fn a_preference_stays_what_it_was_when_the_cluster_gets_a_second_family() {
    let before = service(
        json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": PREFER}),
    );
    assert_eq!(updated(&before, json!({"sessionAffinity": "None"})), families(&["IPv4"], PREFER));
    assert_eq!(updated(&before, json!({"ipFamilyPolicy": REQUIRE})), families(&["IPv4", "IPv6"], REQUIRE));
}

#[test]
fn external_names_have_no_families() {
    let dual = service(json!({
        "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": REQUIRE,
    }));
    let mut external = dual.clone();
    external["spec"]["type"] = "ExternalName".into();
    drop_of_external_name(&mut external, &dual);
    let mut faults = Faults::default();
    forbid(&external["spec"], &mut faults);
    assert!(faults.0.is_empty(), "{:?}", faults.0);
    external["spec"]["ipFamilies"] = json!(["IPv4"]);
    forbid(&external["spec"], &mut faults);
    assert_eq!(faults.0[0].to_string(), "spec.ipFamilies: Forbidden: may not be set for ExternalName services");
    // And back: like a new one.
    remove(&mut external["spec"], "ipFamilies");
    assert_eq!(updated(&external, json!({"type": "ClusterIP"})), families(&["IPv4"], SINGLE));
}
