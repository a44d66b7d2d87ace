//! Images made in memory.

use std::io::Write;

use skiff_images::Digest;

/// An image: its configuration and its layers, compressed with gzip.
pub(crate) struct Made {
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, path, *content).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// An image with these files in its layers.
pub(crate) fn image(layers: &[&[(&str, &str)]]) -> Made {
    let mut diff_ids = Vec::new();
    let mut compressed = Vec::new();
    for files in layers {
        let files: Vec<_> = files.iter().map(|(p, c)| (*p, c.as_bytes())).collect();
        let plain = tar_of(&files);
        diff_ids.push(Digest::of(&plain).to_string());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("in memory");
        compressed.push(gzip.finish().expect("in memory"));
    }
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/app/run"], "Cmd": null, "StopSignal": "SIGQUIT" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    Made { config: config.to_string().into_bytes(), layers: compressed }
}

impl Made {
    pub(crate) fn manifest(&self) -> Vec<u8> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(layer), "size": layer.len(),
                })
            })
            .collect();
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&self.config), "size": self.config.len(),
            },
            "layers": layers,
        })
        .to_string()
        .into_bytes()
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest())
    }
}

/// What `skopeo copy … oci-archive:` writes.
pub(crate) fn oci_archive(made: &Made, name: &str) -> Vec<u8> {
    let manifest = made.manifest();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(&manifest), "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": name },
        }],
    })
    .to_string();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let mut files = vec![
        (blob(&made.config), made.config.clone()),
        (blob(&manifest), manifest),
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ];
    files.extend(made.layers.iter().map(|layer| (blob(layer), layer.clone())));
    files.push(("index.json".to_owned(), index.into_bytes()));
    let files: Vec<_> = files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
    tar_of(&files)
}

/// What `docker save` wrote before it knew OCI.
pub(crate) fn docker_archive(made: &Made, tag: &str) -> Vec<u8> {
    let config = format!("{}.json", Digest::of(&made.config).hex());
    let names: Vec<_> = (0..made.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let tag = if tag.contains(':') { tag.to_owned() } else { format!("{tag}:latest") };
    let manifest = serde_json::json!([{ "Config": config, "RepoTags": [tag], "Layers": names }]).to_string();
    let mut files = vec![(config.as_str(), made.config.as_slice())];
    files.extend(names.iter().zip(&made.layers).map(|(n, l)| (n.as_str(), l.as_slice())));
    files.push(("manifest.json", manifest.as_bytes()));
    tar_of(&files)
}
