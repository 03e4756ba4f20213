//! Sets of servers that the tests of a process share. One test at a time has a set, because stopped replay and failed
//! servers concern all databases of a server.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::process::{lock, remove};
use crate::server::{Server, at_exit};
use crate::servers::{Dbms, Servers};

/// The largest number of sets of one kind. If more tests run at a time, they wait.
const AT_ONCE: usize = 4;

/// The longest time that a test waits for a set.
const LONGEST_TEST: Duration = Duration::from_secs(600);

static SETS: Mutex<Vec<Set>> = Mutex::new(Vec::new());
static GIVEN_BACK: Condvar = Condvar::new();
static NEXT: AtomicUsize = AtomicUsize::new(0);

struct Set {
    /// The `Dbms` of the servers.
    kind: Box<dyn Any + Send>,
    /// The `Servers`, once they run. They live until the process ends.
    servers: Option<&'static (dyn Any + Send + Sync)>,
    /// The thread of the test that has the set: such a thread has the test's name.
    holder: Option<Thread>,
    /// Identifies the set. Numbers are not used again.
    number: usize,
}

impl Set {
    fn is_of<D: Dbms>(&self, kind: D) -> bool {
        self.kind.downcast_ref() == Some(&kind)
    }
}

/// A set that a test has. Dropping this gives the set back, on any thread, because a lab may move between threads.
#[derive(Debug)]
pub(crate) struct Taken(usize);

impl Drop for Taken {
    fn drop(&mut self) {
        let mut sets = lock(&SETS);
        // A set that never started is forgotten.
        sets.retain(|set| set.number != self.0 || set.servers.is_some());
        if let Some(set) = sets.iter_mut().find(|set| set.number == self.0) {
            set.holder = None;
        }
        GIVEN_BACK.notify_all();
    }
}

/// Takes a set for the test on this thread: a master and two slaves of this kind, in order.
#[track_caller]
pub(crate) fn take<D: Dbms>(kind: D) -> (&'static Servers<D>, Taken) {
    let deadline = Instant::now() + LONGEST_TEST;
    loop {
        let (servers, taken) = take_or_begin(kind, deadline);
        let servers = servers.unwrap_or_else(|| start(kind, &taken));
        // A server that does not start again panics.
        if catch_unwind(AssertUnwindSafe(|| servers.mend())).unwrap_or(false) {
            return (servers, taken);
        }
        // A set that cannot be mended is forgotten, for instance because a slave was promoted.
        lock(&SETS).retain(|set| set.number != taken.0);
        servers.all().for_each(Server::end);
        remove(&servers.folder);
    }
}

/// Takes a free set. Its servers are `None` if they have yet to be started.
#[track_caller]
fn take_or_begin<D: Dbms>(kind: D, deadline: Instant) -> (Option<&'static Servers<D>>, Taken) {
    let me = thread::current();
    let mut sets = lock(&SETS);
    loop {
        // This wait would never end.
        assert!(
            !sets
                .iter()
                .any(|set| set.is_of(kind) && set.holder.as_ref().is_some_and(|by| by.id() == me.id())),
            "this test has a lab on these servers already: drop it first, or take `lab.beside()` for another database \
             there",
        );
        let of_kind = sets.iter().filter(|set| set.is_of(kind)).count();
        if let Some(set) = sets.iter_mut().find(|set| set.is_of(kind) && set.holder.is_none()) {
            set.holder = Some(me);
            return (set.servers.and_then(|servers| servers.downcast_ref()), Taken(set.number));
        }
        if of_kind < AT_ONCE {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            sets.push(Set { kind: Box::new(kind), servers: None, holder: Some(me), number });
            return (None, Taken(number));
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            let holders = sets.iter().filter_map(|set| set.holder.as_ref()?.name());
            panic!(
                "no servers were free within {LONGEST_TEST:?}: these tests have labs on them: {:?}",
                holders.collect::<Vec<_>>()
            );
        };
        sets = GIVEN_BACK.wait_timeout(sets, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn start<D: Dbms>(kind: D, taken: &Taken) -> &'static Servers<D> {
    let servers: &Servers<D> = Box::leak(Box::new(Servers::start(kind, 2)));
    at_exit(|| {
        servers.all().for_each(Server::end);
        remove(&servers.folder);
    });
    let mut sets = lock(&SETS);
    let set = sets.iter_mut().find(|set| set.number == taken.0).expect("it is taken");
    set.servers = Some(servers);
    servers
}
