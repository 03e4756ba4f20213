//! Tests of queue and custody, in all orders of the steps of the tasks that share them. They need no database.

use std::cell::RefCell;
use std::future::pending;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use rocket::futures::FutureExt;

use super::custody::{Custody, Ended, Lending, Loan};
use super::holder::Sessions;
use super::queue::{Entry, Owner, Permit, Queue, Refusal, Ticker};
use crate::sync::explore::{Task, block_on, explore, step};

/// A pool without a server.
struct House {
    queue: Queue<Self>,
    max: u32,
    generation: AtomicU32,
    in_use: AtomicU32,
}

/// A connection owns its state, as [`Connection`](super::connection::Connection) does.
struct Conn {
    generation: u32,
    custody: Custody<House, Arc<AtomicBool>>,
}

impl Owner for House {
    type Conn = Arc<Conn>;

    fn queue(&self) -> &Queue<Self> {
        &self.queue
    }

    fn keep_or_close(&self, conn: Arc<Conn>) -> Option<Arc<Conn>> {
        step();
        let is_present = conn.generation == self.generation.load(Ordering::Relaxed);
        (is_present && conn.custody.ended().is_none()).then_some(conn)
    }
}

impl House {
    fn new(max: u32) -> Arc<Self> {
        Arc::new(Self {
            queue: Queue::new(max),
            max,
            generation: AtomicU32::new(0),
            in_use: AtomicU32::new(0),
        })
    }

    fn open(&self) -> Arc<Conn> {
        Arc::new(Conn { generation: self.generation.load(Ordering::Relaxed), custody: Custody::new() })
    }

    fn enter(self: &Arc<Self>) -> Entry<Self> {
        self.queue.enter(self, Instant::now())
    }

    /// A free permit, without a connection.
    fn permit(self: &Arc<Self>) -> Permit<Self> {
        self.queue.take_bare(self).unwrap()
    }

    /// A permit with a connection, and another handle to that connection.
    fn taken(self: &Arc<Self>) -> (Permit<Self>, Arc<Conn>) {
        let conn = self.open();
        (self.permit().with(conn.clone()), conn)
    }

    /// Waits for a permit without a time limit.
    fn wait(self: &Arc<Self>) -> Permit<Self> {
        match self.enter() {
            Entry::Permit(permit) => permit,
            Entry::Waits(receiver, _) => block_on(receiver).unwrap().unwrap(),
            Entry::Closed => panic!("closed"),
        }
    }

    /// Runs one statement.
    fn run(&self, permit: Permit<Self>) {
        let others = self.in_use.fetch_add(1, Ordering::Relaxed);
        assert!(others < self.max, "more statements than permits");
        step();
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        drop(permit);
    }

    /// Asserts that all permits are back, each once.
    fn is_whole(self: &Arc<Self>) {
        assert_eq!((self.queue.free(), self.queue.waiting()), (self.max, 0));
        assert!(self.queue.idle() <= self.max as usize, "no more idle connections than permits");
        assert_eq!(Arc::strong_count(self), 1, "a permit is left somewhere");
    }
}

/// A value that lives until the tasks have ended.
type Left<T> = Rc<RefCell<Option<T>>>;

fn task(house: &Arc<House>, run: impl FnOnce(Arc<House>) + Send + 'static) -> Task {
    let house = house.clone();
    Box::new(move || run(house))
}

fn finally(house: &Arc<House>) -> Box<dyn FnOnce()> {
    let house = house.clone();
    Box::new(move || house.is_whole())
}

/// A connection as sqlx's own. The flag stands for sqlx's pool: it is set when that is empty.
fn loan(is_closed: &Arc<AtomicBool>) -> Loan<Arc<AtomicBool>> {
    Loan { single: is_closed.clone(), lending: Lending::Connection }
}

fn statement(house: &Arc<House>) -> Task {
    task(house, |house| house.run(house.wait()))
}

fn death(conn: &Arc<Conn>, why: Ended) -> Task {
    let conn = Arc::downgrade(conn);
    Box::new(move || {
        // The pool upgrades its list before it visits any.
        let Some(conn) = conn.upgrade() else { return };
        conn.custody.end(why);
    })
}

/// A new generation begins, and ends the connections of earlier ones.
fn fall(house: &Arc<House>, conn: &Arc<Conn>) -> Task {
    let conn = Arc::downgrade(conn);
    task(house, move |house| {
        house.generation.fetch_add(1, Ordering::Relaxed);
        step();
        let Some(conn) = conn.upgrade() else { return };
        conn.custody.end(Ended::ServerDown);
    })
}

#[test]
fn every_statement_gets_the_one_permit_in_its_turn() {
    explore(|| {
        let house = House::new(1);
        ([statement(&house), statement(&house), statement(&house)], finally(&house))
    });
}

/// The request that waits is cancelled at any moment.
#[test]
fn a_permit_for_a_request_that_has_gone_passes_on() {
    explore(|| {
        let house = House::new(1);
        let permit = house.permit();
        let gives_up = task(&house, |house| match house.enter() {
            Entry::Waits(mut receiver, _) => {
                let polled = (&mut receiver).now_or_never();
                step();
                drop((polled, receiver));
            }
            Entry::Permit(_) => {}
            Entry::Closed => panic!("closed"),
        });
        let ends = task(&house, move |house| house.run(permit));
        ([gives_up, ends, statement(&house)], finally(&house))
    });
}

/// A request that is refused. If it finds the ticker stopped, it starts one that refuses all.
fn refused(house: &Arc<House>) -> Task {
    task(house, |house| {
        let Entry::Waits(receiver, ticker) = house.enter() else { return };
        if ticker == Ticker::Stopped {
            while house.queue.refuse(|_, _| Some(Refusal::ServerDown)).is_some() {}
        }
        drop(block_on(receiver));
    })
}

#[test]
fn a_ticker_that_ends_leaves_no_request_behind() {
    explore(|| {
        let house = House::new(1);
        let permit: Left<_> = Rc::new(RefCell::new(Some(house.permit())));
        let tasks = [refused(&house), refused(&house), refused(&house)];
        (
            tasks,
            Box::new(move || {
                permit.take();
                house.is_whole();
            }),
        )
    });
}

#[test]
fn a_refusal_and_a_permit_that_comes_back_meet() {
    explore(|| {
        let house = House::new(1);
        let permit = house.permit();
        let ends = task(&house, move |house| house.run(permit));
        ([ends, refused(&house), refused(&house)], finally(&house))
    });
}

#[test]
fn a_lost_ticker_lets_no_request_wait() {
    explore(|| {
        let house = House::new(1);
        let permit: Left<_> = Rc::new(RefCell::new(Some(house.permit())));
        let loses = task(&house, |house| {
            let Entry::Waits(receiver, ticker) = house.enter() else { panic!("all are in use") };
            match ticker {
                Ticker::Stopped => house.queue.ticker_lost(),
                Ticker::Running => {}
            }
            assert!(matches!(block_on(receiver), Err(_) | Ok(Err(Refusal::ServerDown))));
        });
        let tasks = [loses, refused(&house), refused(&house)];
        (
            tasks,
            Box::new(move || {
                permit.take();
                house.is_whole();
            }),
        )
    });
}

#[test]
fn a_close_lets_no_request_wait() {
    explore(|| {
        let house = House::new(1);
        let permit = house.permit();
        let asks = || {
            task(&house, |house| match house.enter() {
                Entry::Permit(permit) => house.run(permit),
                Entry::Waits(receiver, _) => {
                    if let Ok(Ok(permit)) = block_on(receiver) {
                        house.run(permit);
                    }
                }
                Entry::Closed => assert!(house.queue.is_closed()),
            })
        };
        let closes = task(&house, |house| house.queue.close());
        let ends = task(&house, move |house| house.run(permit));
        ([asks(), closes, ends], finally(&house))
    });
}

#[test]
fn a_close_waits_for_no_permit() {
    explore(|| {
        let house = House::new(1);
        let permit: Left<_> = Rc::new(RefCell::new(Some(house.permit())));
        let asks = || {
            task(&house, |house| match house.enter() {
                Entry::Permit(_) => panic!("it is in use"),
                Entry::Waits(receiver, _) => assert!(block_on(receiver).is_err()),
                Entry::Closed => {}
            })
        };
        let closes = task(&house, |house| house.queue.close());
        let tasks = [asks(), closes, asks()];
        (
            tasks,
            Box::new(move || {
                permit.take();
                house.is_whole();
            }),
        )
    });
}

/// The request is cancelled at any moment. Or the task that opens the connection is lost, as when its runtime ends.
#[test]
fn a_connection_that_was_opened_for_a_request_that_has_gone_passes_on() {
    for is_lost in [false, true] {
        explore(move || {
            let house = House::new(1);
            let conn = house.open();
            let (opening, mut opened) = house.permit().opening(async move {
                step();
                Ok::<_, ()>(conn)
            });
            let opens: Task = Box::new(move || {
                step();
                if !is_lost {
                    block_on(opening);
                }
            });
            let gives_up: Task = Box::new(move || {
                step();
                let polled = (&mut opened).now_or_never();
                step();
                drop((polled, opened));
            });
            let next = task(&house, move |house| {
                let permit = house.wait();
                assert!(is_lost || permit.conn.is_some(), "it need not be opened again");
                house.run(permit);
            });
            ([opens, gives_up, next], finally(&house))
        });
    }
}

/// In any order, a session claims the connection that it keeps, the pool takes that back, and the connection ends.
#[test]
fn what_a_session_keeps_is_taken_once() {
    for why in [Ended::ServerDown, Ended::Dead] {
        explore(move || {
            let house = House::new(1);
            let sessions = Sessions::default();
            let (asker, other) = (sessions.begin(), sessions.begin());
            let (permit, conn) = house.taken();
            conn.custody.keep(permit, asker);
            let weak = Arc::downgrade(&conn);
            let session = task(&house, move |house| {
                let kept = weak.upgrade().and_then(|conn| {
                    assert!(conn.custody.claim(other).is_none(), "it is not theirs");
                    conn.custody.claim(asker)
                });
                if let Some(permit) = kept {
                    house.run(permit);
                }
            });
            let weak = Arc::downgrade(&conn);
            let pool: Task = Box::new(move || {
                let Some(conn) = weak.upgrade() else { return };
                drop(conn.custody.reclaim());
            });
            ([session, pool, death(&conn, why)], finally(&house))
        });
    }
}

#[test]
fn a_request_that_waits_gets_what_a_session_kept() {
    explore(|| {
        let house = House::new(1);
        let (permit, conn) = house.taken();
        let (asker, weak) = (Sessions::default().begin(), Arc::downgrade(&conn));
        drop(conn);
        // Kept for the next statement, which never comes.
        let session: Task = Box::new(move || {
            let Some(conn) = permit.conn.clone() else { return };
            conn.custody.keep(permit, asker);
            step();
            drop(conn.custody.claim(asker));
        });
        let pool: Task = Box::new(move || {
            let Some(conn) = weak.upgrade() else { return };
            drop(conn.custody.reclaim());
        });
        ([session, pool, statement(&house)], finally(&house))
    });
}

/// A handler holds a dead connection until the end, and longer than a request waits for its permit.
fn held_for_ever(hold: impl Fn(Permit<House>, &Conn) + Copy + Send + 'static) {
    explore(move || {
        let house = House::new(1);
        let conn = house.open();
        let held: Left<_> = Rc::new(RefCell::new(Some(conn.clone())));
        let (permit, dies) = (house.permit(), death(&conn, Ended::Dead));
        let holds = task(&house, move |_| hold(permit, &conn));
        let tasks = [holds, dies, statement(&house)];
        (
            tasks,
            Box::new(move || {
                let conn = held.take().unwrap();
                assert!(conn.custody.held_for().is_none());
                assert!(conn.custody.take_back().is_none());
                house.is_whole();
            }),
        )
    });
}

#[test]
fn a_dead_connection_that_is_held_has_no_permit() {
    held_for_ever(|permit, conn| conn.custody.hand_out(permit, None));
}

#[test]
fn a_dead_connection_that_is_lent_has_no_permit() {
    held_for_ever(|permit, conn| conn.custody.hand_out(permit, Some(loan(&Arc::default()))));
    held_for_ever(|permit, conn| {
        conn.custody.hand_out(permit, None);
        conn.custody.lend_held(loan(&Arc::default()));
    });
}

#[test]
fn what_is_held_comes_back_once_though_it_dies_meanwhile() {
    for why in [Ended::ServerDown, Ended::Dead] {
        explore(move || {
            let house = House::new(1);
            let conn = house.open();
            let permit = house.permit();
            let dies = death(&conn, why);
            let handler = task(&house, move |_| {
                conn.custody.hand_out(permit, None);
                if let Some((permit, _)) = conn.custody.take_back() {
                    drop(permit.with(conn));
                }
            });
            ([handler, dies, statement(&house)], finally(&house))
        });
    }
}

/// The connection is lent as sqlx's own. Its handler drops it, or closes it.
#[test]
fn what_is_lent_comes_back_once_though_it_dies_or_is_closed_meanwhile() {
    for is_closed in [false, true] {
        explore(move || {
            let house = House::new(1);
            let conn = house.open();
            let single = Arc::new(AtomicBool::new(false));
            conn.custody.hand_out(house.permit(), Some(loan(&single)));
            let (dies, lent) = (death(&conn, Ended::Dead), conn.clone());
            let handler: Task = Box::new(move || {
                if is_closed {
                    single.store(true, Ordering::Relaxed);
                } else if let Some((permit, _)) = conn.custody.take_back() {
                    drop(permit.with(conn));
                } else {
                    assert_eq!(conn.custody.ended(), Some(Ended::Dead), "it is not taken from a handler");
                }
            });
            // One look is enough: if the connection is closed later, its death gives the permit back.
            let pool: Task = Box::new(move || lent.custody.reap(|single| single.load(Ordering::Relaxed)));
            ([handler, dies, pool], finally(&house))
        });
    }
}

#[test]
fn a_connection_of_an_earlier_generation_is_not_kept() {
    explore(|| {
        let house = House::new(1);
        let (permit, conn) = house.taken();
        let falls = fall(&house, &conn);
        let weak = Arc::downgrade(&conn);
        let comes_back = task(&house, move |house| {
            drop(conn);
            house.run(permit);
        });
        let next = task(&house, |house| drop(house.wait()));
        ([comes_back, falls, next], {
            let house = house.clone();
            Box::new(move || {
                assert!(weak.upgrade().is_none_or(|conn| conn.custody.ended().is_some()));
                house.is_whole();
            })
        })
    });
}

#[test]
fn a_statement_hears_that_its_connection_has_ended() {
    for why in [Ended::ServerDown, Ended::Dead] {
        explore(move || {
            let house = House::new(1);
            let conn = house.open();
            let dies = death(&conn, why);
            let waits: Task = Box::new(move || {
                assert_eq!(block_on(conn.custody.unless_ended(pin!(pending::<()>()))), Err(why));
            });
            ([waits, dies], finally(&house))
        });
    }
}

/// If a connection is ended for two reasons, the more certain one counts.
#[test]
fn dead_is_final() {
    explore(|| {
        let house = House::new(1);
        let conn = house.open();
        conn.custody.hand_out(house.permit(), None);
        let tasks = [death(&conn, Ended::Dead), death(&conn, Ended::ServerDown), statement(&house)];
        (tasks, {
            let house = house.clone();
            Box::new(move || {
                assert_eq!(conn.custody.ended(), Some(Ended::Dead));
                house.is_whole();
            })
        })
    });
}

#[test]
#[should_panic = "tasks wait for ever"]
fn a_lost_wake_up_is_found() {
    explore(|| {
        let house = House::new(1);
        let permit: Left<_> = Rc::new(RefCell::new(Some(house.permit())));
        let waits = statement(&house);
        ([waits], Box::new(move || drop(permit)))
    });
}
