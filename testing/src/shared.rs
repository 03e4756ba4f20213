//! Sets of servers that the tests of a process share. Each set is one test's at a time, since replay stops, and servers
//! fail, for all databases of a server.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::process::{lock, remove};
use crate::server::{Server, at_exit};
use crate::servers::{Dbms, Servers};

/// The sets of one kind that there are at most: more tests at a time than this wait.
const AT_ONCE: usize = 4;

/// How long a test waits for a set at most.
const LONGEST_TEST: Duration = Duration::from_secs(600);

static SETS: Mutex<Vec<Set>> = Mutex::new(Vec::new());
static GIVEN_BACK: Condvar = Condvar::new();
static NEXT: AtomicUsize = AtomicUsize::new(0);

struct Set {
    /// The `Dbms` that its servers are of.
    kind: Box<dyn Any + Send>,
    /// The `Servers`, once they run. They live until the process ends.
    servers: Option<&'static (dyn Any + Send + Sync)>,
    /// The thread of the test that has it: such a thread has the test's name.
    holder: Option<Thread>,
    /// No other set ever has it.
    number: usize,
}

impl Set {
    fn is_of<D: Dbms>(&self, kind: D) -> bool {
        self.kind.downcast_ref() == Some(&kind)
    }
}

/// A set that a test has. Any thread may give it back, by dropping this: a lab goes where its test goes.
#[derive(Debug)]
pub(crate) struct Taken(usize);

impl Drop for Taken {
    fn drop(&mut self) {
        let mut sets = lock(&SETS);
        // One that never started is forgotten.
        sets.retain(|set| set.number != self.0 || set.servers.is_some());
        if let Some(set) = sets.iter_mut().find(|set| set.number == self.0) {
            set.holder = None;
        }
        GIVEN_BACK.notify_all();
    }
}

/// A master and two slaves of this kind, in order, for the test on this thread.
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
        // Such as one with a slave that was promoted: it is none any more.
        lock(&SETS).retain(|set| set.number != taken.0);
        servers.all().for_each(Server::end);
        remove(&servers.folder);
    }
}

/// A free set, with its servers unless they are still to be started.
#[track_caller]
fn take_or_begin<D: Dbms>(kind: D, deadline: Instant) -> (Option<&'static Servers<D>>, Taken) {
    let me = thread::current();
    let mut sets = lock(&SETS);
    loop {
        // Nothing would ever end this wait.
        assert!(
            !sets
                .iter()
                .any(|set| set.is_of(kind) && set.holder.as_ref().is_some_and(|by| by.id() == me.id())),
            "this test has a lab on these servers: `lab.beside()` is another one, and dropping it gives them back",
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
            panic!("labs have been held for {LONGEST_TEST:?}, by {:?}", holders.collect::<Vec<_>>());
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
