//! Applies the policy that decides which peers are admitted, and limits the log lines about refusals. No
//! I/O: the caller asks the kernel who the peer is.
//!
//! Both sides check before the first byte of a handshake. So a stranger that connects learns nothing, and
//! neither does one that listens where a node is expected.

use crate::log_limit::LogLimit;
use crate::os;
use crate::peer::{Base, Credentials, Policy};
use std::time::Instant;

/// The current policy, and a count of the peers that it has refused.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    own_uid: u32,
    refused: LogLimit,
}

/// The refusal of a peer.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// If a log line is due: the number of refusals of this user since the last line, including this one.
    pub count: Option<u32>,
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            policy: Policy::just(Base::OwnUserAndRoot),
            own_uid: os::own_uid(),
            refused: LogLimit::default(),
        }
    }
}

impl Admission {
    /// Replaces the policy. Open connections are not affected.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Whether this may be a peer.
    pub fn admits(&self, peer: &Credentials) -> bool {
        self.policy.admits(peer, self.own_uid)
    }

    /// Checks whether `peer` is admitted.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&mut self, peer: &Credentials, now: Instant) -> Result<(), Refusal> {
        if self.admits(peer) {
            return Ok(());
        }
        let count = self.refused.count(peer.uid, now);
        Err(Refusal { count })
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
}
