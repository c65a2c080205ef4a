//! Pauses accepting while the system has no descriptor left. Peers wait in the backlog meanwhile; retrying
//! at once would only burn processor time. No I/O and no clock.

use crate::log_limit::INTERVAL;
use std::time::{Duration, Instant};

/// How long a pause lasts, unless a connection ends earlier and frees a descriptor.
pub const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The state of accepting: whether it is paused, and what has been logged about it.
#[derive(Debug, Default)]
pub struct Pause {
    /// Accepting has failed, and the backlog has not been emptied since.
    failing: bool,
    /// Time of the last log line about a failure. Lines are limited, as other processes can use up and free
    /// descriptors as often as they like.
    failure_logged_at: Option<Instant>,
    /// A failure was logged, and the end of it has not been.
    must_log_recovery: bool,
    /// The time at which the current pause ends.
    ends: Option<Instant>,
}

impl Pause {
    /// Begins a pause after accepting has failed. Returns true if that should be logged: accepting worked
    /// before, and no failure was logged recently.
    pub fn begin(&mut self, now: Instant) -> bool {
        self.ends = Some(now + ACCEPT_PAUSE);
        let had_worked = !std::mem::replace(&mut self.failing, true);
        let logged_recently = self
            .failure_logged_at
            .is_some_and(|at| now.duration_since(at) < INTERVAL);
        let is_news = had_worked && !logged_recently;
        if is_news {
            self.failure_logged_at = Some(now);
            self.must_log_recovery = true;
        }
        is_news
    }

    /// True while accepting is paused.
    pub fn is_on(&self) -> bool {
        self.ends.is_some()
    }

    /// True while accepting is paused and no descriptor has been freed since.
    pub fn lacks_descriptor(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now < ends)
    }

    /// The time at which the pause ends, if there is one.
    pub fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// Ends the pause early, because a descriptor was freed. [`end`](Self::end) becomes due.
    pub fn cut_short(&mut self, now: Instant) {
        if let Some(ends) = &mut self.ends {
            *ends = now;
        }
    }

    /// Ends the pause and returns true, if it is due.
    pub fn end(&mut self, now: Instant) -> bool {
        self.ends.take_if(|ends| *ends <= now).is_some()
    }

    /// Records that the backlog is empty. Returns true if that should be logged, because the failure was.
    pub fn recover(&mut self) -> bool {
        self.failing = false;
        std::mem::take(&mut self.must_log_recovery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_in_time() {
        let now = Instant::now();
        let mut pause = Pause::default();
        assert!(!pause.end(now + ACCEPT_PAUSE));
        pause.begin(now);
        assert!(pause.is_on() && !pause.end(now));
        assert!(pause.end(now + ACCEPT_PAUSE));
        assert!(!pause.is_on());
    }

    #[test]
    fn a_free_descriptor_ends_a_pause() {
        let now = Instant::now();
        let mut pause = Pause::default();
        pause.cut_short(now);
        assert!(!pause.is_on());
        pause.begin(now);
        assert!(pause.lacks_descriptor(now));
        pause.cut_short(now);
        assert!(!pause.lacks_descriptor(now));
        assert!(pause.end(now));
    }

    #[test]
    fn failing_and_recovering_are_news_once() {
        let now = Instant::now();
        let mut pause = Pause::default();
        assert!(!pause.recover());
        assert!(pause.begin(now));
        assert!(!pause.begin(now));
        assert!(pause.recover());
        assert!(!pause.recover());
    }

    #[test]
    fn what_comes_and_goes_is_news_now_and_then() {
        let now = Instant::now();
        let mut pause = Pause::default();
        let mut news = 0;
        for millisecond in 0..10_000 {
            let now = now + Duration::from_millis(millisecond);
            let begins = pause.begin(now);
            assert_eq!(pause.recover(), begins);
            news += u32::from(begins);
        }
        assert_eq!(news, 2);
    }
}
