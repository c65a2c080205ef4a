//! Applies the policy that says who may be a peer, and says how often a refusal is worth a log line. No
//! I/O: the caller asks the kernel who the peer is.
//!
//! The check comes before the first byte of a handshake, on both sides: a stranger who connects
//! learns nothing, and neither does one who listens where a node was expected.

use crate::log_limit::LogLimit;
use crate::os;
use crate::peer::{Base, Credentials, Policy};
use std::time::Instant;

/// Applies a policy, and keeps count of whom it has refused.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    own_uid: u32,
    refused: LogLimit,
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
            refused: LogLimit::default(),
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
