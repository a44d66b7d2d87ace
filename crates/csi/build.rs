//! Writes the gRPC clients and servers of the CSI services, and of the registration of plugins, from tables.

#[path = "../cri/build/services.rs"]
mod services;

use services::{Rpc, service, unary};
use tonic_build::manual::Builder;

const IDENTITY: &[Rpc] = &[
    unary("GetPluginInfo", "GetPluginInfoRequest", "GetPluginInfoResponse"),
    unary("GetPluginCapabilities", "GetPluginCapabilitiesRequest", "GetPluginCapabilitiesResponse"),
    unary("Probe", "ProbeRequest", "ProbeResponse"),
];

const CONTROLLER: &[Rpc] = &[
    unary("CreateVolume", "CreateVolumeRequest", "CreateVolumeResponse"),
    unary("DeleteVolume", "DeleteVolumeRequest", "DeleteVolumeResponse"),
    unary("ControllerPublishVolume", "ControllerPublishVolumeRequest", "ControllerPublishVolumeResponse"),
    unary("ControllerUnpublishVolume", "ControllerUnpublishVolumeRequest", "ControllerUnpublishVolumeResponse"),
    unary("ValidateVolumeCapabilities", "ValidateVolumeCapabilitiesRequest", "ValidateVolumeCapabilitiesResponse"),
    unary("ControllerGetCapabilities", "ControllerGetCapabilitiesRequest", "ControllerGetCapabilitiesResponse"),
    unary("CreateSnapshot", "CreateSnapshotRequest", "CreateSnapshotResponse"),
    unary("DeleteSnapshot", "DeleteSnapshotRequest", "DeleteSnapshotResponse"),
    unary("ControllerExpandVolume", "ControllerExpandVolumeRequest", "ControllerExpandVolumeResponse"),
];

const NODE: &[Rpc] = &[
    unary("NodeStageVolume", "NodeStageVolumeRequest", "NodeStageVolumeResponse"),
    unary("NodeUnstageVolume", "NodeUnstageVolumeRequest", "NodeUnstageVolumeResponse"),
    unary("NodePublishVolume", "NodePublishVolumeRequest", "NodePublishVolumeResponse"),
    unary("NodeUnpublishVolume", "NodeUnpublishVolumeRequest", "NodeUnpublishVolumeResponse"),
    unary("NodeGetVolumeStats", "NodeGetVolumeStatsRequest", "NodeGetVolumeStatsResponse"),
    unary("NodeExpandVolume", "NodeExpandVolumeRequest", "NodeExpandVolumeResponse"),
    unary("NodeGetCapabilities", "NodeGetCapabilitiesRequest", "NodeGetCapabilitiesResponse"),
    unary("NodeGetInfo", "NodeGetInfoRequest", "NodeGetInfoResponse"),
];

const REGISTRATION: &[Rpc] = &[
    unary("GetInfo", "InfoRequest", "PluginInfo"),
    unary("NotifyRegistrationStatus", "RegistrationStatus", "RegistrationStatusResponse"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../cri/build/services.rs");
    let csi = |name, methods| service("csi.v1", name, "crate::v1", methods);
    Builder::new().compile(&[
        csi("Identity", IDENTITY),
        csi("Controller", CONTROLLER),
        csi("Node", NODE),
        service("pluginregistration", "Registration", "crate::registration", REGISTRATION),
    ]);
}
