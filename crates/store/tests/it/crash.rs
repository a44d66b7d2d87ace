//! `kill -9` in the midst of writes, hundreds of times on the same file.
//!
//! This test's binary is its own victim: as a child it opens the store, writes with several clients,
//! watches from where the last child's watcher was, and tells on its standard output what was
//! acknowledged and what was watched, until it is killed.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skiff_store::{Code, Embedded, Options, Revision, Store};

use crate::seen::{Seen, parts, write};

const KILLS: usize = 250;
const STORE: &str = "SKIFF_TEST_CRASH_STORE";
const RESUME: &str = "SKIFF_TEST_CRASH_RESUME";
const START: &str = "SKIFF_TEST_CRASH_START";

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut rng = StdRng::from_os_rng();
    let mut seen = Seen::default();
    let mut kills = 0;
    while kills < KILLS {
        kills += usize::from(round(&path, &mut seen, &mut rng, || {}));
        if kills % 50 == 0 {
            let store = Embedded::open(&path, &Options::default()).unwrap();
            seen.check(&store).await.unwrap();
            // The next children's watchers resume after this, so they are not in its way.
            let at = Revision(seen.resume().0 - 1);
            if at > store.compacted() {
                store.compact(at).await.unwrap();
            }
        }
    }
    let store = Embedded::open(&path, &Options::default()).unwrap();
    seen.check(&store).await.unwrap();
    store.check().await.unwrap();
    assert!(seen.acknowledged.len() > KILLS, "only {} writes in {KILLS} rounds", seen.acknowledged.len());
}

/// One child's life, with something done just before it is killed. Returns whether it got as far as to
/// acknowledge something.
pub(crate) fn round(path: &Path, seen: &mut Seen, rng: &mut StdRng, before_kill: impl FnOnce()) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture"])
        .env(STORE, path)
        .env(RESUME, seen.resume().0.to_string())
        .env(START, seen.last().to_string())
        .stdout(Stdio::piped())
        // What it says when its disk fails is no news.
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let killed_after = Duration::from_micros(rng.random_range(0..30_000));
    let mut acknowledged = false;
    let mut kill_at = None;
    let mut before_kill = Some(before_kill);
    for line in lines {
        // The last line may be cut off in the middle of anything.
        let Ok(line) = line else { break };
        let mut words = line.split('\t');
        let (Some(kind), Some(revision), Some(rest), Some("")) =
            (words.next(), words.next(), words.next(), words.next_back())
        else {
            continue;
        };
        let revision: u64 = revision.parse().unwrap();
        // One line tells all of a transaction, as half of it may not arrive.
        let writes = rest.split(';').map(|write| {
            let (key, value) = write.split_once('=').unwrap();
            (key.to_owned(), (value != "†").then(|| value.to_owned()))
        });
        match kind {
            "open" => assert!(revision >= seen.last(), "monotonic: at {revision} after {}", seen.last()),
            "watched" => writes.for_each(|(key, value)| seen.watch(revision, key, value).unwrap()),
            "acknowledged" => {
                acknowledged = true;
                seen.acknowledged.insert(revision, writes.collect());
            }
            other => panic!("what is {other:?}?"),
        }
        let at = *kill_at.get_or_insert_with(|| Instant::now() + killed_after);
        if Instant::now() >= at
            && let Some(before_kill) = before_kill.take()
        {
            before_kill();
            child.kill().unwrap();
        }
    }
    // It only ends by itself if something is wrong.
    let status = child.wait().unwrap();
    assert!(before_kill.is_none() && !status.success(), "the child ended by itself: {status}");
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let (Some(path), Some(resume), Some(start)) = (std::env::var_os(STORE), number(RESUME), number(START)) else {
        return;
    };
    let store = Arc::new(Embedded::open(path, &Options::default()).unwrap());
    tell(&format!("open\t{}\t-=-\t\n", store.revision()));
    let mut watch = store.watch("/", Some(Revision(resume)));
    tokio::spawn(async move {
        while let Some(batch) = watch.recv().await.expect("the watch goes on") {
            let mut lines = String::new();
            for events in batch.events.chunk_by(|one, next| one.revision() == next.revision()) {
                let writes = events.iter().map(|event| parts(event)).map(|(_, key, value)| (key, value));
                lines += &line("watched", events[0].revision(), &writes.collect::<Vec<_>>());
            }
            tell(&lines);
        }
    });
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for step in 0.. {
                    let (txn, writes) = write(writer, start * 7 + step);
                    let revision = match store.txn(txn).await {
                        Ok(answer) => answer.revision,
                        Err(error) => panic!("{:?}: {error}", error.code() == Code::Corrupt),
                    };
                    tell(&line("acknowledged", revision, &writes));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

/// What happened at a revision. The tab at the end tells a whole line from the beginning of one.
fn line(what: &str, revision: Revision, writes: &[(String, Option<String>)]) -> String {
    let writes = writes.iter().map(|(key, value)| format!("{key}={}", value.as_deref().unwrap_or("†")));
    format!("{what}\t{revision}\t{}\t\n", writes.collect::<Vec<_>>().join(";"))
}

/// Writes lines at once and unmixed with others'.
fn tell(lines: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(lines.as_bytes()).and_then(|()| out.flush()).expect("the parent reads until we are dead");
}
