//! The running binary as an image that is always present.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store::{Image, ImageStore};
use crate::{Digest, Error, Reference};

/// The repository of the built-in image; its tag is the version.
pub const BUILTIN_REPOSITORY: &str = "skiff.local/skiff";

/// How to make the built-in image.
#[derive(Clone, Debug)]
pub struct Builtin {
    /// The static program to put at `/skiff`; usually `/proc/self/exe`.
    pub program: PathBuf,
    /// The tag.
    pub version: String,
}

const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n\
    nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n";
const NSSWITCH: &str = "hosts: files dns\n";

impl ImageStore {
    /// Makes sure that the built-in image is there and is of this program.
    ///
    /// The image is known by the program's device, inode, size and time, not by its content, so that
    /// a start with an unchanged program costs a look. The program is linked where it can be, which also
    /// lets all system pods share its pages with the daemon, and copied elsewhere. Its layer has no
    /// archive form; it can be run but not exported.
    pub fn ensure_builtin(&self, builtin: &Builtin) -> Result<Arc<Image>, Error> {
        let what = || format!("make the built-in image of {}", builtin.program.display());
        let program = fs::metadata(&builtin.program).map_err(Error::io(what()))?;
        let identity = format!(
            "{}:{}:{}:{}.{}:{}",
            program.dev(),
            program.ino(),
            program.len(),
            program.mtime(),
            program.mtime_nsec(),
            builtin.version
        );
        let diff_id = Digest::of(identity.as_bytes());
        let config = serde_json::json!({
            "architecture": crate::manifest::host_architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": ["/skiff"],
                "Env": ["PATH=/"],
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        })
        .to_string();
        let reference: Reference = format!("{BUILTIN_REPOSITORY}:{}", builtin.version).parse()?;
        let id = Digest::of(config.as_bytes());
        if let Some(image) = self.find(&reference.to_string())
            && image.id == id
            && self.layer_fs(&diff_id).join("skiff").exists()
        {
            return Ok(image);
        }
        if !self.has_layer(&diff_id) {
            self.install_layer(&diff_id, |root| {
                fill(root, &builtin.program, &program).map_err(Error::io(what()))?;
                Ok(program.len())
            })?;
        }
        let image = self.add_image(config.as_bytes(), vec![diff_id], std::slice::from_ref(&reference))?;
        self.record(Image { pinned: true, ..Image::clone(&image) }, &[reference])
    }
}

fn fill(root: &Path, program: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let target = root.join("skiff");
    // A link has the owner and mode of the original: only one that everybody may run will do.
    let runnable = metadata.mode() & 0o555 == 0o555;
    let linked = runnable
        && fs::canonicalize(program).and_then(|path| fs::hard_link(path, &target)).is_ok()
        && fs::metadata(&target).is_ok_and(|m| m.ino() == metadata.ino());
    if !linked {
        match fs::remove_file(&target) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::copy(program, &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    }
    for dir in ["etc", "tmp", "bin", "proc", "sys", "dev", "run"] {
        fs::create_dir(root.join(dir))?;
        fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for (name, content) in [("passwd", PASSWD), ("group", GROUP), ("nsswitch.conf", NSSWITCH)] {
        let path = root.join("etc").join(name);
        fs::write(&path, content)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    symlink("/skiff", root.join("bin/skiff"))
}
