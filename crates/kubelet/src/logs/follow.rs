//! Sending a log to its reader, and what is written to it later, over rotations, until the container has ended.

use std::{
    io::{self, SeekFrom},
    os::{
        fd::{AsFd as _, AsRawFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt as _, AsyncSeekExt as _, BufReader, unix::AsyncFd},
    sync::{mpsc, watch},
};

use super::{
    line::{Filter, Options},
    tail_offset,
};

/// How much is collected before it is sent on.
const CHUNK: usize = 32 * 1024;

/// Sends the log to `out`. With `follow` until `running` is false and all is read; ends early when the reader is gone.
pub(crate) async fn copy(
    path: PathBuf,
    options: Options,
    mut running: watch::Receiver<bool>,
    out: mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    // Before the first read, so that nothing written after it is missed.
    let changes = if options.follow { Some(Changes::of(&path)?) } else { None };
    let mut filter = Filter::new(&options);
    let mut reader = open(&path, options.tail_lines).await?;
    let mut raw = Vec::new();
    loop {
        // Looked at before reading: what was written before the end is then read.
        let ended = !*running.borrow_and_update();
        if !drain(&mut reader, &mut raw, &mut filter, &out).await? || filter.is_full() {
            return Ok(());
        }
        let Some(changes) = &changes else {
            // A last line that has no end yet.
            return send_rest(&raw, &mut filter, &out).await;
        };
        if let Some(next) = rotated(&path, &reader).await? {
            // The old file is complete: its writer has turned to the new one.
            if !drain(&mut reader, &mut raw, &mut filter, &out).await? {
                return Ok(());
            }
            reader = BufReader::new(next);
            continue;
        }
        if ended {
            return send_rest(&raw, &mut filter, &out).await;
        }
        tokio::select! {
            changed = changes.wait() => changed?,
            // The sender is gone with the pod, which has ended then.
            changed = running.changed() => if changed.is_err() { return Ok(()) },
            () = out.closed() => return Ok(()),
        }
    }
}

async fn open(path: &Path, tail_lines: Option<usize>) -> io::Result<BufReader<File>> {
    let owned = path.to_owned();
    let file = tokio::task::spawn_blocking(move || -> io::Result<(std::fs::File, u64)> {
        let mut file = std::fs::File::open(owned)?;
        let from = match tail_lines {
            Some(lines) => tail_offset(&mut file, lines)?,
            None => 0,
        };
        Ok((file, from))
    });
    let (file, from) = file.await.map_err(io::Error::other)??;
    let mut file = File::from_std(file);
    file.seek(SeekFrom::Start(from)).await?;
    Ok(BufReader::with_capacity(CHUNK, file))
}

/// Sends on all whole lines that there are. False when the reader is gone.
async fn drain(
    reader: &mut BufReader<File>,
    raw: &mut Vec<u8>,
    filter: &mut Filter,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<bool> {
    let mut chunk = Vec::new();
    loop {
        let read = reader.read_until(b'\n', raw).await?;
        if read > 0 && raw.ends_with(b"\n") {
            filter.push(raw, &mut chunk);
            raw.clear();
        }
        let end = read == 0 || filter.is_full();
        if ((end && !chunk.is_empty()) || chunk.len() >= CHUNK)
            && out.send(Ok(Bytes::from(std::mem::take(&mut chunk)))).await.is_err()
        {
            return Ok(false);
        }
        if end {
            return Ok(true);
        }
    }
}

async fn send_rest(raw: &[u8], filter: &mut Filter, out: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut chunk = Vec::new();
    if !raw.is_empty() {
        filter.push(raw, &mut chunk);
    }
    if !chunk.is_empty() {
        // A reader that has left needs no rest.
        let _ = out.send(Ok(Bytes::from(chunk))).await;
    }
    Ok(())
}

/// The file that is in place of the one being read, if the log was rotated.
async fn rotated(path: &Path, reader: &BufReader<File>) -> io::Result<Option<File>> {
    let current = reader.get_ref().metadata().await?;
    match File::open(path).await {
        Ok(file) => {
            let there = file.metadata().await?;
            Ok(((there.ino(), there.dev()) != (current.ino(), current.dev())).then_some(file))
        }
        // Between the renaming and the new file's making, or removed for good.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells that something happened in the directory of a log.
struct Changes(AsyncFd<Watch>);

struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    fn of(path: &Path) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, flags | AddWatchFlags::IN_DELETE_SELF)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that change their descriptor, as this one does not"
        )]
        let changes = AsyncFd::new(Watch(inotify))?;
        Ok(Changes(changes))
    }

    async fn wait(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // All events mean the same: look again.
        match ready.get_inner().0.read_events() {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {
                ready.clear_ready();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn next(out: &mut mpsc::Receiver<io::Result<Bytes>>) -> Option<String> {
        let chunk = tokio::time::timeout(Duration::from_secs(10), out.recv()).await.expect("in time");
        chunk.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap())
    }

    fn write(path: &Path, text: &str) {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "2026-01-01T00:00:00Z stdout F {text}").unwrap();
    }

    #[tokio::test]
    async fn follows_over_a_rotation_until_the_container_ends() {
        let dir = std::env::temp_dir().join(format!("skiff-follow-{:x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        write(&path, "one");
        let (running, is_running) = watch::channel(true);
        let (out, mut got) = mpsc::channel(1);
        let options = Options { follow: true, ..Options::default() };
        let copying = tokio::spawn(copy(path.clone(), options, is_running, out));
        assert_eq!(next(&mut got).await.unwrap(), "one\n");
        write(&path, "two");
        assert_eq!(next(&mut got).await.unwrap(), "two\n");
        std::fs::rename(&path, dir.join("0.log.1")).unwrap();
        write(&path, "three");
        assert_eq!(next(&mut got).await.unwrap(), "three\n");
        write(&path, "last");
        running.send(false).unwrap();
        assert_eq!(next(&mut got).await.unwrap(), "last\n");
        assert_eq!(next(&mut got).await, None);
        copying.await.unwrap().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
