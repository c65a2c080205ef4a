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

    /// Whether `peer` may be one; `groups` fetches its supplementary groups if they matter.
    pub fn admits(&self, peer: &Credentials, groups: impl FnOnce() -> Vec<u32>) -> bool {
        self.policy.admits(peer, self.own_uid, groups)
    }

    /// Checks whether `peer` is admitted, as [`admits`](Self::admits) does.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(
        &mut self,
        peer: &Credentials,
        groups: impl FnOnce() -> Vec<u32>,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.admits(peer, groups) {
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

    fn is_let_in(admission: &mut Admission, peer: &Credentials, groups: &[u32]) -> bool {
        let groups = || groups.to_vec();
        admission.check(peer, groups, Instant::now()).is_ok()
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
        assert!(is_let_in(&mut admission, &peer(1000, 1), &[]));
        assert!(is_let_in(&mut admission, &peer(1001, 50), &[]));
        assert!(is_let_in(&mut admission, &peer(1001, 51), &[2, 50]));
        assert!(!is_let_in(&mut admission, &peer(1001, 51), &[2, 51]));
        assert!(!is_let_in(&mut admission, &peer(0, 0), &[]));
    }

    #[test]
    fn groups_that_do_not_matter_are_not_asked_for() {
        let asked = || -> Vec<u32> { panic!("it was asked for the groups") };
        let now = Instant::now();
        let mut users_only = admission(&[1000], &[]);
        assert!(users_only.check(&peer(1001, 1), asked, now).is_err());
        let mut both = admission(&[1000], &[50]);
        assert!(both.check(&peer(1000, 1), asked, now).is_ok());
        assert!(both.check(&peer(1001, 50), asked, now).is_ok());
    }

    #[test]
    fn admits_ourselves_and_root_by_default() {
        let mut admission = Admission::default();
        let us = os::own_uid();
        assert!(is_let_in(&mut admission, &peer(us, 1), &[]));
        assert!(is_let_in(&mut admission, &peer(0, 1), &[]));
        assert!(!is_let_in(&mut admission, &peer(us + 1, 1), &[0]));
    }

    #[test]
    fn admits_anybody_if_told_so() {
        let mut admission = Admission::default();
        admission.set_policy(Policy::just(Base::Anybody));
        assert!(is_let_in(&mut admission, &peer(4711, 1), &[]));
    }

    #[test]
    fn refuses_whom_the_kernel_does_not_know() {
        assert!(!is_let_in(
            &mut Admission::default(),
            &Credentials::UNKNOWN,
            &[]
        ));
    }
}
