//! Snapshots in etcd's own format, a bbolt database: what `etcdctl snapshot save` writes, a real etcd restores, and
//! this store is restored from.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use skiff_store::{Code, Embedded, KeyValue, LeaseId, Revision, Store as _, embedded::snapshot};

use crate::{
    bolt::{Damaged, Reader, Writer},
    kv::to_message,
    messages as m,
};

/// How many keys are read at once; their values do not stay in memory.
const STEP: usize = 500;
const HASH: usize = 32;
/// Length of a key of the bucket `key`: a revision, an underscore, a number within the revision.
const REVISION_KEY: usize = 17;

/// Why there is no snapshot, or nothing could be made of it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read or write {path}")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no whole snapshot: {source}")]
    Damaged {
        path: String,
        #[source]
        source: Damaged,
    },
    #[error("the store cannot be read or written")]
    Store(#[source] skiff_store::Error),
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    pub revision: Revision,
    pub keys: usize,
}

fn revision_key(revision: Revision, sub: u64) -> Vec<u8> {
    [revision.0.to_be_bytes().as_slice(), b"_", &sub.to_be_bytes()].concat()
}

fn small(items: Vec<(&'static str, Bytes)>) -> impl Iterator<Item = io::Result<(Vec<u8>, Bytes)>> {
    items.into_iter().map(|(key, value)| Ok((key.as_bytes().to_vec(), value)))
}

/// Writes the store's current state into an open file, and tells the file's size and the state's revision.
pub(crate) async fn write(store: &Arc<Embedded>, file: &File) -> Result<(u64, Revision), SnapshotError> {
    loop {
        match try_write(store, file).await {
            // Compacted while it was being read.
            Err(SnapshotError::Store(error)) if error.code() == Code::Compacted => {}
            done => return done,
        }
    }
}

async fn try_write(store: &Arc<Embedded>, file: &File) -> Result<(u64, Revision), SnapshotError> {
    let failed = |source| SnapshotError::File { path: "the snapshot".to_owned(), source };
    let revision = store.revision();
    // etcd orders by revision, and a store by key.
    let mut order: BTreeMap<(Revision, Arc<str>), ()> = BTreeMap::new();
    let mut start = String::new();
    loop {
        let page = store.range(&start..&"", Some(revision), STEP).await.map_err(SnapshotError::Store)?;
        if let Some(last) = page.kvs.last() {
            start = format!("{}\0", last.key);
        }
        order.extend(page.kvs.iter().map(|kv| ((kv.mod_revision, kv.key.clone()), ())));
        if !page.more {
            break;
        }
    }
    let leases = store.leases().map_err(SnapshotError::Store)?;
    let mut writer = Writer::new(file).map_err(failed)?;
    let (mut last, mut sub) = (Revision::ZERO, 0);
    let mut error = None;
    let unreadable = || {
        let what = "a key that was there could not be read".to_owned();
        skiff_store::Error::Unavailable { what }
    };
    let items = order.keys().map_while(|(written, key)| {
        sub = if *written == last { sub + 1 } else { 0 };
        last = *written;
        // One record is there in microseconds: the store answers at once.
        let got = store.get(key, Some(revision)).now_or_never().unwrap_or_else(|| Err(unreadable()));
        match got.and_then(|got| got.kv.ok_or_else(unreadable)) {
            Ok(kv) => Some(Ok((revision_key(*written, sub), Bytes::from(to_message(&kv).encode_to_vec())))),
            Err(failure) => {
                error = Some(failure);
                None
            }
        }
    });
    writer.bucket("key", items).map_err(failed)?;
    if let Some(error) = error {
        return Err(SnapshotError::Store(error));
    }
    let compacted = Bytes::from(revision_key(revision, 0));
    let number = |n: u64| Bytes::from(n.to_be_bytes().to_vec());
    let meta = vec![
        ("confState", Bytes::from_static(br#"{"voters":[1],"auto_leave":false}"#)),
        ("consistent_index", number(revision.0)),
        ("finishedCompactRev", compacted.clone()),
        ("scheduledCompactRev", compacted),
        ("term", number(2)),
    ];
    writer.bucket("meta", small(meta)).map_err(failed)?;
    writer.bucket("cluster", small(vec![("clusterVersion", Bytes::from_static(b"3.5.0"))])).map_err(failed)?;
    let leases: BTreeMap<i64, i64> =
        leases.into_iter().map(|(id, ttl)| (id.0, i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX))).collect();
    let leases = leases
        .into_iter()
        .map(|(id, ttl)| Ok((id.to_be_bytes().to_vec(), Bytes::from(StoredLease { id, ttl }.encode_to_vec()))));
    writer.bucket("lease", leases).map_err(failed)?;
    for name in ["alarm", "auth", "authRoles", "authUsers", "members", "members_removed"] {
        writer.bucket(name, []).map_err(failed)?;
    }
    let (_, size) = writer.finish().map_err(failed)?;
    Ok((size, revision))
}

/// Makes a new store from a snapshot: one of `etcdctl snapshot save`, of this store or of a real etcd, or the store's
/// own format. Nothing may be at `store`. The new store is far ahead of the snapshot, so that clients that saw later
/// revisions list again.
pub fn restore(snapshot_file: &Path, store: &Path) -> Result<Contents, SnapshotError> {
    let path = || snapshot_file.display().to_string();
    let bytes = fs::read(snapshot_file).map_err(|source| SnapshotError::File { path: path(), source })?;
    if !Reader::recognises(&bytes) {
        let info = snapshot::restore(snapshot_file, store, snapshot::DEFAULT_BUMP).map_err(SnapshotError::Store)?;
        return Ok(Contents { revision: info.revision, keys: usize::try_from(info.keys).unwrap_or(usize::MAX) });
    }
    let (revision, kvs, leases) = read(&bytes).map_err(|source| SnapshotError::Damaged { path: path(), source })?;
    let contents = Contents { revision, keys: kvs.len() };
    let begin = Revision(revision.0 + snapshot::DEFAULT_BUMP);
    snapshot::create(store, begin, leases, kvs).map_err(SnapshotError::Store)?;
    Ok(contents)
}

type State = (Revision, Vec<KeyValue>, Vec<(LeaseId, Duration)>);

/// The last state in an etcd's database, whose checksum, if it has one, must be right.
fn read(bytes: &[u8]) -> Result<State, Damaged> {
    // `snapshot save` puts the checksum behind the pages; a copy of a member's file has none.
    let database = match bytes.len() % 512 {
        HASH => {
            let (database, hash) = bytes.split_at(bytes.len() - HASH);
            if Sha256::digest(database).as_slice() != hash {
                return Err(Damaged("its checksum does not match"));
            }
            database
        }
        0 => bytes,
        _ => return Err(Damaged("it has an impossible size")),
    };
    let reader = Reader::new(database)?;
    let mut current: BTreeMap<Arc<str>, KeyValue> = BTreeMap::new();
    let mut revision = Revision::INITIAL;
    let there = reader.bucket("key", &mut |key, value| {
        let main = key.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        let main = main.ok_or(Damaged("a key of its log is no revision"))?;
        revision = revision.max(Revision(main));
        let kv = m::KeyValue::decode(value).map_err(|_| Damaged("a record cannot be decoded"))?;
        let name = std::str::from_utf8(&kv.key).map_err(|_| Damaged("it has keys that are not UTF-8"))?;
        // What is longer than a revision is marked as a deletion.
        if key.len() > REVISION_KEY {
            current.remove(name);
            return Ok(());
        }
        let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
        let name: Arc<str> = name.into();
        current.insert(
            name.clone(),
            KeyValue {
                key: name,
                value: kv.value,
                create_revision: Revision(unsigned(kv.create_revision)),
                mod_revision: Revision(main),
                version: unsigned(kv.version),
                lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
            },
        );
        Ok(())
    })?;
    if !there {
        return Err(Damaged("it is no database of etcd"));
    }
    // The last writes may have been deletions that are compacted.
    reader.bucket("meta", &mut |key, value| {
        if key == b"finishedCompactRev" {
            let main = value.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
            revision = revision.max(Revision(main.unwrap_or(0)));
        }
        Ok(())
    })?;
    let mut leases = Vec::new();
    reader.bucket("lease", &mut |_, value| {
        let lease = StoredLease::decode(value).map_err(|_| Damaged("a lease cannot be decoded"))?;
        leases.push((LeaseId(lease.id), Duration::from_secs(u64::try_from(lease.ttl).unwrap_or(0))));
        Ok(())
    })?;
    let mut kvs: Vec<KeyValue> = current.into_values().collect();
    kvs.iter_mut().for_each(|kv| {
        // A key of a lease that is gone stays.
        kv.lease = kv.lease.filter(|id| leases.iter().any(|(known, _)| known == id));
    });
    Ok((revision, kvs, leases))
}

#[cfg(test)]
mod tests {
    use skiff_store::{Options, Txn};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_survives_as_an_etcd_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path().join("a"), &Options::default()).unwrap());
        let lease = store.lease_grant(Duration::from_secs(3600), None).await.unwrap();
        for n in 0..1500 {
            let mut txn = Txn::put(format!("/registry/pods/p{n}"), format!("value {n}"));
            txn.ops.push(skiff_store::Op::Put {
                key: format!("/twin/{n}").into(),
                value: Bytes::from_static(b"x"),
                lease: Some(lease.id),
            });
            store.txn(txn).await.unwrap();
        }
        store.txn(Txn::delete("/registry/pods/p7")).await.unwrap();
        let path = dir.path().join("snapshot.db");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        let (size, revision) = write(&store, &file).await.unwrap();
        assert_eq!(revision, store.revision());
        // As `etcdctl` stores it.
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes.extend(Sha256::digest(&bytes));
        fs::write(&path, &bytes).unwrap();

        let restored = dir.path().join("b");
        let contents = restore(&path, &restored).unwrap();
        assert_eq!(contents, Contents { revision, keys: 2999 });
        let again = Embedded::open(&restored, &Options::default()).unwrap();
        assert_eq!(again.revision(), Revision(revision.0 + snapshot::DEFAULT_BUMP));
        let (old, new) = (store.range("".."", None, 0).await.unwrap(), again.range("".."", None, 0).await.unwrap());
        assert_eq!(old.kvs, new.kvs);
        // Written as before.
        again.txn(Txn::put("/registry/pods/p8", "later")).await.unwrap();
        again.lease_revoke(lease.id).await.unwrap();
        assert_eq!(again.range("".."", None, 0).await.unwrap().count, 1499);

        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let refused = restore(&path, &dir.path().join("c")).unwrap_err();
        assert!(refused.to_string().contains("checksum"), "{refused}");
        assert!(!dir.path().join("c").exists());
    }
}
