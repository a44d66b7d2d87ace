//! What is in a volume that is made of objects of the API: functions without I/O.

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{File, Payload};
use crate::{
    fields::{self, Addresses, Allocatable},
    pod::PodExt,
};

/// Permission bits of files for which nothing is said.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

/// All keys of an object, or those that are asked for at the paths that are asked for.
fn select<'a>(
    values: impl Iterator<Item = (&'a String, &'a [u8])> + Clone,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: i32,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, String> {
    let file = |content: &[u8], mode: i32| File { content: content.to_vec(), mode: bits(mode), uid: None };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(values.map(|(key, value)| (key.clone(), file(value, default_mode))).collect());
    };
    let mut out = Payload::new();
    for item in items {
        match values.clone().find(|(key, _)| **key == item.key) {
            Some((_, value)) => {
                out.insert(item.path.clone(), file(value, item.mode.unwrap_or(default_mode)));
            }
            None if optional => {}
            None => return Err(missing(&item.key)),
        }
    }
    Ok(out)
}

/// The files of a ConfigMap; `None` is one that does not exist.
pub(crate) fn config_map(
    name: &str,
    object: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: i32,
) -> Result<Payload, String> {
    let Some(object) = object else {
        return if optional { Ok(Payload::new()) } else { Err(format!("configmap {name:?} not found")) };
    };
    let text = object.data.iter().flatten().map(|(k, v)| (k, v.as_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(k, v)| (k, v.0.as_slice()));
    let missing = |key: &str| format!("configmap references non-existent config key: {key}");
    select(text.chain(binary), items, optional, default_mode, missing)
}

/// The files of a Secret; `None` is one that does not exist.
pub(crate) fn secret(
    name: &str,
    object: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: i32,
) -> Result<Payload, String> {
    let Some(object) = object else {
        return if optional { Ok(Payload::new()) } else { Err(format!("secret {name:?} not found")) };
    };
    let values = object.data.iter().flatten().map(|(k, v)| (k, v.0.as_slice()));
    let missing = |key: &str| format!("references non-existent secret key: {key}");
    select(values, items, optional, default_mode, missing)
}

/// The files of a downward API volume.
pub(crate) fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    addresses: &Addresses,
    allocatable: &Allocatable,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    for item in items {
        let content = if let Some(field) = &item.field_ref {
            fields::field(pod, addresses, &field.field_path)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let containers = pod.all_containers();
            let found = containers.iter().find(|(_, c)| c.name == name);
            let (_, container) = found.ok_or_else(|| format!("container {name} not found"))?;
            fields::resource(selector, container, allocatable)?
        } else {
            continue;
        };
        let mode = bits(item.mode.unwrap_or(default_mode));
        out.insert(item.path.clone(), File { content: content.into_bytes(), mode, uid: None });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_items_and_modes() {
        let map: ConfigMap =
            serde_json::from_value(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}})).unwrap();
        let all = config_map("m", Some(&map), None, false, 0o644).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(all["c"].content, [0, 1]);
        let items: Vec<KeyToPath> = serde_json::from_value(json!([{"key": "a", "path": "x/y", "mode": 256}])).unwrap();
        let some = config_map("m", Some(&map), Some(&items), false, 0o644).unwrap();
        assert_eq!((some.len(), some["x/y"].mode), (1, 0o400));
        let missing: Vec<KeyToPath> = serde_json::from_value(json!([{"key": "z", "path": "z"}])).unwrap();
        assert_eq!(
            config_map("m", Some(&map), Some(&missing), false, 0).unwrap_err(),
            "configmap references non-existent config key: z"
        );
        assert!(config_map("m", Some(&map), Some(&missing), true, 0).unwrap().is_empty());
        assert_eq!(secret("s", None, None, false, 0).unwrap_err(), "secret \"s\" not found");
        assert!(secret("s", None, None, true, 0).unwrap().is_empty());
    }
}
