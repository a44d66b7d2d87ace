use prost::Message;

use super::*;

/// Checks bytes against the published field numbers, spelled out here a second time.
#[test]
fn encodes_with_the_published_numbers() {
    let spec = ImageSpec { image: "a".into(), user_specified_image: "b".into(), ..Default::default() };
    assert_eq!(spec.encode_to_vec(), [0x0a, 1, b'a', 0x92, 0x01, 1, b'b']);
    let filter = PodSandboxFilter {
        state: Some(PodSandboxStateValue { state: PodSandboxState::NotReady as i32 }),
        label_selector: [("k".to_owned(), "v".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(filter.encode_to_vec(), [0x12, 2, 0x08, 1, 0x1a, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
    let security = LinuxContainerSecurityContext {
        supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
        ..Default::default()
    };
    assert_eq!(security.encode_to_vec(), [0x88, 0x01, 1]);
}

#[test]
fn skips_unknown_fields() {
    // Field 16 of ContainerConfig is the Windows part.
    let bytes = [0x82, 0x01, 2, 0x0a, 0, 0x58 + 8, 1];
    let config = ContainerConfig::decode(&bytes[..]).expect("a valid message");
    assert!(config.stdin);
}

#[test]
fn credentials_are_not_shown() {
    let auth = AuthConfig {
        username: "me".into(),
        password: "hunter2".into(),
        auth: "bWU6aHVudGVyMg==".into(),
        ..Default::default()
    };
    let shown = format!("{auth:?}");
    assert!(shown.contains("me") && !shown.contains("hunter2") && !shown.contains("bWU6"));
}
