//! Applies the policy that says who may be a peer, and says how often a refusal is worth a log line. No
//! I/O: the caller asks the kernel who the peer is.
//!
//! The check comes before the first byte of a handshake, on both sides: a stranger who connects
//! learns nothing, and neither does one who listens where a node was expected.

use crate::os;
use crate::peer::{Base, Credentials, Policy};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A refused user is logged once in this time, with a count of the refusals since.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Refused users that are remembered, and so logged, in one interval. A host has few; somebody with
/// a user namespace may have 65536, and should not fill the disk with them.
const MAX_REMEMBERED: usize = 100;

/// Applies a policy, and keeps count of whom it has refused.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    own_uid: u32,
    refused: HashMap<u32, Refused>,
}

#[derive(Debug)]
struct Refused {
    logged: Instant,
    since: u32,
}

/// A peer was refused. If it is time to log that: how many of its user were refused since the last
/// time, this one included.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the log line, if there should be one.
    pub count: Option<u32>,
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            policy: Policy::just(Base::OwnUserAndRoot),
            own_uid: os::own_uid(),
            refused: HashMap::new(),
        }
    }
}

impl Admission {
    /// Another policy holds from now on; connections that are open stay.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Lets the peer in or not.
    pub fn check(&mut self, peer: &Credentials, now: Instant) -> Result<(), Refusal> {
        if self.policy.admits(peer, self.own_uid) {
            return Ok(());
        }
        let Some(refused) = self.refused.get_mut(&peer.uid) else {
            if self.refused.len() >= MAX_REMEMBERED {
                self.refused
                    .retain(|_, refused| now.duration_since(refused.logged) < LOG_INTERVAL);
            }
            if self.refused.len() >= MAX_REMEMBERED {
                return Err(Refusal { count: None });
            }
            let refused = Refused {
                logged: now,
                since: 0,
            };
            self.refused.insert(peer.uid, refused);
            return Err(Refusal { count: Some(1) });
        };
        refused.since += 1;
        if now.duration_since(refused.logged) < LOG_INTERVAL {
            return Err(Refusal { count: None });
        }
        refused.logged = now;
        let count = std::mem::take(&mut refused.since);
        Err(Refusal { count: Some(count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> Credentials {
        Credentials { uid, gid, pid: 1 }
    }

    fn admission(uids: &[u32], gids: &[u32]) -> Admission {
        let mut admission = Admission::default();
        admission.set_policy(Policy {
            base: Base::Nobody,
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        });
        admission
    }

    #[test]
    fn admits_a_user_or_a_group_that_is_named() {
        let mut admission = admission(&[1000], &[50]);
        let now = Instant::now();
        assert!(admission.check(&peer(1000, 1), now).is_ok());
        assert!(admission.check(&peer(1001, 50), now).is_ok());
        assert!(admission.check(&peer(1001, 51), now).is_err());
        assert!(admission.check(&peer(0, 0), now).is_err());
    }

    #[test]
    fn admits_ourselves_and_root_by_default() {
        let mut admission = Admission::default();
        let us = os::own_uid();
        let now = Instant::now();
        assert!(admission.check(&peer(us, 1), now).is_ok());
        assert!(admission.check(&peer(0, 1), now).is_ok());
        assert!(admission.check(&peer(us + 1, 1), now).is_err());
    }

    #[test]
    fn admits_anybody_if_told_so() {
        let mut admission = Admission::default();
        admission.set_policy(Policy::just(Base::Anybody));
        assert!(admission.check(&peer(4711, 1), Instant::now()).is_ok());
    }

    #[test]
    fn refuses_whom_the_kernel_does_not_know() {
        let unknown = Credentials::UNKNOWN;
        let now = Instant::now();
        assert!(Admission::default().check(&unknown, now).is_err());
    }

    #[test]
    fn counts_what_it_does_not_log() {
        let mut admission = admission(&[], &[]);
        let start = Instant::now();
        let late = start + LOG_INTERVAL;
        let mut count = |uid, at| {
            admission
                .check(&peer(uid, 1), at)
                .expect_err("refused")
                .count
        };
        assert_eq!(count(7, start), Some(1));
        assert_eq!(count(7, start), None);
        assert_eq!(count(7, start), None);
        assert_eq!(count(8, start), Some(1));
        assert_eq!(count(7, late), Some(3));
        assert_eq!(count(7, late), None);
    }

    #[test]
    fn logs_a_bounded_number_of_users_in_one_interval() {
        let mut admission = admission(&[], &[]);
        let start = Instant::now();
        let mut logged = |uids: std::ops::Range<u32>, at| {
            let counts = uids.map(|uid| {
                admission
                    .check(&peer(uid, 1), at)
                    .expect_err("refused")
                    .count
            });
            counts.flatten().count()
        };
        assert_eq!(logged(0..65536, start), MAX_REMEMBERED);
        assert_eq!(logged(0..65536, start), 0);
        let late = start + LOG_INTERVAL;
        assert_eq!(logged(65536..131072, late), MAX_REMEMBERED);
    }
}
