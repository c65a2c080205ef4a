//! Decides whether to spin or to block while waiting for readiness. No I/O and no clock: the caller waits.
//!
//! Waking a sleeping processor takes tens of microseconds, and a message and its answer wake two sidecars
//! twice. So if the last wait was short, the next one is expected to be short too, and begins with a
//! period of busy polling. An idle loop blocks. Polling in vain takes time from whoever is to send the answer,
//! so it is not repeated soon.

use std::time::{Duration, Instant};

/// How long a splice marks the traffic as bulk. The next piece is then in the pipe before anyone waits for
/// it, and polling would only take processor time from the VMs.
const BULK: Duration = Duration::from_millis(10);

/// A wait that blocked for up to this many budgets may be followed by one within the budget, as much of it was
/// spent on waking up both sidecars.
const SHORT_WAIT: u32 = 2;

/// Largest number of short waits that block after a wait that spun in vain.
const MAX_PENALTY: u32 = 1024;

/// The busy-poll policy of one event loop.
#[derive(Debug)]
pub struct BusyPoll {
    /// How long a wait may spin before it blocks.
    budget: Duration,
    last_wait_was_short: bool,
    /// Number of short waits that block before the next one spins, and the same after the next spin in vain.
    skip: u32,
    penalty: u32,
    bulk_until: Option<Instant>,
}

impl BusyPoll {
    /// A policy that blocks until a wait was short; with a budget of zero it always blocks.
    pub fn new(budget: Duration) -> Self {
        BusyPoll {
            budget,
            last_wait_was_short: false,
            skip: 0,
            penalty: 1,
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
        match self.last_wait_was_short && self.skip == 0 && !is_bulk {
            true => self.budget,
            false => Duration::ZERO,
        }
    }

    /// Records that a wait took `time` and ended while it spun. If that is more than the budget, another process
    /// had the processor meanwhile, and spinning did not help.
    pub fn spun(&mut self, time: Duration) {
        match time <= self.budget {
            true => self.penalty = 1,
            false => self.punish(),
        }
    }

    /// Records that a wait took `time` and blocked, perhaps after it had spun in vain.
    pub fn blocked(&mut self, time: Duration, spun: bool) {
        self.last_wait_was_short = time < self.budget * SHORT_WAIT;
        if spun {
            self.punish();
        } else if self.last_wait_was_short {
            self.skip = self.skip.saturating_sub(1);
        }
    }

    fn punish(&mut self) {
        self.skip = self.penalty;
        self.penalty = MAX_PENALTY.min(2 * self.penalty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_micros(100);
    const SHORT: Duration = Duration::from_micros(199);
    const LONG: Duration = Duration::from_micros(200);

    #[test]
    fn blocks_until_a_wait_was_short() {
        let now = Instant::now();
        let mut busy_poll = BusyPoll::new(BUDGET);
        assert_eq!(busy_poll.budget(now), Duration::ZERO);
        busy_poll.blocked(LONG, false);
        assert_eq!(busy_poll.budget(now), Duration::ZERO);
        busy_poll.blocked(SHORT, false);
        assert_eq!(busy_poll.budget(now), BUDGET);
        busy_poll.spun(BUDGET);
        assert_eq!(busy_poll.budget(now), BUDGET);
    }

    #[test]
    fn blocks_after_a_wait_that_was_long() {
        let mut busy_poll = BusyPoll::new(BUDGET);
        busy_poll.blocked(SHORT, false);
        busy_poll.blocked(LONG, true);
        assert_eq!(busy_poll.budget(Instant::now()), Duration::ZERO);
    }

    /// The number of short waits that block until the next one spins.
    fn blocks(busy_poll: &mut BusyPoll) -> u32 {
        let now = Instant::now();
        let mut count = 0;
        while busy_poll.budget(now) == Duration::ZERO {
            busy_poll.blocked(SHORT, false);
            count += 1;
        }
        count
    }

    #[test]
    fn spins_less_often_while_it_is_in_vain() {
        let mut busy_poll = BusyPoll::new(BUDGET);
        busy_poll.blocked(SHORT, false);
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024] {
            busy_poll.blocked(SHORT, true);
            assert_eq!(blocks(&mut busy_poll), expected);
        }
        busy_poll.spun(BUDGET);
        busy_poll.blocked(SHORT, true);
        assert_eq!(blocks(&mut busy_poll), 1);
    }

    #[test]
    fn a_spin_that_another_process_interrupted_was_in_vain() {
        let mut busy_poll = BusyPoll::new(BUDGET);
        busy_poll.blocked(SHORT, false);
        for expected in [1, 2, 4] {
            busy_poll.spun(BUDGET + Duration::from_micros(1));
            assert_eq!(blocks(&mut busy_poll), expected);
        }
    }

    #[test]
    fn blocks_while_payloads_are_spliced() {
        let now = Instant::now();
        let mut busy_poll = BusyPoll::new(BUDGET);
        busy_poll.blocked(SHORT, false);
        busy_poll.spliced(now);
        assert_eq!(busy_poll.budget(now), Duration::ZERO);
        assert_eq!(busy_poll.budget(now + BULK), BUDGET);
    }

    #[test]
    fn never_spins_without_a_budget() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        busy_poll.blocked(Duration::ZERO, false);
        assert_eq!(busy_poll.budget(Instant::now()), Duration::ZERO);
    }
}
