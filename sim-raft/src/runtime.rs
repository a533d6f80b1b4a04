//! The runtime that openraft is given: `openraft-rt-sim`, and on top of it processes that can be killed, stopped and have
//! clocks of their own.
//!
//! Every task belongs to the process that spawned it, or to nobody (the network, the clients, the one who breaks things). A
//! task of a process that was killed is never polled again and loses what it held at once; one of a stopped process waits
//! until it goes on, while time passes. The clock of a process runs at its own rate.

use openraft::async_runtime::{self, AsyncRuntime};
use openraft_rt_sim::{Elapsed, SimInstant, SimJoinError, SimJoinHandle, SimRuntime, SimSleep, SimTimeout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The rate of a clock that is right.
pub(crate) const RIGHT: u64 = 1_000;

/// A lock of the simulation. All of it runs in one thread, so that nobody ever waits for it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// One run of a node's process.
pub(crate) struct Process {
    /// How many thousandths of a second its clock counts in a second.
    rate: u64,
    life: Mutex<Life>,
}

struct Life {
    alive: bool,
    paused: bool,
    /// What wakes its tasks, by their numbers here.
    tasks: BTreeMap<u64, Waker>,
    next: u64,
    polls: u64,
    panicked: Option<String>,
}

impl Process {
    pub fn new(rate: u64) -> Arc<Self> {
        Arc::new(Self {
            rate,
            life: Mutex::new(Life {
                alive: true,
                paused: false,
                tasks: BTreeMap::new(),
                next: 0,
                polls: 0,
                panicked: None,
            }),
        })
    }

    pub fn is_alive(&self) -> bool {
        lock(&self.life).alive
    }

    pub fn is_paused(&self) -> bool {
        lock(&self.life).paused
    }

    /// Ends it: what its tasks hold is gone.
    pub fn kill(&self) {
        lock(&self.life).alive = false;
        self.wake_all();
    }

    /// Stops it, or lets it go on.
    pub fn pause(&self, paused: bool) {
        lock(&self.life).paused = paused;
        if !paused {
            self.wake_all();
        }
    }

    /// What a task of it panicked with, if one did.
    pub fn panicked(&self) -> Option<String> {
        lock(&self.life).panicked.clone()
    }

    /// How often its tasks were polled.
    pub fn polls(&self) -> u64 {
        lock(&self.life).polls
    }

    fn wake_all(&self) {
        let wakers: Vec<Waker> = lock(&self.life).tasks.values().cloned().collect();
        for waker in wakers {
            waker.wake();
        }
    }
}

/// A task of a process.
struct Guarded<F> {
    process: Arc<Process>,
    task: Option<Pin<Box<F>>>,
    number: Option<u64>,
}

/// Makes a process the current one, until it is dropped.
struct Within(Option<Arc<Process>>);

impl Within {
    fn new(process: Option<Arc<Process>>) -> Self {
        Self(CURRENT.with(|current| current.replace(process)))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        let outer = self.0.take();
        CURRENT.with(|current| *current.borrow_mut() = outer);
    }
}

impl<F: Future> Guarded<F> {
    /// Whether the task may be polled now; makes sure that it is woken when that changes.
    fn may_run(&mut self, waker: &Waker) -> bool {
        let mut life = lock(&self.process.life);
        if self.number.is_none() {
            let number = life.next;
            life.next += 1;
            life.tasks.insert(number, waker.clone());
            self.number = Some(number);
        }
        life.polls += 1;
        life.alive && !life.paused
    }

    fn end(&mut self) {
        let _within = Within::new(Some(self.process.clone()));
        self.task = None;
        if let Some(number) = self.number {
            lock(&self.process.life).tasks.remove(&number);
        }
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.may_run(cx.waker()) {
            if !this.process.is_alive() {
                this.end();
            }
            return Poll::Pending;
        }
        let Some(task) = &mut this.task else {
            return Poll::Pending;
        };
        let polled = {
            let _within = Within::new(Some(this.process.clone()));
            catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx)))
        };
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(ready) => {
                this.end();
                ready
            }
            Err(payload) => {
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                lock(&this.process.life).panicked = Some(text.unwrap_or_else(|| "something".to_owned()));
                this.end();
                Poll::Pending
            }
        }
    }
}

/// Starts a task of `process`.
pub(crate) fn spawn_on<F>(process: &Arc<Process>, task: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    drop(SimRuntime::spawn(guard(process, task)));
}

fn guard<F: Future>(process: &Arc<Process>, task: F) -> Guarded<F> {
    Guarded {
        process: process.clone(),
        task: Some(Box::pin(task)),
        number: None,
    }
}

/// Starts a task that belongs to no process.
pub(crate) fn spawn_free<F>(task: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    drop(SimRuntime::spawn(task));
}

/// Nanoseconds of true time since the simulation began.
pub(crate) fn true_nanos() -> u64 {
    let since = SimInstant::try_now().map(SimInstant::elapsed_since_start);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Waits in true time.
pub(crate) async fn true_sleep(time: Duration) {
    SimRuntime::sleep(time).await;
}

fn rate() -> u64 {
    CURRENT.with(|current| current.borrow().as_ref().map_or(RIGHT, |process| process.rate))
}

/// How long `duration` of the current process' clock truly is; rounded up, or a sleep would end before its time.
fn truly(duration: Duration) -> Duration {
    let nanos = (duration.as_nanos() * u128::from(RIGHT)).div_ceil(u128::from(rate()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
}

/// See the module.
#[derive(Debug)]
pub struct NodeRuntime;

/// A moment by the clock of a process: nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// What the clock of every process shows at the beginning, so that a moment before it can be named.
const BEGINNING: u64 = 86_400_000_000_000;

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns", self.0.saturating_sub(BEGINNING))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(nanos(time)))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(time)))
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, time: Duration) {
        *self = *self - time;
    }
}

impl Sub for Moment {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl async_runtime::instant::Instant for Moment {
    fn now() -> Self {
        let shown = u128::from(true_nanos()) * u128::from(rate()) / u128::from(RIGHT);
        Self(BEGINNING + u64::try_from(shown).unwrap_or(u64::MAX / 4))
    }
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = SimJoinError;
    type JoinHandle<T: openraft::OptionalSend + 'static> = SimJoinHandle<T>;
    type Sleep = SimSleep;
    type Instant = Moment;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + openraft::OptionalSend> = SimTimeout<T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;

    fn spawn<T>(task: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + openraft::OptionalSend + 'static,
        T::Output: openraft::OptionalSend + 'static,
    {
        match CURRENT.with(|current| current.borrow().clone()) {
            Some(process) => SimRuntime::spawn(guard(&process, task)),
            None => SimRuntime::spawn(task),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(truly(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Self::sleep(deadline - <Moment as async_runtime::instant::Instant>::now())
    }

    fn timeout<R, F: Future<Output = R> + openraft::OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(truly(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + openraft::OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Self::timeout(deadline - <Moment as async_runtime::instant::Instant>::now(), future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: openraft::OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn new(threads: usize) -> Self {
        // Only a whole simulation is run, with its own seed.
        let _ = threads;
        Self
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        SimRuntime::with_seed(0).block_on(future)
    }
}

/// Wakes those who wait for something to have changed.
#[derive(Default)]
pub(crate) struct Signal(Mutex<Vec<Waker>>);

impl Signal {
    /// Something has changed.
    pub fn notify(&self) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        for waker in waiting {
            waker.wake();
        }
    }

    /// Waits until `there` finds what it looks for.
    pub async fn until<T>(&self, mut there: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(|cx| match there() {
            Some(found) => Poll::Ready(found),
            None => {
                lock(&self.0).push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}
