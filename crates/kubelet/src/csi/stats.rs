//! How full volumes are, as their drivers say it.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skiff_csi::v1;

use super::{
    Csi, Volume,
    paths::{GLOBAL_MOUNT, MOUNT},
};
use crate::pod::PodExt;

impl Csi {
    /// One volume of a pod, called `name` there, as `/stats/summary` has it. `None` if its driver does not say.
    pub(crate) async fn stats(&self, pod: &Pod, name: &str, volume: &Volume) -> Option<Value> {
        let driver = self.driver(&volume.driver).ok()?;
        let can = driver.capabilities().await.ok().filter(|can| can.stats)?;
        let uid = pod.uid();
        let (path, staging) = match volume.block {
            true => (self.paths.device_publish(&volume.name, &uid), self.paths.device_staging(&volume.name)),
            false => (
                self.paths.pod_volume(&uid, &volume.name).join(MOUNT),
                self.paths.staging(&volume.driver, &volume.handle).join(GLOBAL_MOUNT),
            ),
        };
        let staged = can.stages && !volume.ephemeral;
        let request = v1::NodeGetVolumeStatsRequest {
            volume_id: volume.handle.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            staging_target_path: if staged { staging.to_string_lossy().into_owned() } else { String::new() },
        };
        let answer = match driver.stats(request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(volume = volume.name, %error, "a driver does not tell how full a volume is");
                return None;
            }
        };
        Some(summary(&answer, name, volume))
    }
}

fn summary(answer: &v1::NodeGetVolumeStatsResponse, name: &str, volume: &Volume) -> Value {
    let mut out = json!({"time": jiff::Timestamp::now().to_string(), "name": name});
    for usage in &answer.usage {
        let keys = match v1::Unit::try_from(usage.unit) {
            Ok(v1::Unit::Bytes) => ["availableBytes", "capacityBytes", "usedBytes"],
            Ok(v1::Unit::Inodes) => ["inodesFree", "inodes", "inodesUsed"],
            _ => continue,
        };
        for (key, value) in keys.iter().zip([usage.available, usage.total, usage.used]) {
            out[*key] = json!(value.max(0));
        }
    }
    if let Some((namespace, claim)) = &volume.claim {
        out["pvcRef"] = json!({"name": claim, "namespace": namespace});
    }
    if let Some(condition) = &answer.volume_condition {
        out["volumeHealthStats"] = json!({"abnormal": condition.abnormal});
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_inodes() {
        let usage = |unit: v1::Unit| v1::VolumeUsage { available: 1, total: 3, used: 2, unit: unit as i32 };
        let answer = v1::NodeGetVolumeStatsResponse {
            usage: vec![usage(v1::Unit::Bytes), usage(v1::Unit::Inodes)],
            volume_condition: None,
        };
        let volume = Volume { claim: Some(("n".into(), "c".into())), ..Volume::default() };
        let out = summary(&answer, "data", &volume);
        assert_eq!((&out["name"], &out["capacityBytes"], &out["inodesFree"]), (&json!("data"), &json!(3), &json!(1)));
        assert_eq!(out["pvcRef"]["name"], "c");
    }
}
