use prost::Message;

use super::*;

/// Checks bytes against the published field numbers, spelled out here a second time.
#[test]
fn encodes_with_the_published_numbers() {
    let capability = VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume { fs_type: "x".into(), ..Default::default() })),
        access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter as i32 }),
    };
    assert_eq!(capability.encode_to_vec(), [0x12, 3, 0x0a, 1, b'x', 0x1a, 2, 0x08, 5]);
    let publish = NodePublishVolumeRequest {
        target_path: "t".into(),
        readonly: true,
        volume_context: [("k".to_owned(), "v".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(publish.encode_to_vec(), [0x22, 1, b't', 0x30, 1, 0x42, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
    let can = NodeServiceCapability { rpc: Some(Rpc { r#type: node_rpc::EXPAND_VOLUME }) };
    assert_eq!(can.encode_to_vec(), [0x0a, 2, 0x08, 3]);
    let can = PluginCapability { r#type: Some(PluginCapabilityType::VolumeExpansion(Rpc { r#type: 1 })) };
    assert_eq!(can.encode_to_vec(), [0x12, 2, 0x08, 1]);
}

#[test]
fn skips_unknown_fields() {
    let info = GetPluginInfoResponse::decode(&[0x0a, 1, b'd', 0x98, 0x06, 1][..]).expect("a valid message");
    assert_eq!(info.name, "d");
}
