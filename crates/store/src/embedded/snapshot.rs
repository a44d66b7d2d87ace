//! Snapshots: the current state in a file of its own, and back.
//!
//! A snapshot holds the keys that exist, at one revision, and the leases; not the history. The file, all
//! numbers little-endian:
//!
//! ```text
//! "skiffsnp"  8 bytes
//! format      4 bytes, 1
//! revision    8 bytes
//! taken       8 bytes, seconds since 1970
//! entries     each begins with one byte that says which it is:
//!   1  record: position (8), length (4), and the record as it is in the log, checksum included
//!   2  lease: name (8), time to live in milliseconds (8)
//!   0  end: number of records (8)
//! SHA-256 of all of the above, 32 bytes
//! ```

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::{
    Embedded, Options, Shared, blocking,
    disk::{FileMedium, Medium, mark_path},
    engine::{Engine, Fault},
    record::{MAX_KEY_BYTES, MAX_SUB, Position, Record},
};
use crate::{Error, KeyValue, LeaseId, Result, Revision};

const MAGIC: &[u8; 8] = b"skiffsnp";
const FORMAT: u32 = 1;
const RECORD: u8 = 1;
const LEASE: u8 = 2;
const END: u8 = 0;
const HASH: usize = 32;

/// How many revisions a restored store is ahead of its snapshot. Clients that saw later revisions than
/// the snapshot's, before the loss, must be told to list again and never be sent an old object as if it
/// were newer; so the restored store begins at a revision that none of them has seen.
pub const DEFAULT_BUMP: u64 = 1_000_000_000;

/// How many records are restored in one transaction.
const RESTORE_STEP: usize = 1000;

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The revision at which it was taken.
    pub revision: Revision,
    /// How many keys it holds.
    pub keys: u64,
    /// The file's size.
    pub bytes: u64,
    /// When it was taken.
    pub taken: SystemTime,
    /// SHA-256 of the content, in hexadecimal.
    pub hash: String,
}

impl Embedded {
    /// Writes a snapshot of the current state to a file, which must not exist. Writers go on meanwhile.
    ///
    /// Errors: `InvalidArgument` if the file exists, `NoSpace`, `Unavailable`, `Corrupt`.
    pub async fn save_snapshot(&self, path: impl Into<PathBuf>) -> Result<SnapshotInfo> {
        let (shared, path) = (self.shared.clone(), path.into());
        blocking(move || save(&shared, &path)).await
    }
}

fn save(shared: &Arc<Shared>, path: &Path) -> Result<SnapshotInfo> {
    if path.exists() {
        return Err(invalid(format!("{} exists", path.display())));
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = write_snapshot(shared, &part)
        .and_then(|()| fs::rename(&part, path).and_then(|()| sync_dir(path)).map_err(|error| io_error(path, &error)));
    if let Err(error) = written {
        // Nothing is there to remove if it could not even be created.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    inspect(path)
}

fn write_snapshot(shared: &Arc<Shared>, path: &Path) -> Result<()> {
    let failed = |error: io::Error| Fault::Store(io_error(path, &error));
    loop {
        // The order of these steps is explained at `super::read`.
        let revision = shared.watchers.current();
        let result = shared.engine.read(|log| {
            let mut positions = shared.index.read().range(&(""..""), revision, 0).0;
            let compacted = shared.compacted();
            if revision < compacted {
                return Err(Fault::Store(Error::Compacted { requested: revision, compacted }));
            }
            positions.sort_unstable();
            let mut file = Hashing::new(BufWriter::new(File::create(path).map_err(failed)?));
            let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(failed);
            put(MAGIC)?;
            put(&FORMAT.to_le_bytes())?;
            put(&revision.0.to_le_bytes())?;
            let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            put(&taken.to_le_bytes())?;
            for (lease, ttl) in log.leases()? {
                put(&[LEASE])?;
                put(&lease.0.to_le_bytes())?;
                put(&u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).to_le_bytes())?;
            }
            for position in &positions {
                let record = log.read(*position)?.encode(*position);
                put(&[RECORD])?;
                put(&position.0.to_le_bytes())?;
                put(&u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes())?;
                put(&record)?;
            }
            put(&[END])?;
            put(&(positions.len() as u64).to_le_bytes())?;
            let hash = file.hash();
            let mut file = file.inner;
            file.write_all(&hash).and_then(|()| file.flush()).map_err(failed)?;
            file.get_ref().sync_all().map_err(failed)
        });
        match result {
            Err(Error::Compacted { .. }) => {}
            result => return result,
        }
    }
}

/// Reads a snapshot, and checks that it is whole.
///
/// Errors: `Corrupt`, `Unavailable` if it cannot be read.
pub fn inspect(path: impl AsRef<Path>) -> Result<SnapshotInfo> {
    walk(path.as_ref(), |_| Ok(()))
}

/// Makes a new store at `store` from a snapshot; nothing may be there. Its revision is the snapshot's
/// plus `bump` (see [`DEFAULT_BUMP`]), and all history before that counts as compacted. A snapshot that
/// is not whole leaves nothing behind.
///
/// Errors: `InvalidArgument` if there is a store, `Locked`, `Corrupt`, `NoSpace`, `Unavailable`.
pub fn restore(snapshot: impl AsRef<Path>, store: impl AsRef<Path>, bump: u64) -> Result<SnapshotInfo> {
    let (snapshot, store) = (snapshot.as_ref(), store.as_ref());
    let medium = FileMedium::open(store)?;
    if store.exists() {
        return Err(invalid(format!("there is a store at {}; move it away first", store.display())));
    }
    let info = inspect(snapshot)?;
    place(&medium, store, Revision(info.revision.0 + bump), |each| walk(snapshot, each).map(drop))?;
    Ok(info)
}

/// Makes a new store at `store`, which begins at `revision`, of what some other store held; nothing may be there.
///
/// Errors: as [`restore`]; `TooLarge` for a key that no store takes.
pub fn create(
    store: impl AsRef<Path>,
    revision: Revision,
    leases: Vec<(LeaseId, Duration)>,
    mut kvs: Vec<KeyValue>,
) -> Result<()> {
    let store = store.as_ref();
    let medium = FileMedium::open(store)?;
    if store.exists() {
        return Err(invalid(format!("there is a store at {}; move it away first", store.display())));
    }
    kvs.sort_by(|a, b| (a.mod_revision, &a.key).cmp(&(b.mod_revision, &b.key)));
    place(&medium, store, revision, |each| {
        for (id, ttl) in leases {
            each(Entry::Lease(id, ttl))?;
        }
        let (mut last, mut sub) = (Revision::ZERO, 0);
        for kv in kvs {
            sub = if kv.mod_revision == last { sub + 1 } else { 0 };
            last = kv.mod_revision;
            if kv.key.len() > MAX_KEY_BYTES || sub >= MAX_SUB {
                let (what, size) = ("size of the key or of its transaction", kv.key.len().max(sub));
                return Err(Error::TooLarge { what, size, limit: MAX_KEY_BYTES, key: Some(kv.key.to_string()) });
            }
            let record = Record {
                key: kv.key,
                create_revision: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                value: Some(kv.value),
                last: true,
            };
            each(Entry::Record(Position::new(last, sub), record))?;
        }
        Ok(())
    })
}

/// Fills a store beside its place and puts it there, whole or not at all.
fn place(
    medium: &FileMedium,
    store: &Path,
    revision: Revision,
    entries: impl FnOnce(&mut dyn FnMut(Entry) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let mut part = store.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let _ = fs::remove_file(&part);
    let filled = fill(&part, revision, entries);
    let _ = fs::remove_file(mark_path(&part));
    let _ = fs::remove_file(super::disk::lock_path(&part));
    let placed = filled.and_then(|()| {
        medium.set_mark(revision);
        fs::rename(&part, store).and_then(|()| sync_dir(store)).map_err(|error| io_error(store, &error))
    });
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed
}

fn fill(
    path: &Path,
    revision: Revision,
    entries: impl FnOnce(&mut dyn FnMut(Entry) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let engine = Engine::open(Box::new(FileMedium::open(path)?), Options::default().cache_bytes)?;
    let mut waiting = Vec::new();
    let flush = |waiting: &mut Vec<Entry>| {
        engine.write(|tables| {
            for entry in waiting.drain(..) {
                match entry {
                    Entry::Record(position, record) => tables.append(position, &record)?,
                    Entry::Lease(id, ttl) => tables.put_lease(id, ttl)?,
                }
            }
            Ok(true)
        })
    };
    entries(&mut |entry| {
        waiting.push(entry);
        if waiting.len() < RESTORE_STEP { Ok(()) } else { flush(&mut waiting) }
    })?;
    flush(&mut waiting)?;
    engine.write(|tables| tables.set_compacted(revision).map(|()| true))?;
    engine.close()
}

enum Entry {
    Record(Position, Record),
    Lease(LeaseId, Duration),
}

/// Calls `each` for the entries of a snapshot. Whether it is whole is only known afterwards.
fn walk(path: &Path, mut each: impl FnMut(Entry) -> Result<()>) -> Result<SnapshotInfo> {
    let damaged = |what: &str| Error::Corrupt {
        path: path.to_owned(),
        what: format!("snapshot: {what}"),
        key: None,
        revision: None,
    };
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => io_error(path, &error),
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut file = Hashing::new(BufReader::new(file));
    if file.array::<8>().map_err(failed)? != *MAGIC {
        return Err(damaged("it is no snapshot"));
    }
    if u32::from_le_bytes(file.array().map_err(failed)?) != FORMAT {
        return Err(damaged("its format is not known to this version"));
    }
    let revision = Revision(file.word().map_err(failed)?);
    let taken = UNIX_EPOCH + Duration::from_secs(file.word().map_err(failed)?.min(u64::from(u32::MAX)));
    let mut keys = 0;
    loop {
        match file.array::<1>().map_err(failed)?[0] {
            RECORD => {
                let position = Position(file.word().map_err(failed)?);
                let len = u32::from_le_bytes(file.array().map_err(failed)?);
                if u64::from(len) > bytes {
                    return Err(damaged("a record is longer than the file"));
                }
                let mut record = vec![0; len as usize];
                file.read_exact(&mut record).map_err(failed)?;
                let record = Record::decode(position, &record).map_err(damaged)?;
                if record.value.is_none() || position.revision() > revision {
                    return Err(damaged("it holds what no snapshot holds"));
                }
                keys += 1;
                each(Entry::Record(position, record))?;
            }
            LEASE => {
                let id = LeaseId(i64::from_le_bytes(file.array().map_err(failed)?));
                let ttl = Duration::from_millis(file.word().map_err(failed)?);
                each(Entry::Lease(id, ttl))?;
            }
            END => break,
            _ => return Err(damaged("an entry is of no known kind")),
        }
    }
    if file.word().map_err(failed)? != keys {
        return Err(damaged("records are missing"));
    }
    let hash = file.hash();
    let mut expected = [0; HASH];
    file.inner.read_exact(&mut expected).map_err(failed)?;
    if hash != expected {
        return Err(damaged("its checksum does not match"));
    }
    let hash = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(SnapshotInfo { revision, keys, bytes, taken, hash })
}

/// Hashes what passes through.
struct Hashing<T> {
    inner: T,
    digest: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Hashing<T> {
        Hashing { inner, digest: Sha256::new() }
    }

    fn hash(&self) -> [u8; HASH] {
        self.digest.clone().finalize().into()
    }
}

impl<T: Write> Hashing<T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Hashing<T> {
    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.digest.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn word(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

fn sync_dir(file: &Path) -> io::Result<()> {
    match file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => File::open(dir)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn invalid(what: String) -> Error {
    Error::InvalidArgument { what, key: None }
}

fn io_error(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path: path.to_owned() },
        _ => Error::unavailable(format!("{}: {error}", path.display())),
    }
}
