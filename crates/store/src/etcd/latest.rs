//! How far etcd is, asked once for all who want to know it at the same time.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    EVENTS_TIMEOUT,
    connection::Connection,
    convert::Keys,
    feed::{self, Feed},
};
use crate::{Error, Result, Revision};

/// See the [module](self). Questions are numbered; whoever wants an answer takes that of the next one that is asked,
/// because one that is under way may have been answered before the call.
pub(super) struct Latest {
    feed: Arc<Feed>,
    shared: Arc<Shared>,
}

struct Shared {
    asked: Mutex<u64>,
    wanted: Notify,
    answered: watch::Sender<(u64, Result<Revision>)>,
}

impl Latest {
    pub(super) fn start(connection: Arc<Connection>, keys: Arc<Keys>, feed: Arc<Feed>) -> (Latest, JoinHandle<()>) {
        let shared = Arc::new(Shared {
            asked: Mutex::new(0),
            wanted: Notify::new(),
            answered: watch::Sender::new((0, Ok(Revision::ZERO))),
        });
        let asking = tokio::spawn(run(shared.clone(), connection, keys, feed.clone()));
        (Latest { feed, shared }, asking)
    }

    /// Why the last question was not answered, if it was not.
    pub(super) fn last_failure(&self) -> Option<Error> {
        self.shared.answered.borrow().1.clone().err()
    }

    /// See [`crate::Store::latest`].
    pub(super) async fn ask(&self) -> Result<Revision> {
        let mut answered = self.shared.answered.subscribe();
        let mine = *self.shared.asked.lock() + 1;
        self.shared.wanted.notify_one();
        let revision = match answered.wait_for(|(number, _)| *number >= mine).await {
            Ok(answer) => answer.1.clone()?,
            Err(_) => return Err(Error::unavailable("it is closed")),
        };
        match tokio::time::timeout(EVENTS_TIMEOUT, self.feed.reach(revision)).await {
            Ok(()) => Ok(revision),
            Err(_) => Err(Error::unavailable(format!("etcd is at revision {revision}, but does not send its events"))),
        }
    }
}

async fn run(shared: Arc<Shared>, connection: Arc<Connection>, keys: Arc<Keys>, feed: Arc<Feed>) {
    loop {
        shared.wanted.notified().await;
        let number = {
            let mut asked = shared.asked.lock();
            *asked += 1;
            *asked
        };
        let known = feed.revision();
        let answer = match feed::current(&connection, &keys).await {
            // Whoever puts an older state in etcd's place has to start the API servers anew.
            Ok(revision) if revision < known => Err(Error::unavailable(format!(
                "etcd is at revision {revision}, but has been at {known}: was a backup restored? Then restart this server"
            ))),
            answer => answer,
        };
        // What was answered before is of no interest.
        let _ = shared.answered.send_replace((number, answer));
    }
}
