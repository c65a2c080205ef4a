//! How long to stay awake while waiting for readiness. Pure: the caller waits.
//!
//! A processor that has gone to sleep takes tens of microseconds to be woken up, and a message and
//! its answer wake two sidecars twice. So a wait begins with looking again and again, for a while,
//! if there is reason to believe that it will be short: the last one was. Whoever is idle sleeps.

use std::time::{Duration, Instant};

/// Where long data has gone by, throughput counts for this long: the next piece is in a pipe before
/// it is waited for, and looking for it would take time from the VMs.
const BULK: Duration = Duration::from_millis(10);

/// Decides for one waiting loop.
#[derive(Debug)]
pub struct Alertness {
    /// Waits that are shorter are worth staying awake for.
    limit: Duration,
    last_wait_was_short: bool,
    bulk_until: Option<Instant>,
}

impl Alertness {
    /// Asleep at first. With a `limit` of zero it stays so.
    pub fn new(limit: Duration) -> Self {
        Alertness {
            limit,
            last_wait_was_short: false,
            bulk_until: None,
        }
    }

    /// Long data has gone by just now.
    pub fn bulk(&mut self, now: Instant) {
        self.bulk_until = Some(now + BULK);
    }

    /// How long to stay awake in a wait that begins `now`.
    pub fn awake(&self, now: Instant) -> Duration {
        let is_bulk = self.bulk_until.is_some_and(|until| now < until);
        match self.last_wait_was_short && !is_bulk {
            true => self.limit,
            false => Duration::ZERO,
        }
    }

    /// A wait took so long.
    pub fn waited(&mut self, time: Duration) {
        self.last_wait_was_short = time < self.limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);
    const LESS: Duration = Duration::from_micros(99);

    #[test]
    fn sleeps_until_a_wait_was_short() {
        let now = Instant::now();
        let mut alertness = Alertness::new(LIMIT);
        assert_eq!(alertness.awake(now), Duration::ZERO);
        alertness.waited(LIMIT);
        assert_eq!(alertness.awake(now), Duration::ZERO);
        alertness.waited(LESS);
        assert_eq!(alertness.awake(now), LIMIT);
    }

    #[test]
    fn sleeps_after_a_wait_that_was_long() {
        let mut alertness = Alertness::new(LIMIT);
        alertness.waited(LESS);
        alertness.waited(LIMIT);
        assert_eq!(alertness.awake(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn sleeps_while_bulk_goes_by() {
        let now = Instant::now();
        let mut alertness = Alertness::new(LIMIT);
        alertness.waited(LESS);
        alertness.bulk(now);
        assert_eq!(alertness.awake(now), Duration::ZERO);
        assert_eq!(alertness.awake(now + BULK), LIMIT);
    }

    #[test]
    fn never_wakes_without_a_limit() {
        let mut alertness = Alertness::new(Duration::ZERO);
        alertness.waited(Duration::ZERO);
        assert_eq!(alertness.awake(Instant::now()), Duration::ZERO);
    }
}
