//! Limits how many handshakes of a user may fail. No I/O, and no clock: the caller passes the time.
//!
//! Every new node name stays in the VM's table of atoms for ever, whether or not the handshake succeeds. So
//! each user has a budget of new names whose handshakes may fail, which refills slowly. Once it is used up,
//! the VM is not told of further new names. A name that the VM knows already costs nothing more. So nodes that
//! were connected before are always admitted, whatever other processes of their user do, and so are nodes
//! that keep trying with the wrong cookie.
//!
//! Only the VM can find out whether a new name comes with the right cookie. So a part of the budget is
//! reserved for names that were refused and come again. A node tries again under its name; an attacker who
//! uses each name once does not.

use super::gate::Name;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// Number of new names under which handshakes of one user may fail, starting with a full budget. It exceeds
/// the number of nodes in any cluster, and the VM has room for a million atoms.
pub const BUDGET: u32 = 1000;

/// Part of [`BUDGET`] that is reserved for names that were refused before.
pub const RESERVE: u32 = 100;

/// Time in which the budget grows by one name. That allows 21600 names a day, so an attacker needs seven
/// weeks to fill the VM's table of atoms. A health check with the wrong cookie that uses a new name every five
/// seconds never exhausts the budget.
pub const REFILL: Duration = Duration::from_secs(4);

/// Most users that have budgets of their own. All others share one. A host has few users, but the owner of a
/// user namespace may have 65536.
pub const MAX_USERS: usize = 64;

/// Most names of connected nodes that are remembered. The oldest ones are forgotten first.
pub const MAX_NODES: usize = 16384;

/// Most refused names that are remembered. An attacker could push all of them out within seconds, but would
/// gain little by it.
pub const MAX_REFUSED: usize = 65536;

/// The budgets of all users, and the names that do not count.
#[derive(Debug, Default)]
pub struct Failures {
    hasher: RandomState,
    users: HashMap<u32, User>,
    /// The budget that all other users share.
    others: User,
    /// Names of nodes that were connected.
    nodes: Names<MAX_NODES>,
    /// Names that were refused.
    refused: Names<MAX_REFUSED>,
}

#[derive(Debug, Default)]
struct User {
    /// The time at which the budget will be full again; `None` if it has never been used.
    full_at: Option<Instant>,
    /// Names under which handshakes have failed.
    names: Names<{ BUDGET as usize }>,
}

impl Failures {
    /// Whether a process of this user may begin a handshake under this name. If not, the name is remembered as
    /// a refused one.
    pub fn may_try(&mut self, uid: u32, name: &Name, now: Instant) -> bool {
        let name = self.hash(name);
        if name.is_some_and(|name| self.nodes.contains(name)) {
            return true;
        }
        let user = match self.users.get(&uid) {
            Some(user) => user,
            // This user has not failed yet.
            None if self.has_room(now) => return true,
            None => &self.others,
        };
        let reserve = match name {
            Some(name) if user.names.contains(name) => return true,
            Some(name) if self.refused.contains(name) => 0,
            _ => RESERVE,
        };
        let may_try = user.has_budget(reserve, now);
        if let (false, Some(name)) = (may_try, name) {
            self.refused.insert(name);
        }
        may_try
    }

    /// Records that a handshake has failed.
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

    /// Records that a node of this name is connected, whichever side opened the connection.
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

    /// True if one more user can have a budget of its own.
    fn has_room(&self, now: Instant) -> bool {
        self.users.len() < MAX_USERS || self.users.values().any(|user| user.is_idle(now))
    }
}

impl User {
    /// True if one more handshake may fail and still leave a budget of `reserve`.
    fn has_budget(&self, reserve: u32, now: Instant) -> bool {
        let full_in = self.full_at.map(|at| at.saturating_duration_since(now));
        full_in.unwrap_or_default() + REFILL * (reserve + 1) <= REFILL * BUDGET
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// The most recent names, at most `MAX`. They are kept as hashes, so that long names do not take more memory.
#[derive(Debug, Default)]
struct Names<const MAX: usize> {
    names: HashSet<u64>,
    /// The same hashes, oldest first.
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
    /// Part of the budget that new names can use.
    const FOR_NEW: u32 = BUDGET - RESERVE;

    fn name(number: u32) -> Name {
        Name::Own(format!("n{number}@host"))
    }

    /// Lets handshakes fail under new names until no more are allowed. Returns their number.
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
        // A full budget does not grow any further.
        let much_later = start + REFILL * (3 * BUDGET);
        assert_eq!(exhaust(&mut failures, UID + 1, much_later), FOR_NEW);
        for number in 0..FOR_NEW {
            failures.failed(UID, &Name::ToBeGiven, much_later);
            let may_try = failures.may_try(UID, &Name::ToBeGiven, much_later);
            assert_eq!(may_try, number + 1 < FOR_NEW, "{number}");
        }
    }

    #[test]
    fn the_reserve_is_for_names_that_come_again() {
        let mut failures = Failures::default();
        let now = Instant::now();
        exhaust(&mut failures, UID, now);
        assert!(!failures.may_try(UID, &name(0), now));
        assert!(failures.may_try(UID, &name(0), now));
        // This one has the right cookie, so it costs nothing.
        failures.connected("n0@host");
        // The reserve is limited too.
        let come_again = (1..2 * RESERVE).filter(|number| {
            failures.may_try(UID, &name(*number), now);
            let may_try = failures.may_try(UID, &name(*number), now);
            if may_try {
                failures.failed(UID, &name(*number), now);
            }
            may_try
        });
        assert_eq!(come_again.count() as u32, RESERVE);
        // The budget refills its reserve first.
        assert!(!failures.may_try(UID, &name(BUDGET), now + REFILL));
        assert!(failures.may_try(UID, &name(BUDGET), now + REFILL));
    }

    #[test]
    fn forgets_the_oldest_refused_names() {
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
    fn admits_known_nodes_without_any_budget() {
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
    fn a_name_that_fails_again_costs_nothing() {
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
    fn users_have_separate_budgets() {
        let mut failures = Failures::default();
        let now = Instant::now();
        exhaust(&mut failures, UID, now);
        assert!(failures.may_try(UID + 1, &name(1), now));
    }

    #[test]
    fn users_beyond_the_limit_share_one_budget() {
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
        // A user whose budget is full again makes room for another one.
        let later = now + REFILL;
        assert!(!failures.may_try(2_000_000, &name(1), now));
        assert!(failures.may_try(2_000_000, &name(1), later));
        failures.failed(2_000_000, &name(1), later);
        assert!(failures.may_try(2_000_000, &name(2), later));
        assert_eq!(failures.users.len(), 1);
    }

    #[test]
    fn forgets_the_oldest_nodes() {
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
