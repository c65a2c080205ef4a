//! How many handshakes of a user may fail. No I/O, and no clock: the caller says what time it is.
//!
//! Each new name that somebody says stays in the VM for ever, in its table of atoms, whether or not the
//! handshake succeeds. So a user whose handshakes fail under ever new names is stopped before the VM hears
//! the next one: by a budget that refills slowly. A name that the VM knows costs it nothing more: nodes that
//! were connected come in whatever others of their user do, and so do those that try again and again with
//! the wrong cookie.
//!
//! Only the VM finds out whether a new name comes with the right cookie. So a part of the budget is for
//! names that were refused and come again, as a node does and somebody with ever new names does not.

use super::gate::Name;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// New names under which handshakes of one user may fail at once: more than a cluster has nodes. The VM
/// has room for a million.
pub const BUDGET: u32 = 1000;

/// As many of them are kept for names that were refused before.
pub const RESERVE: u32 = 100;

/// How long one of them takes to be allowed again: 21600 a day, so that somebody who does nothing else
/// fills the VM's table in seven weeks. A health check under ever new names with the wrong cookie, every
/// five seconds, never uses the budget up.
pub const REFILL: Duration = Duration::from_secs(4);

/// Users with a budget of their own. A host has few; somebody with a user namespace may have 65536, and
/// then the next ones have one together.
pub const MAX_USERS: usize = 64;

/// Names of nodes that are remembered, for as long as there are not so many newer ones.
pub const MAX_NODES: usize = 16384;

/// Refused names that are remembered. Somebody who does nothing else needs seconds to have all of them
/// forgotten, and in most cases has no reason to.
pub const MAX_REFUSED: usize = 65536;

/// What is known of handshakes that are over.
#[derive(Debug, Default)]
pub struct Failures {
    hasher: RandomState,
    users: HashMap<u32, User>,
    /// All users that have no budget of their own.
    others: User,
    /// Names of nodes that were connected.
    nodes: Names<MAX_NODES>,
    /// Names that were refused.
    refused: Names<MAX_REFUSED>,
}

#[derive(Debug, Default)]
struct User {
    /// When the budget will be full again, if it is not.
    full_at: Option<Instant>,
    /// Names under which handshakes have failed.
    names: Names<{ BUDGET as usize }>,
}

impl Failures {
    /// Whether one of this user may try to shake hands under this name; if not, that is remembered.
    pub fn may_try(&mut self, uid: u32, name: &Name, now: Instant) -> bool {
        let name = self.hash(name);
        if name.is_some_and(|name| self.nodes.contains(name)) {
            return true;
        }
        let user = match self.users.get(&uid) {
            Some(user) => user,
            // It has not failed yet.
            None if self.has_room(now) => return true,
            None => &self.others,
        };
        let kept = match name {
            Some(name) if user.names.contains(name) => return true,
            Some(name) if self.refused.contains(name) => 0,
            _ => RESERVE,
        };
        let may_try = user.has_budget(kept, now);
        if let (false, Some(name)) = (may_try, name) {
            self.refused.insert(name);
        }
        may_try
    }

    /// A handshake has failed.
    pub fn failed(&mut self, uid: u32, name: &Name, now: Instant) {
        let name = self.hash(name);
        if name.is_some_and(|name| self.nodes.contains(name)) {
            return;
        }
        let user = self.user(uid, now);
        if !name.is_some_and(|name| user.names.contains(name)) {
            user.full_at = Some(user.full_at.unwrap_or(now).max(now) + REFILL);
        }
        if let Some(name) = name {
            user.names.insert(name);
        }
    }

    /// A node of this name is connected, whoever has called whom.
    pub fn connected(&mut self, node: &str) {
        let name = self.hasher.hash_one(node);
        self.nodes.insert(name);
    }

    fn hash(&self, name: &Name) -> Option<u64> {
        match name {
            Name::Own(name) => Some(self.hasher.hash_one(name.as_str())),
            Name::ToBeGiven => None,
        }
    }

    fn user(&mut self, uid: u32, now: Instant) -> &mut User {
        if !self.users.contains_key(&uid) {
            if !self.has_room(now) {
                return &mut self.others;
            }
            if self.users.len() >= MAX_USERS {
                self.users.retain(|_, user| !user.is_idle(now));
            }
        }
        self.users.entry(uid).or_default()
    }

    /// True if one more user may have a budget of its own.
    fn has_room(&self, now: Instant) -> bool {
        self.users.len() < MAX_USERS || self.users.values().any(|user| user.is_idle(now))
    }
}

impl User {
    /// True if one may fail, and then so many are left.
    fn has_budget(&self, kept: u32, now: Instant) -> bool {
        let full_in = self.full_at.map(|at| at.saturating_duration_since(now));
        full_in.unwrap_or_default() + REFILL * (kept + 1) <= REFILL * BUDGET
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// The last so many names, as hashes: somebody's choice of names must not cost much memory.
#[derive(Debug, Default)]
struct Names<const MAX: usize> {
    names: HashSet<u64>,
    /// The same, oldest first.
    order: VecDeque<u64>,
}

impl<const MAX: usize> Names<MAX> {
    fn contains(&self, name: u64) -> bool {
        self.names.contains(&name)
    }

    fn insert(&mut self, name: u64) {
        if !self.names.insert(name) {
            return;
        }
        self.order.push_back(name);
        if self.order.len() > MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: u32 = 1000;
    /// What there is for names that are new.
    const FOR_NEW: u32 = BUDGET - RESERVE;

    fn name(number: u32) -> Name {
        Name::Own(format!("n{number}@host"))
    }

    /// Lets handshakes fail under new names until no more may be tried.
    fn exhaust(failures: &mut Failures, uid: u32, now: Instant) -> u32 {
        (0..)
            .take_while(|number| {
                let name = Name::Own(format!("x{number}-{uid}@host"));
                let may_try = failures.may_try(uid, &name, now);
                if may_try {
                    failures.failed(uid, &name, now);
                }
                may_try
            })
            .count() as u32
    }

    #[test]
    fn new_names_use_up_a_budget_that_refills() {
        let mut failures = Failures::default();
        let start = Instant::now();
        assert_eq!(exhaust(&mut failures, UID, start), FOR_NEW);
        assert!(!failures.may_try(UID, &name(1), start));
        assert!(!failures.may_try(UID, &Name::ToBeGiven, start));
        assert!(!failures.may_try(UID, &name(2), start + REFILL / 2));
        let later = start + REFILL;
        assert!(failures.may_try(UID, &name(3), later));
        failures.failed(UID, &name(3), later);
        assert!(!failures.may_try(UID, &name(4), later));
        // It does not grow beyond what it was.
        let much_later = start + REFILL * (3 * BUDGET);
        assert_eq!(exhaust(&mut failures, UID + 1, much_later), FOR_NEW);
        for number in 0..FOR_NEW {
            failures.failed(UID, &Name::ToBeGiven, much_later);
            let may_try = failures.may_try(UID, &Name::ToBeGiven, much_later);
            assert_eq!(may_try, number + 1 < FOR_NEW, "{number}");
        }
    }

    #[test]
    fn a_new_name_that_comes_again_has_a_budget_kept_for_it() {
        let mut failures = Failures::default();
        let now = Instant::now();
        exhaust(&mut failures, UID, now);
        assert!(!failures.may_try(UID, &name(0), now));
        assert!(failures.may_try(UID, &name(0), now));
        // It has the right cookie, which costs nothing.
        failures.connected("n0@host");
        // That is bounded, too.
        let come_again = (1..2 * RESERVE).filter(|number| {
            failures.may_try(UID, &name(*number), now);
            let may_try = failures.may_try(UID, &name(*number), now);
            if may_try {
                failures.failed(UID, &name(*number), now);
            }
            may_try
        });
        assert_eq!(come_again.count() as u32, RESERVE);
        // What refills is for these first.
        assert!(!failures.may_try(UID, &name(BUDGET), now + REFILL));
        assert!(failures.may_try(UID, &name(BUDGET), now + REFILL));
    }

    #[test]
    fn refused_names_that_are_remembered_are_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        exhaust(&mut failures, UID, now);
        for number in 0..=MAX_REFUSED as u32 {
            assert!(!failures.may_try(UID, &name(number), now));
        }
        assert_eq!(failures.refused.names.len(), MAX_REFUSED);
        assert!(!failures.may_try(UID, &name(0), now));
        assert!(failures.may_try(UID, &name(MAX_REFUSED as u32), now));
    }

    #[test]
    fn nodes_that_were_connected_come_in_whatever_others_do() {
        let mut failures = Failures::default();
        let now = Instant::now();
        failures.connected("a@host");
        exhaust(&mut failures, UID, now);
        let known = Name::Own("a@host".into());
        for _ in 0..2 * BUDGET {
            assert!(failures.may_try(UID, &known, now));
            failures.failed(UID, &known, now);
        }
        assert!(!failures.may_try(UID, &name(1), now));
    }

    #[test]
    fn failing_again_under_the_same_name_costs_nothing() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for _ in 0..3 {
            for number in 0..FOR_NEW - 1 {
                assert!(failures.may_try(UID, &name(number), now));
                failures.failed(UID, &name(number), now);
            }
        }
        assert!(failures.may_try(UID, &name(BUDGET), now));
        failures.failed(UID, &name(BUDGET), now);
        assert!(!failures.may_try(UID, &name(BUDGET + 1), now));
        assert!(failures.may_try(UID, &name(1), now));
    }

    #[test]
    fn a_user_does_not_pay_for_another() {
        let mut failures = Failures::default();
        let now = Instant::now();
        exhaust(&mut failures, UID, now);
        assert!(failures.may_try(UID + 1, &name(1), now));
    }

    #[test]
    fn users_without_number_share_one_budget() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for uid in 0..MAX_USERS as u32 {
            failures.failed(uid, &Name::ToBeGiven, now);
        }
        let strangers = 1_000_000..1_000_000 + 2 * BUDGET;
        let tried = strangers.filter(|uid| {
            let may_try = failures.may_try(*uid, &Name::ToBeGiven, now);
            if may_try {
                failures.failed(*uid, &Name::ToBeGiven, now);
            }
            may_try
        });
        assert_eq!(tried.count() as u32, FOR_NEW);
        // Who has not failed for long makes room for others.
        let later = now + REFILL;
        assert!(!failures.may_try(2_000_000, &name(1), now));
        assert!(failures.may_try(2_000_000, &name(1), later));
        failures.failed(2_000_000, &name(1), later);
        assert!(failures.may_try(2_000_000, &name(2), later));
        assert_eq!(failures.users.len(), 1);
    }

    #[test]
    fn remembered_names_are_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for number in 0..=MAX_NODES as u32 {
            failures.connected(&format!("n{number}@host"));
        }
        assert_eq!(failures.nodes.names.len(), MAX_NODES);
        assert_eq!(failures.nodes.order.len(), MAX_NODES);
        exhaust(&mut failures, UID, now);
        assert!(!failures.may_try(UID, &name(0), now));
        assert!(failures.may_try(UID, &name(1), now));
    }
}
