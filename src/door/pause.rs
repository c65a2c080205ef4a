//! Accepting rests while the system has no descriptor left: peers wait in the backlog meanwhile, and
//! trying again at once would only burn the CPU. No I/O, and no clock.

use crate::log_limit::INTERVAL;
use std::time::{Duration, Instant};

/// How long accepting rests when no connection ends meanwhile.
pub const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Whether accepting rests.
#[derive(Debug, Default)]
pub struct Pause {
    /// Accepting has failed, and not everybody who has waited since has come in.
    failing: bool,
    /// When that was news last. Others can use up descriptors and give them back as often as they like.
    told: Option<Instant>,
    /// It was news that accepting fails, and not yet that it works again.
    owes_news: bool,
    ends: Option<Instant>,
}

impl Pause {
    /// Accepting has failed. True if that is news: it had worked before, and it was no news just now.
    pub fn begin(&mut self, now: Instant) -> bool {
        self.ends = Some(now + ACCEPT_PAUSE);
        let had_worked = !std::mem::replace(&mut self.failing, true);
        let was_told = self
            .told
            .is_some_and(|at| now.duration_since(at) < INTERVAL);
        let is_news = had_worked && !was_told;
        if is_news {
            self.told = Some(now);
            self.owes_news = true;
        }
        is_news
    }

    /// True while accepting rests.
    pub fn is_on(&self) -> bool {
        self.ends.is_some()
    }

    /// When accepting goes on, if it rests.
    pub fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// A descriptor is free again: accepting need not rest any longer.
    pub fn cut_short(&mut self, now: Instant) {
        if let Some(ends) = &mut self.ends {
            *ends = now;
        }
    }

    /// Ends the pause if it is time to, and says so.
    pub fn end(&mut self, now: Instant) -> bool {
        self.ends.take_if(|ends| *ends <= now).is_some()
    }

    /// Nobody waits any more. True if that is news, as it was that accepting had failed.
    pub fn recover(&mut self) -> bool {
        self.failing = false;
        std::mem::take(&mut self.owes_news)
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
        pause.cut_short(now);
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
