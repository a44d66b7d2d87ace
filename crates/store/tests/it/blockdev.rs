//! Power cuts under a file system: a block device of the test's own loses what was not flushed.
//!
//! ```text
//! writing process (crash::child), killed at each cut
//!   ext4
//!     loop device
//!       file of a FUSE file system, served by the serving process
//!         SimDisk: knows what was flushed, and drops by chance what was not
//! ```
//!
//! There are three processes, all of them this test's binary: the serving one never touches the file system
//! that depends on it, so it can always be ended, and with it everything else; the testing one mounts,
//! starts the writing ones and checks. All live in a mount namespace that ends with them. (It must not end
//! with the serving process: that would unmount what it serves after it has stopped serving. So `unshare`
//! stays in it, and what is mounted is unmounted also when the test fails.)

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skiff_store::{
    Embedded, Options, Revision, Store,
    embedded::{Disk, Medium, sim::SimDisk},
};

use crate::{crash, seen::Seen};

const CUTS: usize = 40;
const DISK_BYTES: u64 = 64 * 1024 * 1024;
/// Set in the processes of the namespace: the folder to work in, and for the testing one, that it is it.
const DIR: &str = "SKIFF_TEST_BLOCK_DEVICE";
const TESTING: &str = "SKIFF_TEST_BLOCK_DEVICE_TESTING";

#[test]
fn nothing_acknowledged_is_lost() {
    if let Some(missing) = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|device| !Path::new(device).exists()) {
        let _ = writeln!(std::io::stderr(), "skipped: no {missing} here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "blockdev::serving"])
        .env(DIR, dir.path())
        .output()
        .expect("unshare is part of every Linux system");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn serving() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from).filter(|_| std::env::var_os(TESTING).is_none()) else {
        return;
    };
    for name in ["fuse", "mounted"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    let disk = formatted(&dir.join("image"));
    serve(&dir.join("fuse"), Server { now: disk.plug().open().unwrap(), disk });
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "blockdev::testing"])
        .env(TESTING, "1")
        .output()
        .unwrap();
    // Only if the test failed is it still mounted.
    let _ = Command::new("umount").arg(dir.join("mounted")).output();
    run("umount", &[&text(&dir.join("fuse"))]);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn testing() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from).filter(|_| std::env::var_os(TESTING).is_some()) else {
        return;
    };
    let (fuse, mounted) = (dir.join("fuse"), dir.join("mounted"));
    let mount = || run("mount", &["-o", "loop", &text(&fuse.join("disk")), &text(&mounted)]);
    let unmount = || run("umount", &[&text(&mounted)]);
    // The server is told what to do by being asked for files of these names, which it does not have.
    let tell = |what: String| assert!(!fuse.join(what).exists());
    let path = mounted.join("store");
    let mut rng = StdRng::from_os_rng();
    let mut seen = Seen::default();
    for cut in 0..CUTS {
        mount();
        if cut % 4 == 0 {
            let store = Embedded::open(&path, &Options::default()).unwrap();
            seen.check(&store).await.unwrap_or_else(|error| panic!("after {cut} cuts: {error}"));
            let at = Revision(seen.resume().0 - 1);
            if at > store.compacted().max(Revision::INITIAL) {
                store.compact(at).await.unwrap();
            }
        }
        let power: u64 = rng.random();
        crash::round(&path, &mut seen, &mut rng, || tell(format!("cut-{power}")));
        unmount();
        tell("start".into());
    }
    mount();
    let store = Embedded::open(&path, &Options::default()).unwrap();
    seen.check(&store).await.unwrap();
    store.check().await.unwrap();
    drop(store);
    unmount();
    assert!(seen.acknowledged.len() > CUTS, "only {} writes in {CUTS} rounds", seen.acknowledged.len());
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary folders are UTF-8").to_owned()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A disk with an empty file system on it.
fn formatted(image: &Path) -> SimDisk {
    File::create(image).unwrap().set_len(DISK_BYTES).unwrap();
    run("mkfs.ext4", &["-q", "-F", &text(image)]);
    let disk = SimDisk::with_content(std::fs::read(image).unwrap());
    disk.set_mild();
    disk
}

struct Server {
    disk: SimDisk,
    /// The disk as it is plugged in now.
    now: Arc<dyn Disk>,
}

/// Mounts a FUSE file system with one file, `disk`.
fn serve(at: &Path, mut server: Server) {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd())).unwrap();
    rustix::mount::mount("disk", at, "fuse", rustix::mount::MountFlags::empty(), Some(options.as_c_str())).unwrap();
    thread::spawn(move || {
        let mut request = vec![0; 2 * MAX_WRITE];
        loop {
            match (&device).read(&mut request) {
                Ok(len) => {
                    if let Some(answer) = server.answer(&request[..len]) {
                        // One that was interrupted wants no answer.
                        let _ = (&device).write(&answer);
                    }
                }
                // A request was interrupted before it could be read.
                Err(error) if matches!(error.raw_os_error(), Some(ENOENT | EINTR | EAGAIN)) => {}
                // Unmounted.
                Err(_) => return,
            }
        }
    });
}

const MAX_WRITE: usize = 1024 * 1024;
const ROOT: u64 = 1;
const DISK: u64 = 2;

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;

/// Answers a request of the kernel's, as `linux/fuse.h` lays them out.
impl Server {
    fn answer(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let word32 = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let word64 = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (word32(4), word64(8), word64(16));
        // Behind the header of 40 bytes; reads and writes have: handle, offset, size.
        let (offset, size) = if matches!(opcode, 15 | 16) { (word64(48), word32(56) as usize) } else { (0, 0) };
        let result = match opcode {
            // FORGET and BATCH_FORGET have no answer.
            2 | 42 => return None,
            // LOOKUP
            1 => self.look_up(request[40..].split(|byte| *byte == 0).next().unwrap_or_default()),
            // GETATTR
            3 => Ok([words64(&[1]), words32(&[0, 0]), attributes(node)].concat()),
            // OPEN, past the page cache: what a power cut loses must not live on there. And OPENDIR.
            14 => Ok([words64(&[0]), words32(&[1, 0])].concat()),
            27 => Ok([words64(&[0]), words32(&[0, 0])].concat()),
            // READ
            15 => {
                let offset = offset.min(DISK_BYTES);
                let mut data = vec![0; size.min((DISK_BYTES - offset) as usize)];
                self.now.read(offset, &mut data).map(|()| data).map_err(|_| EIO)
            }
            // WRITE
            16 => {
                let written = self.now.write(offset, &request[80..80 + size]);
                written.map(|()| words32(&[size as u32, 0])).map_err(|_| EIO)
            }
            // FSYNC
            20 => self.now.sync().map(|()| Vec::new()).map_err(|_| EIO),
            // FLUSH, RELEASE, RELEASEDIR, ACCESS, DESTROY
            25 | 18 | 29 | 34 | 38 => Ok(Vec::new()),
            // INIT: version 7.31, big writes of up to 256 pages.
            26 => {
                let flags = word32(52) & ((1 << 5) | (1 << 22));
                let mut init = words32(&[7, word32(44).min(31), 0, flags, 0, MAX_WRITE as u32, 1, 256, 0]);
                init.resize(64, 0);
                Ok(init)
            }
            _ => Err(ENOSYS),
        };
        let (error, body) = match result {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let mut answer = words32(&[16 + body.len() as u32, error as u32]);
        answer.extend(words64(&[unique]));
        answer.extend(body);
        Some(answer)
    }

    fn look_up(&mut self, name: &[u8]) -> Result<Vec<u8>, i32> {
        match std::str::from_utf8(name).map_err(|_| ENOENT)? {
            "disk" => return Ok([words64(&[DISK, 0, 1, 1]), words32(&[0, 0]), attributes(DISK)].concat()),
            "start" => self.now = self.disk.plug().open().map_err(|_| EIO)?,
            other => {
                if let Some(seed) = other.strip_prefix("cut-").and_then(|seed| seed.parse().ok()) {
                    self.disk.cut_power(&mut StdRng::seed_from_u64(seed));
                }
            }
        }
        Err(ENOENT)
    }
}

/// `struct fuse_attr` of the root or the file.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (0o40_755, 0) } else { (0o100_600, DISK_BYTES) };
    [words64(&[node, size, size / 512, 0, 0, 0]), words32(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
