//! Exponential back-off with jitter, for retrying what failed.

use std::time::Duration;

use rand::Rng;

/// Delays that double from `initial` to `max`, each lengthened by a random part of itself so that many
/// clients of one server do not come back all at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `initial` and stays at `max` once there.
    pub fn new(initial: Duration, max: Duration) -> Backoff {
        Backoff { initial, max, next: initial }
    }

    /// How long to wait before the next try: between once and twice the current step.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(1.0 + rand::rng().random::<f64>())
    }

    /// After a success: the next failure starts at `initial` again.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_starts_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for step in [100, 200, 300, 300] {
            let delay = backoff.next_delay().as_millis();
            assert!((step..=2 * step).contains(&delay), "{delay} ms at step {step}");
        }
        backoff.reset();
        assert!(backoff.next_delay().as_millis() <= 200);
    }
}
