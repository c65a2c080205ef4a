//! Whether to spin or to block while waiting for readiness. No I/O, and no clock: the caller waits.
//!
//! A processor that has gone to sleep takes tens of microseconds to be woken up, and a message and
//! its answer wake two sidecars twice. So a wait begins with polling again and again, for a while,
//! if there is reason to believe that it will be short: the last one was. An idle loop blocks.

use std::time::{Duration, Instant};

/// After a splice, throughput counts for this long: the next piece is in a pipe before anybody waits
/// for it, and polling would take time from the VMs.
const BULK: Duration = Duration::from_millis(10);

/// Decides for one waiting loop.
#[derive(Debug)]
pub struct BusyPoll {
    /// How long a wait may spin before it blocks; shorter waits are worth it.
    budget: Duration,
    last_wait_was_short: bool,
    bulk_until: Option<Instant>,
}

impl BusyPoll {
    /// Blocks at first. With a `budget` of zero it always does.
    pub fn new(budget: Duration) -> Self {
        BusyPoll {
            budget,
            last_wait_was_short: false,
            bulk_until: None,
        }
    }

    /// A large payload has been spliced just now.
    pub fn spliced(&mut self, now: Instant) {
        self.bulk_until = Some(now + BULK);
    }

    /// How long a wait that begins `now` may spin.
    pub fn budget(&self, now: Instant) -> Duration {
        let is_bulk = self.bulk_until.is_some_and(|until| now < until);
        match self.last_wait_was_short && !is_bulk {
            true => self.budget,
            false => Duration::ZERO,
        }
    }

    /// A wait took so long.
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
