//! A queue of keys to work on, each at most once at a time.
//!
//! Invariants, as in client-go's work queue:
//! - A key is handed to one worker at a time. Added meanwhile, it is handed out again afterwards.
//! - A key added several times before it is handed out is handed out once.
//! - Keys come in the order in which they were first added.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// The delay after a key's first failure, and the longest one: upstream's per-item limiter.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(1000);

/// See the [module](self). Cloning gives another handle on the same queue.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    /// Wakes one waiting worker when there may be something for it.
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, and keys that will be when their worker is done.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    /// When delayed keys come due. The heap may hold times that are no longer wanted; the map decides.
    due: HashMap<K, Instant>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    timer_keys: HashMap<u64, K>,
    next_timer: u64,
    failures: HashMap<K, u32>,
    closed: bool,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue { shared: self.shared.clone() }
    }
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            due: HashMap::new(),
            timers: BinaryHeap::new(),
            timer_keys: HashMap::new(),
            next_timer: 0,
            failures: HashMap::new(),
            closed: false,
        };
        WorkQueue { shared: Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }) }
    }

    /// Asks for `key` to be worked on.
    pub fn add(&self, key: K) {
        if self.shared.state.lock().add(key) {
            self.shared.wake.notify_one();
        }
    }

    /// Asks for `key` to be worked on after `delay`. Of several delays for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.shared.state.lock();
        if state.closed || state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        let first = state.timers.peek().is_none_or(|Reverse((first, _))| at < *first);
        let timer = state.next_timer;
        state.next_timer += 1;
        state.due.insert(key.clone(), at);
        state.timers.push(Reverse((at, timer)));
        state.timer_keys.insert(timer, key);
        drop(state);
        if first {
            // Whoever sleeps towards a later time has to sleep anew.
            self.shared.wake.notify_one();
        }
    }

    /// Asks for `key` to be worked on after its back-off: 5 ms after the first failure, twice as long
    /// after each further one, at most 1000 s, until it is [forgotten](WorkQueue::forget).
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.shared.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        self.add_after(key, retry_delay(failures));
    }

    /// Ends a key's back-off: it was dealt with.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How often `key` was added rate-limited since it was forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.shared.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key to work on; `None` once the queue is shut down and empty. Call
    /// [`done`](WorkQueue::done) with it afterwards.
    ///
    /// Cancel safe.
    pub async fn next(&self) -> Option<K> {
        loop {
            let deadline = {
                let mut state = self.shared.state.lock();
                state.take_due(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    // Each wake-up is for one worker, and it may have been for more than one key.
                    if !state.ready.is_empty() || !state.timers.is_empty() {
                        self.shared.wake.notify_one();
                    }
                    return Some(key);
                }
                if state.closed {
                    self.shared.wake.notify_one();
                    return None;
                }
                state.timers.peek().map(|Reverse((at, _))| *at)
            };
            let woken = self.shared.wake.notified();
            match deadline {
                None => woken.await,
                Some(at) => {
                    // Either way the state is looked at again.
                    let _ = tokio::time::timeout_at(at, woken).await;
                }
            }
        }
    }

    /// Says that the work on `key` is over. If it was added meanwhile it comes again.
    pub fn done(&self, key: &K) {
        let mut state = self.shared.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// How many keys wait to be handed out now.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key waits to be handed out now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more keys; what is ready is still handed out, what is delayed is not.
    pub fn shut_down(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.timers.clear();
        state.timer_keys.clear();
        state.due.clear();
        drop(state);
        self.shared.wake.notify_one();
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Whether a worker should be woken.
    fn add(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn take_due(&mut self, now: Instant) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let Some(key) = self.timer_keys.remove(&timer) else {
                continue;
            };
            if self.due.get(&key) == Some(&at) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

fn retry_delay(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_worked_on_by_one() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.next().await, Some("b"));
        assert_eq!(queue.next().now_or_never(), None, "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(20));
        queue.add_after("b", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("b"));
        assert_eq!(start.elapsed().as_secs(), 10);
        let later = tokio::time::timeout(Duration::from_secs(100), queue.next()).await;
        assert!(later.is_err(), "superseded delays do not come due");
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_delay_wakes_a_sleeping_worker() {
        let queue = WorkQueue::new();
        queue.add_after("late", Duration::from_secs(60));
        let worker = tokio::spawn({
            let queue = queue.clone();
            async move { (queue.next().await, Instant::now()) }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        queue.add_after("early", Duration::from_secs(1));
        let (key, at) = worker.await.unwrap();
        assert_eq!((key, (at - start).as_secs()), (Some("early"), 1));
    }

    #[test]
    fn retries_back_off_from_5_ms_to_1000_s() {
        let seconds = |failures| retry_delay(failures).as_secs_f64();
        assert_eq!(seconds(1), 0.005);
        assert_eq!(seconds(2), 0.010);
        assert_eq!(seconds(11), 5.12);
        assert_eq!(seconds(18), 655.36);
        assert_eq!(seconds(19), 1000.0);
        assert_eq!(seconds(200), 1000.0);
    }

    #[tokio::test(start_paused = true)]
    async fn shutting_down_lets_all_workers_finish() {
        let queue = WorkQueue::<u32>::new();
        queue.add(1);
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    while let Some(key) = queue.next().await {
                        queue.done(&key)
                    }
                })
            })
            .collect();
        queue.shut_down();
        for worker in workers {
            worker.await.unwrap();
        }
        queue.add(2);
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test]
    async fn no_key_is_lost_with_many_workers() {
        let queue = WorkQueue::new();
        let seen = Arc::new(Mutex::new(HashSet::new()));
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (queue, seen) = (queue.clone(), seen.clone());
                tokio::spawn(async move {
                    while let Some(key) = queue.next().await {
                        tokio::task::yield_now().await;
                        seen.lock().insert(key);
                        queue.done(&key);
                    }
                })
            })
            .collect();
        for key in 0..1000 {
            if key % 2 == 0 { queue.add(key) } else { queue.add_after(key, Duration::from_millis(1)) }
        }
        tokio::time::timeout(Duration::from_secs(10), async {
            while seen.lock().len() < 1000 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("all keys are handed out");
        queue.shut_down();
        for worker in workers {
            worker.await.unwrap();
        }
    }
}
