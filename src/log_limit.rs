//! Rate limits for log lines that strangers can trigger: one line per user and interval, with a count of
//! the events since the previous line. No I/O and no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Each user gets at most one log line in this time.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// Most users that are remembered, and therefore logged, in one interval. A host has few users, but
/// whoever controls a user namespace may have 65536, and must not be able to fill the disk with them.
pub const MAX_REMEMBERED: usize = 100;

/// Limits the log lines about one kind of event.
#[derive(Debug, Default)]
pub struct LogLimit {
    users: HashMap<u32, User>,
}

#[derive(Debug)]
struct User {
    /// Time of the last line.
    logged: Instant,
    /// Events since the last line.
    since: u32,
}

impl LogLimit {
    /// Counts an event caused by a process of `uid`. If a line is due, returns the number of events since
    /// the last line, including this one.
    pub fn count(&mut self, uid: u32, now: Instant) -> Option<u32> {
        let Some(user) = self.users.get_mut(&uid) else {
            if self.users.len() >= MAX_REMEMBERED {
                self.users
                    .retain(|_, user| now.duration_since(user.logged) < INTERVAL);
            }
            if self.users.len() >= MAX_REMEMBERED {
                return None;
            }
            let user = User {
                logged: now,
                since: 0,
            };
            self.users.insert(uid, user);
            return Some(1);
        };
        user.since += 1;
        if now.duration_since(user.logged) < INTERVAL {
            return None;
        }
        user.logged = now;
        Some(std::mem::take(&mut user.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_does_not_log() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let late = start + INTERVAL;
        assert_eq!(limit.count(7, start), Some(1));
        assert_eq!(limit.count(7, start), None);
        assert_eq!(limit.count(7, start), None);
        assert_eq!(limit.count(8, start), Some(1));
        assert_eq!(limit.count(7, late), Some(3));
        assert_eq!(limit.count(7, late), None);
    }

    #[test]
    fn logs_a_bounded_number_of_users_in_one_interval() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let mut logged =
            |uids: std::ops::Range<u32>, at| uids.filter_map(|uid| limit.count(uid, at)).count();
        assert_eq!(logged(0..65536, start), MAX_REMEMBERED);
        assert_eq!(logged(0..65536, start), 0);
        let late = start + INTERVAL;
        assert_eq!(logged(65536..131_072, late), MAX_REMEMBERED);
    }
}
