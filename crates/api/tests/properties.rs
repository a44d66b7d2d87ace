//! What holds for every input: no panic, and nothing lost on the way there and back.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use skiff_api::{
    decode, fields, patch,
    quantity::Quantity,
    selector::{FieldSelector, LabelSelector},
};

const POD: &str = "api.core.v1.Pod";

/// Words that mean something to the decoder or the patches, and some that do not.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "metadata",
            "name",
            "labels",
            "spec",
            "containers",
            "env",
            "value",
            "ports",
            "containerPort",
            "resources",
            "limits",
            "cpu",
            "volumes",
            "emptyDir",
            "tolerations",
            "finalizers",
            "status",
            "conditions",
            "type",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
        ])
        .prop_map(str::to_owned),
        "[a-z$/]{0,4}",
    ]
}

/// Any JSON, in the words above.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| (f64::from(n) / 8.0).into()),
        prop::sample::select(vec!["delete", "replace", "merge", "a", "100m", "1Gi", "2024-01-01T00:00:00Z", "YQ=="])
            .prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((key(), inner), 0..6).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A list of objects with different names.
fn named(item: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", item, 0..4).prop_map(|items| {
        let entries = items.into_iter().map(|(name, mut item)| {
            item["name"] = name.into();
            item
        });
        Value::Array(entries.collect())
    })
}

fn map(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", value, 0..4).prop_map(|m| Value::Object(m.into_iter().collect()))
}

/// A pod, or a patch of one that names no directive.
fn pod() -> impl Strategy<Value = Value> {
    let text = || "[x-z]{1,2}".prop_map(Value::from);
    let env = named(text().prop_map(|v| json!({"value": v})));
    let container = (text(), env, map(text()))
        .prop_map(|(image, env, limits)| json!({"image": image, "env": env, "resources": {"limits": limits}}));
    let volume =
        prop::bool::ANY.prop_map(|e| if e { json!({"emptyDir": {}}) } else { json!({"secret": {"secretName": "s"}}) });
    (map(text()), named(container), named(volume), prop::option::of(text())).prop_map(
        |(labels, containers, volumes, host)| {
            let mut pod =
                json!({"metadata": {"labels": labels}, "spec": {"containers": containers, "volumes": volumes}});
            if let Some(host) = host {
                pod["spec"]["hostname"] = host;
            }
            pod
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let _ = decode::json(&bytes);
        let _ = decode::json(text.as_bytes());
        let _ = decode::yaml(&text);
        let _ = skiff_api::protobuf::decode(&bytes);
        let _ = skiff_api::protobuf::decode(&[b"k8s\0".as_slice(), &bytes].concat());
    }

    #[test]
    fn what_was_encoded_is_decoded(value in any_json()) {
        let decoded = decode::json(value.to_string().as_bytes()).unwrap();
        prop_assert_eq!(decoded.value, value);
        prop_assert!(decoded.duplicates.is_empty());
    }

    #[test]
    fn conforming_once_is_enough(mut value in any_json(), which in any::<prop::sample::Index>()) {
        let types: Vec<_> = fields::types().collect();
        let def = which.get(&types);
        if decode::conform(&mut value, def.name).is_ok() {
            let once = value.clone();
            let unknown = decode::conform(&mut value, def.name);
            prop_assert!(matches!(&unknown, Ok(u) if u.is_empty()), "{}: {:?}", once, unknown);
            prop_assert_eq!(value, once);
        }
    }

    #[test]
    fn patches_never_panic(target in any_json(), p in any_json()) {
        for apply in [
            |t: &mut Value, p: &Value| patch::strategic(t, p, POD).is_ok(),
            |t: &mut Value, p: &Value| patch::json(t, p).is_ok(),
            |t: &mut Value, p: &Value| { patch::merge(t, p); true },
        ] {
            apply(&mut target.clone(), &p);
        }
    }

    #[test]
    fn a_strategic_patch_applied_twice_is_applied_once(mut target in pod(), p in pod()) {
        patch::strategic(&mut target, &p, POD).unwrap();
        let once = target.clone();
        patch::strategic(&mut target, &p, POD).unwrap();
        prop_assert_eq!(target, once);
    }

    #[test]
    fn an_object_patched_with_itself_stays(target in pod()) {
        let mut patched = target.clone();
        patch::strategic(&mut patched, &target, POD).unwrap();
        prop_assert_eq!(patched, target);
    }

    #[test]
    fn a_merge_patch_applied_twice_is_applied_once(mut target in any_json(), p in any_json()) {
        patch::merge(&mut target, &p);
        let once = target.clone();
        patch::merge(&mut target, &p);
        prop_assert_eq!(target, once);
    }

    #[test]
    fn quantities_come_back(n in -1_000_000_000i64..1_000_000_000, suffix in prop::sample::select(vec!["", "n", "u", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "E-2"]), fraction in 0u32..1000) {
        let q: Quantity = format!("{n}.{fraction:03}{suffix}").parse().unwrap();
        let text = q.to_string();
        let again: Quantity = text.parse().unwrap();
        prop_assert_eq!(again, q);
        // The canonical form is its own canonical form.
        prop_assert_eq!(again.to_string(), text);
    }

    #[test]
    fn quantities_have_the_order_of_their_numbers(a in any::<i32>(), b in any::<i32>()) {
        let (x, y): (Quantity, Quantity) = (format!("{a}m").parse().unwrap(), format!("{b}m").parse().unwrap());
        prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        prop_assert_eq!((x + y).millis(), i64::from(a) + i64::from(b));
        prop_assert_eq!(Quantity::from_bytes(i64::from(a)).cmp(&Quantity::from_units(i64::from(b))), a.cmp(&b));
    }

    #[test]
    fn quantities_never_panic(text in "[-+0-9.eEinumkKMGTP]{0,24}") {
        let _ = text.parse::<Quantity>().map(|q| (q.to_string(), q.units(), q.millis(), q.is_whole(), q + q, q - q));
    }

    #[test]
    fn label_selectors_come_back(parts in prop::collection::vec(requirement(), 0..4), labels in prop::collection::btree_map("[a-c]", "[x-z]?", 0..3)) {
        let selector = LabelSelector::parse(&parts.join(",")).unwrap();
        let again = LabelSelector::parse(&selector.to_string()).unwrap();
        prop_assert_eq!(again.to_string(), selector.to_string());
        let value = Value::Object(labels.into_iter().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>());
        prop_assert_eq!(selector.matches_value(Some(&value)), again.matches_value(Some(&value)));
    }

    #[test]
    fn selectors_never_panic(text in "[a-z0-9!=<>(), /.\\\\-]{0,30}") {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::parse(&text);
    }
}

fn requirement() -> impl Strategy<Value = String> {
    let key = || prop_oneof!["[a-c]", Just("example.com/x".to_owned())];
    let value = || "[x-z]{0,2}";
    prop_oneof![
        key(),
        key().prop_map(|k| format!("!{k}")),
        (key(), prop::sample::select(vec!["=", "==", "!="]), value()).prop_map(|(k, op, v)| format!("{k}{op}{v}")),
        (key(), prop::sample::select(vec!["in", "notin"]), prop::collection::vec(value(), 1..3))
            .prop_map(|(k, op, vs)| format!("{k} {op} ({})", vs.join(","))),
        (key(), prop::sample::select(vec![">", "<"]), any::<u16>()).prop_map(|(k, op, n)| format!("{k}{op}{n}")),
    ]
}
