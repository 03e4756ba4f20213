//! Runs tasks in all orders of their steps.
//!
//! This is not `loom`, under whose cfg tokio has no `oneshot`. Nor is it `shuttle`, whose locks work in no other test
//! of the same build. The tasks are coroutines of one thread. Each run repeats the choices of the run before, up to the
//! last choice that can be made differently. All steps are sequentially consistent.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use generator::Generator;

/// The size of a coroutine's stack, in words.
const STACK: usize = 0x4000;

/// The most orders that are tried. A test that needs more has to be split.
const MOST: usize = 2_000_000;

thread_local! {
    /// The number of locks that the present task holds. A task that holds a lock is not interrupted.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// The reason for which a task stops.
enum Pause {
    Step,
    Until(Arc<Flag>),
    End,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets other tasks go first. Does nothing outside of [`explore`].
pub(crate) fn step() {
    if generator::is_generator() && HELD.get() == 0 && !std::thread::panicking() {
        pause(Pause::Step);
    }
}

/// Lives as long as a lock is held.
pub(super) struct Unlocked;

impl Unlocked {
    pub(super) fn new() -> Self {
        HELD.set(HELD.get() + 1);
        Self
    }
}

impl Drop for Unlocked {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        step();
    }
}

/// Waits for a future within a task.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        let flag = Arc::new(Flag::default());
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&Waker::from(flag.clone())))
        {
            return done;
        }
        pause(Pause::Until(flag));
    }
}

#[expect(deprecated, reason = "its successor asks for an argument, which a lock does not have")]
fn pause(why: Pause) {
    generator::yield_with(why);
}

type Coroutine = generator::Gn<()>;

pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Runs the tasks of `scenario` in all orders, each time followed by the last function.
///
/// # Panics
///
/// When a task panics, or when tasks wait that nothing wakes. Prints the order, as numbers of tasks.
pub(crate) fn explore<const N: usize>(scenario: impl Fn() -> ([Task; N], Box<dyn FnOnce()>)) {
    let mut coroutines = [(); N].map(|()| Coroutine::new_opt(STACK, || Pause::End));
    let mut choices = Vec::new();
    for number in 1..=MOST {
        let (tasks, finally) = scenario();
        run(&mut coroutines, tasks, &mut choices);
        finally();
        while choices.pop_if(|choice| choice.at + 1 == choice.of).is_some() {}
        match choices.last_mut() {
            Some(choice) => choice.at += 1,
            None => return println!("{number} orders"),
        }
    }
    panic!("more than {MOST} orders");
}

struct Choice {
    at: usize,
    of: usize,
}

fn run<const N: usize>(
    coroutines: &mut [Generator<'static, (), Pause>; N],
    tasks: [Task; N],
    choices: &mut Vec<Choice>,
) {
    let mut order = Order(Vec::new());
    for (coroutine, task) in coroutines.iter_mut().zip(tasks) {
        coroutine.init_code(move || {
            task();
            Pause::End
        });
    }
    // The code before the first step concerns no other task.
    let mut pauses = coroutines.each_mut().map(|coroutine| coroutine.resume());
    for depth in 0.. {
        let ready: Vec<_> = (0..N).filter(|&task| is_ready(pauses[task].as_ref())).collect();
        if ready.is_empty() {
            break;
        }
        if depth == choices.len() {
            choices.push(Choice { at: 0, of: ready.len() });
        }
        assert_eq!(choices[depth].of, ready.len(), "runs repeat");
        let task = ready[choices[depth].at];
        order.0.push(task);
        pauses[task] = coroutines[task].resume();
    }
    for (coroutine, pause) in coroutines.iter_mut().zip(&pauses) {
        if !matches!(pause, Some(Pause::End)) {
            // A coroutine cannot be unwound while it waits.
            std::mem::forget(std::mem::replace(coroutine, Coroutine::new_opt(STACK, || Pause::End)));
        }
    }
    assert!(pauses.iter().all(|pause| matches!(pause, Some(Pause::End))), "tasks wait for ever");
}

fn is_ready(pause: Option<&Pause>) -> bool {
    match pause {
        Some(Pause::Step) => true,
        Some(Pause::Until(flag)) => flag.0.load(Ordering::Relaxed),
        Some(Pause::End) | None => false,
    }
}

/// The order of the steps of a run, which is printed when the run panics.
struct Order(Vec<usize>);

impl Drop for Order {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the order {:?}", self.0);
        }
    }
}
