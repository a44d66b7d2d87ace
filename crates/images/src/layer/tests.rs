use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

/// One entry of a layer under test.
enum Item<'a> {
    Dir(&'a str, u32),
    File(&'a str, u32, &'a [u8]),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str, u32, u32),
    Xattr(&'a str, &'a str, &'a [u8]),
}
use Item::*;

/// A tar archive with these names exactly as given; the builder's own methods refuse bad ones.
fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        let mut name = |path: &str| {
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        };
        let mut content: &[u8] = b"";
        match item {
            Dir(path, mode) => {
                name(path);
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
            }
            File(path, mode, bytes) => {
                name(path);
                content = bytes;
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode);
            }
            Link(path, target) | Hard(path, target) => {
                name(path);
                let hard = matches!(item, Hard(..));
                header.set_entry_type(if hard { EntryType::Link } else { EntryType::Symlink });
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
                header.set_mode(0o777);
            }
            Device(path, major, minor) => {
                name(path);
                header.set_entry_type(EntryType::Char);
                header.set_mode(0o666);
                header.set_device_major(*major).expect("fits");
                header.set_device_minor(*minor).expect("fits");
            }
            Xattr(path, key, value) => {
                let record = [(format!("SCHILY.xattr.{key}"), value.to_vec())];
                builder
                    .append_pax_extensions(record.iter().map(|(k, v)| (k.as_str(), v.as_slice())))
                    .expect("in memory");
                name(path);
                header.set_entry_type(EntryType::Regular);
                header.set_mode(0o755);
            }
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `layer` beside `outside`, which must stay as it is.
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("layer")).expect("a directory");
        std::fs::create_dir(dir.path().join("outside")).expect("a directory");
        std::fs::write(dir.path().join("outside/secret"), "secret").expect("a file");
        Place { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("layer").join(path)
    }

    fn unpack(&self, items: &[Item<'_>], lower: &[PathBuf]) -> Result<Unpacked, Error> {
        unpack(&archive(items)[..], &self.path(""), lower, &Limits::default())
    }

    fn assert_outside_untouched(&self) {
        let outside = self.dir.path().join("outside");
        let names: Vec<_> =
            std::fs::read_dir(&outside).expect("still there").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(std::fs::read(outside.join("secret")).expect("readable"), b"secret");
        assert_eq!(std::fs::metadata(outside.join("secret")).expect("there").nlink(), 1);
        assert_eq!(std::fs::read_dir(self.dir.path()).expect("readable").count(), 2);
    }
}

#[test]
fn attributes_survive() {
    let place = Place::new();
    let cap = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let unpacked = place
        .unpack(
            &[
                Dir("./", 0o755),
                Dir("tmp/", 0o1777),
                File("tmp/su", 0o4755, b"content"),
                Hard("tmp/hard", "./tmp/su"),
                Link("tmp/soft", "/etc/nowhere"),
                Device("null", 1, 3),
                Xattr("capable", "security.capability", cap),
                Xattr("tricky", "trusted.overlay.redirect", b"/etc"),
            ],
            &[],
        )
        .expect("unpacks");
    assert_eq!(unpacked.bytes, 7);
    let su = std::fs::metadata(place.path("tmp/su")).expect("there");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 7, 8, 1_000_000_000));
    assert_eq!(su.ino(), std::fs::metadata(place.path("tmp/hard")).expect("there").ino());
    let tmp = std::fs::metadata(place.path("tmp")).expect("there");
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1_000_000_000));
    let soft = std::fs::symlink_metadata(place.path("tmp/soft")).expect("there");
    assert!(soft.is_symlink() && soft.uid() == 7);
    let null = std::fs::metadata(place.path("null")).expect("there");
    assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
    let mut value = [0; 64];
    let n = rustix::fs::getxattr(place.path("capable"), "security.capability", &mut value[..]);
    assert_eq!(&value[..n.expect("kept")], cap);
    let n = rustix::fs::getxattr(place.path("tricky"), "trusted.overlay.redirect", &mut value[..]);
    assert!(n.is_err(), "an overlay attribute came through");
}

#[test]
fn whiteouts_take_overlay_form() {
    let place = Place::new();
    place
        .unpack(
            &[
                Dir("a/", 0o755),
                File("a/.wh.gone", 0o644, b""),
                Dir("b/", 0o755),
                File("b/.wh..wh..opq", 0o644, b""),
                File("b/kept", 0o644, b"x"),
                File(".wh.anew", 0o644, b""),
                Dir("anew/", 0o755),
                File(".wh..wh.plnk", 0o644, b""),
            ],
            &[],
        )
        .expect("unpacks");
    let gone = std::fs::metadata(place.path("a/gone")).expect("there");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |path: &str| {
        let mut value = [0; 8];
        rustix::fs::getxattr(place.path(path), "trusted.overlay.opaque", &mut value[..]).is_ok()
    };
    assert!(opaque("b") && opaque("anew") && !opaque("a"));
    assert!(!place.path(".wh..wh.plnk").exists());
    for bad in [".wh.", ".wh..", ".wh..."] {
        let result = Place::new().unpack(&[File(bad, 0o644, b"")], &[]);
        assert!(matches!(result, Err(Error::UnsafeEntry { .. })), "{bad}: {result:?}");
    }
}

#[test]
fn nothing_escapes() {
    let outside = |place: &Place| place.dir.path().join("outside").display().to_string();
    // Names that lead out are refused.
    for bad in ["../outside/x", "a/../../outside/x", "/../outside/x", "..", "a/b/../../../x"] {
        let place = Place::new();
        let result = place.unpack(&[File(bad, 0o644, b"x")], &[]);
        assert!(matches!(result, Err(Error::UnsafeEntry { .. })), "{bad}: {result:?}");
        place.assert_outside_untouched();
    }
    // Absolute names are below the root.
    let place = Place::new();
    place.unpack(&[File("/etc/x", 0o644, b"x")], &[]).expect("unpacks");
    assert!(place.path("etc/x").exists());
    // A link that leads out, and then something through it.
    for target in ["../outside", "../../../../../../../../outside", "OUTSIDE"] {
        let place = Place::new();
        let real = outside(&place);
        let target = if target == "OUTSIDE" { real.as_str() } else { target };
        let items = [Link("l", target), File("l/x", 0o644, b"x"), File("l/secret", 0o644, b"x")];
        place.unpack(&items, &[]).expect("stays inside");
        place.assert_outside_untouched();
    }
    // Writing onto the link itself replaces it.
    let place = Place::new();
    let real = format!("{}/secret", outside(&place));
    place.unpack(&[Link("l", &real), File("l", 0o644, b"mine")], &[]).expect("unpacks");
    place.assert_outside_untouched();
    assert_eq!(std::fs::read(place.path("l")).expect("there"), b"mine");
    // Hard links to the outside, directly and through a link.
    for (items, what) in [
        (vec![Hard("h", "../outside/secret")], "dots"),
        (vec![Hard("h", &real)], "absolute"),
        (vec![Link("l", "../outside"), Hard("h", "l/secret")], "through a link"),
    ] {
        let place = Place::new();
        assert!(place.unpack(&items, &[]).is_err(), "{what}");
        place.assert_outside_untouched();
    }
    // A directory entry over a link does not change what the link leads to.
    let place = Place::new();
    let real = outside(&place);
    let before = std::fs::metadata(&real).expect("there").mode();
    place.unpack(&[Link("d", &real), Dir("d/", 0o777)], &[]).expect("unpacks");
    assert_eq!(std::fs::metadata(&real).expect("there").mode(), before);
    assert!(std::fs::symlink_metadata(place.path("d")).expect("there").is_dir());
    // Links in a circle.
    let place = Place::new();
    let items = [Link("a", "b"), Link("b", "a"), File("a/x", 0o644, b"")];
    assert!(matches!(place.unpack(&items, &[]), Err(Error::Unpack { .. })));
    // A forged whiteout, the root itself, a file as parent.
    for items in [
        vec![Device("w", 0, 0)],
        vec![File("./", 0o644, b"x")],
        vec![Link(".", "/etc")],
        vec![File("f", 0o644, b""), File("f/x", 0o644, b"")],
        vec![Hard("h", "/")],
    ] {
        assert!(Place::new().unpack(&items, &[]).is_err());
    }
}

#[test]
fn links_within_are_followed() {
    let place = Place::new();
    let items = [Dir("usr/", 0o755), Dir("usr/lib/", 0o755), Link("lib", "usr/lib"), File("lib/x", 0o644, b"1")];
    place.unpack(&items, &[]).expect("unpacks");
    assert!(place.path("usr/lib/x").exists());
    let place = Place::new();
    let items = [Dir("a/", 0o755), Link("a/up", "../../../b"), File("a/up/x", 0o644, b"1")];
    place.unpack(&items, &[]).expect("unpacks");
    assert!(place.path("b/x").exists(), "dots above the root stay at the root");
}

#[test]
fn implied_directories_are_those_of_the_layers_below() {
    let base = Place::new();
    base.unpack(&[Dir("tmp/", 0o1777), Dir("usr/", 0o711), Link("lib", "usr"), File("bin/tool", 0o755, b"t")], &[])
        .expect("unpacks");
    let lower = [base.path("")];
    let place = Place::new();
    place
        .unpack(&[File("tmp/x", 0o644, b""), File("lib/y", 0o644, b""), Hard("bin/again", "bin/tool")], &lower)
        .expect("unpacks");
    let tmp = std::fs::metadata(place.path("tmp")).expect("there");
    assert_eq!((tmp.mode() & 0o7777, tmp.uid()), (0o1777, 7));
    assert!(place.path("usr/y").exists() && !place.path("lib").exists());
    assert_eq!(std::fs::metadata(place.path("usr")).expect("there").mode() & 0o7777, 0o711);
    assert_eq!(std::fs::read(place.path("bin/again")).expect("copied"), b"t");
    let mode = std::fs::metadata(place.path("bin/again")).expect("copied").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn limits_hold() {
    let place = Place::new();
    let items = [File("a", 0o644, &[0; 1000]), File("b", 0o644, &[0; 1000])];
    let bytes = archive(&items);
    let limits = |layer_bytes, layer_entries| Limits { layer_bytes, layer_entries, ..Limits::default() };
    let run = |bytes: &[u8], limits| unpack(bytes, &place.path(""), &[], &limits);
    assert!(matches!(run(&bytes, limits(1500, 10)), Err(Error::TooLarge { .. })));
    assert!(matches!(run(&bytes, limits(1 << 20, 1)), Err(Error::TooLarge { .. })));
    run(&bytes, limits(1 << 20, 2)).expect("within limits");
    // A name of gigabytes, compressed to nothing.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 32);
    header.set_cksum();
    let mut bomb = header.as_bytes().to_vec();
    bomb.resize(4 << 20, b'a');
    assert!(matches!(run(&bomb, Limits::default()), Err(Error::Archive(_))));
    // Zeros without end after the end of the archive.
    let endless = archive(&[]);
    let endless = endless.as_slice().chain(io::repeat(0));
    let result = unpack(endless, &place.path(""), &[], &limits(1 << 20, 10));
    assert!(matches!(result, Err(Error::TooLarge { .. })));
}

#[test]
fn compression_is_told_by_content() {
    let plain = archive(&[File("a", 0o644, b"x")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &plain).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let zstd = zstd::encode_all(&plain[..], 1).expect("in memory");
    let digest = Digest::of(&plain);
    for bytes in [plain, gzip, zstd] {
        let place = Place::new();
        let unpacked = unpack(&bytes[..], &place.path(""), &[], &Limits::default()).expect("unpacks");
        assert_eq!(unpacked.diff_id, digest);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever the bytes and names: an error or a layer, no panic, and nothing outside changes.
    #[test]
    fn arbitrary_entries_stay_inside(
        names in proptest::collection::vec("(\\.\\./|/|a|b|c|\\.wh\\.|\\.){1,8}", 1..8),
        kinds in proptest::collection::vec(0..4u8, 8),
        noise in proptest::collection::vec((0..8192usize, proptest::prelude::any::<u8>()), 0..4),
    ) {
        let items: Vec<_> = names.iter().zip(&kinds).enumerate().map(|(i, (name, kind))| {
            let other = names[(i + 1) % names.len()].as_str();
            match kind {
                0 => Dir(name, 0o755),
                1 => File(name, 0o644, b"x"),
                2 => Link(name, other),
                _ => Hard(name, other),
            }
        }).collect();
        let mut bytes = archive(&items);
        let place = Place::new();
        let _ = unpack(&bytes[..], &place.path(""), &[], &Limits::default());
        place.assert_outside_untouched();
        for (at, byte) in noise {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let place = Place::new();
        let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        let _ = unpack(&bytes[..], &place.path(""), &[], &limits);
        place.assert_outside_untouched();
    }
}
