//! The file: three redb tables, opened, checked, read, written, and opened again after an I/O error.
//!
//! Everything that redb does on our behalf runs inside [`Engine::guard`]: it panics on some damaged
//! pages, and a panic or a failed check makes the store refuse all further work. An I/O error on the
//! other hand is not damage; redb wants to be opened anew after one, which is what
//! [`Engine::reopen`] is for.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{
    disk::{Backend, Medium},
    record::{Position, Record},
};
use crate::{Error, LeaseId, Result, Revision};

/// Position → record. See [`super::record`].
const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
/// Lease → time to live in milliseconds.
const LEASES: TableDefinition<'static, i64, u64> = TableDefinition::new("leases");
/// The numbers named below.
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// The revision of the last compaction.
const COMPACTED: &str = "compacted";
/// The file's format.
const FORMAT: &str = "format";
const CURRENT_FORMAT: u64 = 1;

/// How long to wait for readers to let go of the database before it is opened anew. Reads take
/// microseconds, ranges of everything perhaps a second.
const READERS_DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct Engine {
    medium: Box<dyn Medium>,
    cache_bytes: usize,
    /// `None` between an I/O error and the next successful opening, and after the end.
    database: RwLock<Option<Arc<Database>>>,
    failed: AtomicBool,
    /// Why nothing is served any more.
    refused: OnceLock<Error>,
}

/// What went wrong inside of the guard.
pub(super) enum Fault {
    Redb(redb::Error),
    Damage { what: String, key: Option<String>, revision: Option<Revision> },
    Store(Error),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Fault {
        Fault::Redb(error.into())
    }
}

/// What the file says beside the log.
pub(super) struct Header {
    pub(super) compacted: Revision,
    pub(super) leases: Vec<(LeaseId, Duration)>,
}

/// The tables in a write transaction.
pub(super) struct Tables<'txn> {
    log: Table<'txn, u64, &'static [u8]>,
    leases: Table<'txn, i64, u64>,
    meta: Table<'txn, &'static str, u64>,
}

impl Tables<'_> {
    pub(super) fn read(&self, position: Position) -> Result<Record, Fault> {
        decode_found(position, self.log.get(position.0)?.as_ref().map(redb::AccessGuard::value))
    }

    pub(super) fn append(&mut self, position: Position, record: &Record) -> Result<(), Fault> {
        self.log.insert(position.0, record.encode(position).as_slice())?;
        Ok(())
    }

    pub(super) fn remove(&mut self, position: Position) -> Result<(), Fault> {
        self.log.remove(position.0)?;
        Ok(())
    }

    pub(super) fn set_compacted(&mut self, revision: Revision) -> Result<(), Fault> {
        self.meta.insert(COMPACTED, revision.0)?;
        Ok(())
    }

    pub(super) fn put_lease(&mut self, id: LeaseId, ttl: Duration) -> Result<(), Fault> {
        self.leases.insert(id.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
        Ok(())
    }

    pub(super) fn remove_lease(&mut self, id: LeaseId) -> Result<(), Fault> {
        self.leases.remove(id.0)?;
        Ok(())
    }
}

/// The log as it was at one moment.
pub(super) struct Reader {
    log: ReadOnlyTable<u64, &'static [u8]>,
    // After the table: the transaction and then the database are let go of last.
    transaction: ReadTransaction,
    _database: Arc<Database>,
}

impl Reader {
    pub(super) fn read(&self, position: Position) -> Result<Record, Fault> {
        decode_found(position, self.log.get(position.0)?.as_ref().map(redb::AccessGuard::value))
    }

    /// Calls `each` for the records from `start` to `end`, both included, while it returns `true`.
    pub(super) fn scan(
        &self,
        start: Position,
        end: Position,
        mut each: impl FnMut(Position, Record) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        for entry in self.log.range(start.0..=end.0)? {
            let (position, bytes) = entry?;
            let position = Position(position.value());
            if !each(position, decode(position, bytes.value())?)? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, Fault> {
        leases(&self.transaction)
    }

    /// The last position written to.
    pub(super) fn last(&self) -> Result<Option<Position>, Fault> {
        Ok(self.log.last()?.map(|(position, _)| Position(position.value())))
    }
}

fn leases(transaction: &ReadTransaction) -> Result<Vec<(LeaseId, Duration)>, Fault> {
    let mut leases = Vec::new();
    for entry in transaction.open_table(LEASES)?.iter()? {
        let (id, ttl) = entry?;
        leases.push((LeaseId(id.value()), Duration::from_millis(ttl.value())));
    }
    Ok(leases)
}

fn decode_found(position: Position, bytes: Option<&[u8]>) -> Result<Record, Fault> {
    let missing = || damage(position, "record is missing", None);
    decode(position, bytes.ok_or_else(missing)?)
}

fn decode(position: Position, bytes: &[u8]) -> Result<Record, Fault> {
    Record::decode(position, bytes).map_err(|what| damage(position, what, None))
}

pub(super) fn damage(position: Position, what: &str, key: Option<&str>) -> Fault {
    let revision = position.revision();
    Fault::Damage {
        what: format!("{what} at revision {revision}, operation {}", position.sub()),
        key: key.map(str::to_owned),
        revision: Some(revision),
    }
}

impl Engine {
    /// Opens the file, creating it if there is none, and checks all of its pages.
    pub(super) fn open(medium: Box<dyn Medium>, cache_bytes: usize) -> Result<Engine> {
        let engine = Engine {
            medium,
            cache_bytes,
            database: RwLock::new(None),
            failed: AtomicBool::new(false),
            refused: OnceLock::new(),
        };
        let database = engine.guard(|| engine.open_database(true))?;
        *engine.database.write() = Some(Arc::new(database));
        Ok(engine)
    }

    fn open_database(&self, check: bool) -> Result<Database, Fault> {
        let disk = self.medium.open()?;
        let repaired = Arc::new(AtomicBool::new(false));
        let noted = repaired.clone();
        let mut database = Database::builder()
            .set_cache_size(self.cache_bytes)
            .set_repair_callback(move |_| noted.store(true, Ordering::Relaxed))
            .create_with_backend(Backend(disk))
            .map_err(redb::Error::from)?;
        if repaired.load(Ordering::Relaxed) {
            // Opening after an unclean stop has just checked every page.
            tracing::info!(path = %self.medium.path().display(), "the store was not closed; checked it");
        } else if check && !database.check_integrity().map_err(redb::Error::from)? {
            return Err(Fault::Damage { what: "a page's checksum does not match".into(), key: None, revision: None });
        }
        let transaction = database.begin_write()?;
        let fresh = {
            transaction.open_table(LOG)?;
            transaction.open_table(LEASES)?;
            let mut meta = transaction.open_table(META)?;
            let format = meta.get(FORMAT)?.map(|format| format.value());
            match format {
                None => {
                    meta.insert(FORMAT, CURRENT_FORMAT)?;
                    true
                }
                Some(CURRENT_FORMAT) => false,
                Some(other) => {
                    return Err(Fault::Store(Error::unavailable(format!(
                        "{} has format {other}, this version reads {CURRENT_FORMAT}",
                        self.medium.path().display()
                    ))));
                }
            }
        };
        if fresh {
            transaction.commit()?
        } else {
            transaction.abort()?
        }
        Ok(database)
    }

    pub(super) fn header(&self) -> Result<Header> {
        self.guard(|| {
            let database = self.database()?;
            let transaction = database.begin_read()?;
            let compacted = transaction.open_table(META)?.get(COMPACTED)?.map_or(0, |value| value.value());
            let leases = leases(&transaction)?;
            Ok(Header { compacted: Revision(compacted), leases })
        })
    }

    /// Runs `work` with the log as it is now.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Reader) -> Result<T, Fault>) -> Result<T> {
        self.guard(|| {
            let database = self.database()?;
            let transaction = database.begin_read()?;
            let log = transaction.open_table(LOG)?;
            work(&Reader { log, transaction, _database: database })
        })
    }

    /// Runs `work` in a transaction and makes it durable if it returns `true`.
    pub(super) fn write(&self, work: impl FnOnce(&mut Tables<'_>) -> Result<bool, Fault>) -> Result<()> {
        self.guard(|| {
            let database = self.database()?;
            let transaction = database.begin_write()?;
            let commit = {
                let mut tables = Tables {
                    log: transaction.open_table(LOG)?,
                    leases: transaction.open_table(LEASES)?,
                    meta: transaction.open_table(META)?,
                };
                work(&mut tables)?
            };
            if commit {
                transaction.commit()?
            } else {
                transaction.abort()?
            }
            Ok(())
        })
    }

    /// Closes the database and opens it anew, as it is needed after an I/O error. On failure nothing is
    /// open; try again.
    pub(super) fn reopen(&self) -> Result<()> {
        self.close()?;
        let database = self.guard(|| self.open_database(false))?;
        *self.database.write() = Some(Arc::new(database));
        self.failed.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether an I/O error was met since the file was opened, so that redb wants it opened anew.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Closes the database once the last reader is done with it.
    pub(super) fn close(&self) -> Result<()> {
        let Some(mut database) = self.database.write().take() else { return Ok(()) };
        let deadline = Instant::now() + READERS_DEADLINE;
        loop {
            match Arc::try_unwrap(database) {
                // Dropping it writes to the file.
                Ok(database) => {
                    return self.guard(|| {
                        drop(database);
                        Ok(())
                    });
                }
                Err(shared) if Instant::now() < deadline => {
                    database = shared;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(shared) => {
                    // Two open databases on one file would destroy it.
                    *self.database.write() = Some(shared);
                    return Err(Error::unavailable("a read does not end"));
                }
            }
        }
    }

    pub(super) fn medium(&self) -> &dyn Medium {
        &*self.medium
    }

    /// Why nothing is served any more.
    pub(super) fn refused(&self) -> Option<&Error> {
        self.refused.get()
    }

    /// Stops serving because of damage.
    pub(super) fn refuse(&self, what: String, key: Option<String>, revision: Option<Revision>) -> Error {
        let error = Error::Corrupt { path: self.medium.path().to_owned(), what, key, revision };
        tracing::error!(%error, "the store is damaged");
        self.refused.get_or_init(|| error).clone()
    }

    fn database(&self) -> Result<Arc<Database>, Fault> {
        self.database.read().clone().ok_or_else(|| {
            Fault::Store(Error::unavailable("it is being opened again after an I/O error, or is closed"))
        })
    }

    fn guard<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Result<T> {
        if let Some(refused) = self.refused.get() {
            return Err(refused.clone());
        }
        // What a panic leaves behind is not looked at again: the store refuses everything from then on.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(self.error(fault)),
            Err(panic) => {
                let what = format!("its pages make no sense ({})", panic_message(&*panic));
                Err(self.refuse(what, None, None))
            }
        }
    }

    fn error(&self, fault: Fault) -> Error {
        let error = match fault {
            Fault::Store(error) => return error,
            Fault::Damage { what, key, revision } => return self.refuse(what, key, revision),
            Fault::Redb(error) => error,
        };
        self.failed.store(true, Ordering::Release);
        match error {
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Error::NoSpace { path: self.medium.path().to_owned() }
            }
            // redb reads only where its pages say that there is something.
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
            {
                self.refuse(format!("it is shorter than its pages say, or no store ({error})"), None, None)
            }
            error @ (redb::Error::Corrupted(_)
            | redb::Error::LockPoisoned(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableIsNotMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableDoesNotExist(_)) => self.refuse(error.to_string(), None, None),
            error => Error::unavailable(error.to_string()),
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
