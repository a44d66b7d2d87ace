//! A disk in memory that can lose power, run full, and rot: for tests.
//!
//! It keeps apart what was synced and what was written since, in sectors of 512 bytes. When the power
//! is cut, each unsynced sector by chance keeps its old content, has its new content, or holds garbage,
//! independent of its neighbours and of the order of the writes; a length set since the last sync by
//! chance holds or does not. The one thing assumed is that the first sector, which redb updates in
//! place, is either old or new.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};

use super::{Disk, Medium};
use crate::Revision;

const SECTOR: usize = 512;

/// See the [module](self). Cloning gives another handle on the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    now: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
    /// Counts power cuts; handles from before one are dead.
    power: u64,
    capacity: Option<u64>,
    /// Syncs do nothing.
    lies: bool,
    /// How many of a thousand accesses fail, and the source of chance for that.
    flaky: Option<(u32, StdRng)>,
    /// Unsynced sectors are old or new after a power cut, but not garbage.
    mild: bool,
    syncs: u64,
    mark: Option<Revision>,
    /// A mark that is certain to be on the disk.
    old_mark: Option<Revision>,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk without limit.
    pub fn new() -> SimDisk {
        SimDisk { path: PathBuf::from("simulated"), state: Arc::default() }
    }

    /// The disk as seen by one machine: after a power cut it stays dead, until the machine is started
    /// again, which is to say until this is called again.
    pub fn plug(&self) -> Plugged {
        Plugged { power: self.state.lock().power, disk: self.clone() }
    }

    /// Loses what was not synced, or worse. What has the disk open gets errors from now on; open it
    /// again to see what is left.
    pub fn cut_power(&self, rng: &mut StdRng) {
        let state = &mut *self.state.lock();
        state.power += 1;
        let len = if rng.random() { state.now.len() } else { state.synced.len() };
        let mut left = state.synced.clone();
        left.resize(len, 0);
        for sector in std::mem::take(&mut state.dirty) {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(len).min(state.now.len());
            if start >= end {
                continue;
            }
            match rng.random_range(0..if sector == 0 || state.mild { 2 } else { 5 }) {
                0 | 2 => {}
                1 | 3 => left[start..end].copy_from_slice(&state.now[start..end]),
                _ => rng.fill(&mut left[start..end]),
            }
        }
        state.now.clone_from(&left);
        state.synced = left;
        if rng.random() {
            state.mark = state.old_mark;
        }
        state.old_mark = state.mark;
    }

    /// Makes it a disk that says it has synced and has not, to show that a test notices.
    pub fn lie(&self) {
        self.state.lock().lies = true;
    }

    /// Lets growing beyond this many bytes fail for want of space; `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Lets power cuts leave no garbage, only any mixture of old and new sectors. File systems do not
    /// promise more: their superblock is a single one and is written in place.
    pub fn set_mild(&self) {
        self.state.lock().mild = true;
    }

    /// Makes so many of a thousand accesses fail; `None` none.
    pub fn set_flaky(&self, flaky: Option<(u32, StdRng)>) {
        self.state.lock().flaky = flaky;
    }

    /// The length in bytes.
    pub fn size(&self) -> usize {
        self.state.lock().now.len()
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Changes bytes behind the back of whoever has the disk open.
    pub fn damage(&self, change: impl FnOnce(&mut [u8])) {
        let state = &mut *self.state.lock();
        change(&mut state.now);
        state.synced.clone_from(&state.now);
        state.dirty.clear();
    }

    /// A copy of the bytes, to go back to with [`damage`](SimDisk::damage).
    pub fn content(&self) -> Vec<u8> {
        self.state.lock().now.clone()
    }

    /// A disk with this content, and no mark.
    pub fn with_content(content: Vec<u8>) -> SimDisk {
        let disk = SimDisk::new();
        disk.state.lock().synced.clone_from(&content);
        disk.state.lock().now = content;
        disk
    }
}

impl Medium for SimDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> io::Result<Arc<dyn Disk>> {
        let power = self.state.lock().power;
        Ok(Arc::new(Handle { state: self.state.clone(), power }))
    }

    fn mark(&self) -> Option<Revision> {
        self.state.lock().mark
    }

    fn set_mark(&self, revision: Revision) {
        let mut state = self.state.lock();
        if revision.0.is_multiple_of(64) {
            state.old_mark = state.mark;
        }
        state.mark = Some(revision);
    }
}

/// See [`SimDisk::plug`].
#[derive(Debug)]
pub struct Plugged {
    disk: SimDisk,
    power: u64,
}

impl Medium for Plugged {
    fn path(&self) -> &Path {
        self.disk.path()
    }

    fn open(&self) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(Handle { state: self.disk.state.clone(), power: self.power }))
    }

    fn mark(&self) -> Option<Revision> {
        self.disk.mark()
    }

    fn set_mark(&self, revision: Revision) {
        if self.disk.state.lock().power == self.power {
            self.disk.set_mark(revision);
        }
    }
}

#[derive(Debug)]
struct Handle {
    state: Arc<Mutex<State>>,
    power: u64,
}

impl Handle {
    fn powered<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.power != self.power {
            return Err(io::Error::other("no power"));
        }
        if let Some((per_mille, rng)) = &mut state.flaky
            && rng.random_range(0..1000) < *per_mille
        {
            return Err(io::Error::other("failing by chance"));
        }
        work(&mut state)
    }
}

fn span(state: &State, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start + len;
    if end > state.now.len() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end"));
    }
    Ok(start..end)
}

impl Disk for Handle {
    fn len(&self) -> io::Result<u64> {
        self.powered(|state| Ok(state.now.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.powered(|state| {
            out.copy_from_slice(&state.now[span(state, offset, out.len())?]);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.powered(|state| {
            if len > state.now.len() as u64 && state.capacity.is_some_and(|capacity| len > capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.now.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.powered(|state| {
            state.syncs += 1;
            if state.lies {
                return Ok(());
            }
            state.synced.resize(state.now.len(), 0);
            for sector in std::mem::take(&mut state.dirty) {
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(state.now.len());
                if start < end {
                    state.synced[start..end].copy_from_slice(&state.now[start..end]);
                }
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.powered(|state| {
            let span = span(state, offset, data.len())?;
            state.dirty.extend(span.start / SECTOR..span.end.div_ceil(SECTOR));
            state.now[span].copy_from_slice(data);
            Ok(())
        })
    }
}
