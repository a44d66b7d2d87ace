//! A local cluster, made with `skiff cluster create`.

use std::path::{Path, PathBuf};

use crate::{Home, Kubectl, Output, Version, command, host, leftovers};

/// A running cluster; deleted with its home.
#[derive(Debug)]
pub struct Cluster {
    pub home: Home,
    pub name: String,
    /// What `skiff cluster create` printed.
    pub created: Output,
}

impl Cluster {
    /// `skiff cluster create NAME --isolated ARGS…`. How full this machine's disk is does not matter, unless the
    /// arguments say so.
    #[track_caller]
    pub fn create(name: &str, args: &[&str]) -> Self {
        let home = Home::new();
        let careless = ["--eviction-hard", "memory.available<100Mi", "--image-gc-high-threshold", "100"];
        let careless = if args.contains(&"--eviction-hard") { &[][..] } else { &careless[..] };
        let created = home.skiff(&[&["cluster", "create", name, "--isolated"], args, careless].concat());
        created.clone().ok();
        Self { home, name: name.to_owned(), created }
    }

    /// Loads images that `cargo xtask images` has made.
    #[track_caller]
    pub fn load(&self, images: &[&str]) {
        for image in images {
            self.load_archive(&host::prepared(&format!("images/{image}.tar")));
        }
    }

    /// Loads the images of an archive.
    #[track_caller]
    pub fn load_archive(&self, archive: &Path) {
        self.home.skiff(&["image", "load", archive.to_str().expect("UTF-8"), "--cluster", &self.name]).ok();
    }

    /// As the administrator, without a namespace.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl {
            version: Version::V1_36,
            kubeconfig: self.home.kubeconfig(),
            home: self.home.dir.clone(),
            namespace: None,
        }
    }

    /// The control plane's, or another node's, file as seen from outside.
    pub fn node_file(&self, node: &str, path: &str) -> PathBuf {
        self.home.dir.join("skiff/clusters").join(&self.name).join("nodes").join(node).join("rootfs").join(path)
    }

    /// The end of the daemon's log of the control plane, for messages.
    pub fn log(&self) -> String {
        let path = self.node_file(&format!("{}-control-plane", self.name), "var/log/skiff.log");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// `skiff cluster delete`, and what is left afterwards.
    pub fn delete(&self) -> Vec<String> {
        let mut left = self.home.clear();
        left.extend(leftovers::cgroups(&self.name).into_iter().map(|cgroup| format!("cgroup {cgroup}")));
        left
    }
}

/// `curl` on this "machine".
pub fn curl(args: &[&str]) -> Output {
    let mut curl = std::process::Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "5"]).args(args);
    command::run(&mut curl, "")
}
