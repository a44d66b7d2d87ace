//! How the store is, and its snapshots.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures::Stream;
use sha2::{Digest as _, Sha256};
use skiff_store::{Revision, Store as _};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::{
    Etcd, MEMBER_ID, VERSION, messages as m, number, services::maintenance::maintenance_server::Maintenance, snapshot,
    status,
};

const CHUNK: usize = 64 << 10;

#[tonic::async_trait]
impl Maintenance for Etcd {
    async fn alarm(&self, _: Request<m::AlarmRequest>) -> Result<Response<m::AlarmResponse>, Status> {
        // A full disk or a damaged store is told with each request that it fails.
        Ok(Response::new(m::AlarmResponse { header: self.header(), alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<m::StatusRequest>) -> Result<Response<m::StatusResponse>, Status> {
        let size = std::fs::metadata(&self.file).map_or(0, |meta| i64::try_from(meta.len()).unwrap_or(i64::MAX));
        let broken = self.store.get("/", None).await.err();
        let index = self.store.revision().0;
        Ok(Response::new(m::StatusResponse {
            header: self.header(),
            version: VERSION.to_owned(),
            db_size: size,
            leader: MEMBER_ID,
            raft_index: index,
            raft_term: 2,
            raft_applied_index: index,
            errors: broken.map(|error| error.to_string()).into_iter().collect(),
            db_size_in_use: size,
            storage_version: VERSION.to_owned(),
            ..Default::default()
        }))
    }

    async fn defragment(&self, _: Request<m::DefragmentRequest>) -> Result<Response<m::DefragmentResponse>, Status> {
        // Free pages are used again; the file never shrinks, and needs nothing done to it.
        Ok(Response::new(m::DefragmentResponse { header: self.header() }))
    }

    async fn hash(&self, _: Request<m::HashRequest>) -> Result<Response<m::HashResponse>, Status> {
        let (hash, _) = self.hash_at(None).await?;
        Ok(Response::new(m::HashResponse { header: self.header(), hash }))
    }

    async fn hash_kv(&self, request: Request<m::HashKVRequest>) -> Result<Response<m::HashKVResponse>, Status> {
        let at = u64::try_from(request.get_ref().revision).ok().filter(|r| *r > 0).map(Revision);
        let (hash, revision) = self.hash_at(at).await?;
        Ok(Response::new(m::HashKVResponse {
            header: self.header(),
            hash,
            compact_revision: number(self.store.compacted()),
            hash_revision: number(revision),
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<m::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _: Request<m::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let failed = |error: &dyn std::fmt::Display| Status::internal(format!("etcdserver: snapshot: {error}"));
        let file = self.unnamed_file().map_err(|e| failed(&e))?;
        let (size, revision) = {
            let (store, file) = (self.store.clone(), file.try_clone().map_err(|e| failed(&e))?);
            let runtime = tokio::runtime::Handle::current();
            let write = move || runtime.block_on(snapshot::write(&store, &file));
            let written = tokio::task::spawn_blocking(write).await.map_err(|e| failed(&e))?;
            written.map_err(|e| failed(&e))?
        };
        let header = self.header_at(revision);
        let (chunks, queue) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send(file, size, header, &chunks) {
                // Whoever listens is told that it is not whole; if nobody does, it does not matter.
                let _ = chunks.blocking_send(Err(Status::internal(format!("etcdserver: snapshot: {error}"))));
            }
        });
        let stream = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The database in pieces, and behind it its SHA-256.
fn send(
    mut file: File,
    size: u64,
    header: Option<m::ResponseHeader>,
    chunks: &mpsc::Sender<Result<m::SnapshotResponse, Status>>,
) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut left = size;
    loop {
        let mut blob = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        file.read_exact(&mut blob)?;
        hash.update(&blob);
        left -= blob.len() as u64;
        let last = blob.is_empty();
        let blob = if last { Bytes::from(hash.finalize_reset().to_vec()) } else { blob.into() };
        let chunk = m::SnapshotResponse { header, remaining_bytes: left, blob, version: VERSION.to_owned() };
        if chunks.blocking_send(Ok(chunk)).is_err() || last {
            return Ok(());
        }
    }
}

impl Etcd {
    /// A file beside the store that nobody else sees and that goes away by itself.
    fn unnamed_file(&self) -> std::io::Result<File> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.file.with_extension(format!("snapshot-{}-{number}", std::process::id()));
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    /// Of all keys and values, to compare two stores by.
    async fn hash_at(&self, at: Option<Revision>) -> Result<(u32, Revision), Status> {
        let all = self.store.range("".."", at, 0).await.map_err(|e| status(&e))?;
        let mut hash = Sha256::new();
        for kv in &all.kvs {
            hash.update(kv.key.as_bytes());
            hash.update(kv.mod_revision.0.to_le_bytes());
            hash.update(&kv.value);
        }
        let digest = hash.finalize();
        Ok((u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]), all.revision))
    }
}
