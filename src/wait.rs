//! Decides whether to spin or to block while waiting for readiness. No I/O and no clock: the caller waits.
//!
//! Waking a sleeping processor takes tens of microseconds, and a message and its answer wake two sidecars
//! twice. So if the last wait was short, the next one is expected to be short too, and begins with a
//! period of busy polling. An idle loop blocks.

use std::time::{Duration, Instant};

/// How long a splice marks the traffic as bulk. The next piece is then in the pipe before anyone waits for
/// it, and polling would only take processor time from the VMs.
const BULK: Duration = Duration::from_millis(10);

/// The busy-poll policy of one event loop.
#[derive(Debug)]
pub struct BusyPoll {
    /// How long a wait may spin before it blocks. A wait shorter than this counts as short.
    budget: Duration,
    last_wait_was_short: bool,
    bulk_until: Option<Instant>,
}

impl BusyPoll {
    /// A policy that blocks until a wait was shorter than `budget`; with a budget of zero it always blocks.
    pub fn new(budget: Duration) -> Self {
        BusyPoll {
            budget,
            last_wait_was_short: false,
            bulk_until: None,
        }
    }

    /// Records that a large payload was spliced at `now`.
    pub fn spliced(&mut self, now: Instant) {
        self.bulk_until = Some(now + BULK);
    }

    /// How long a wait that begins at `now` may spin.
    pub fn budget(&self, now: Instant) -> Duration {
        let is_bulk = self.bulk_until.is_some_and(|until| now < until);
        match self.last_wait_was_short && !is_bulk {
            true => self.budget,
            false => Duration::ZERO,
        }
    }

    /// Records how long a wait took.
    pub fn waited(&mut self, time: Duration) {
        self.last_wait_was_short = time < self.budget;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_micros(100);
    const LESS: Duration = Duration::from_micros(99);

    #[test]
    fn blocks_until_a_wait_was_short() {
        let now = Instant::now();
        let mut busy_poll = BusyPoll::new(BUDGET);
        assert_eq!(busy_poll.budget(now), Duration::ZERO);
        busy_poll.waited(BUDGET);
        assert_eq!(busy_poll.budget(now), Duration::ZERO);
        busy_poll.waited(LESS);
        assert_eq!(busy_poll.budget(now), BUDGET);
    }

    #[test]
    fn blocks_after_a_wait_that_was_long() {
        let mut busy_poll = BusyPoll::new(BUDGET);
        busy_poll.waited(LESS);
        busy_poll.waited(BUDGET);
        assert_eq!(busy_poll.budget(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn blocks_while_payloads_are_spliced() {
        let now = Instant::now();
        let mut busy_poll = BusyPoll::new(BUDGET);
        busy_poll.waited(LESS);
        busy_poll.spliced(now);
        assert_eq!(busy_poll.budget(now), Duration::ZERO);
        assert_eq!(busy_poll.budget(now + BULK), BUDGET);
    }

    #[test]
    fn never_spins_without_a_budget() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        busy_poll.waited(Duration::ZERO);
        assert_eq!(busy_poll.budget(Instant::now()), Duration::ZERO);
    }
}
