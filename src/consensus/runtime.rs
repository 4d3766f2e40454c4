//! The async runtime that openraft runs on: tokio, with random numbers that a simulation can seed.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
#[allow(deprecated)] // The name that openraft itself gives it; the crate behind it is not ours to depend on.
use openraft::impls::TokioRuntime;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// A directive for the log: what openraft says of calls that find consensus stopped, in order or not. Each caller has it as
/// the answer, and where consensus failed, its core and the node say why.
pub(crate) const QUIET: &str = "openraft::raft=off";

tokio::task_local! {
    static SEED: Cell<u64>;
}

/// One step of SplitMix64: a well mixed number, and another one for another `gamma`.
fn mix(seed: u64, gamma: u64) -> u64 {
    let mut z = seed.wrapping_add(gamma);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const CHILD: u64 = 0x9e37_79b9_7f4a_7c15;
const NEXT: u64 = 0x6a09_e667_f3bc_c908;

fn draw() -> Option<u64> {
    SEED.try_with(|seed| seed.replace(mix(seed.get(), NEXT))).ok()
}

/// Tokio, delegated to. Inside [`seeded`], every task has its own stream of random numbers that
/// depends only on the seed and on the order in which its ancestors spawned, so that election
/// time-outs of a simulation repeat; outside, they are the machine's.
#[derive(Debug)]
#[allow(deprecated)]
pub struct TillRuntime(TokioRuntime);

/// Runs a future, and all that it spawns through [`spawn`], on random numbers drawn from `seed`.
pub fn seeded<F: Future>(seed: u64, future: F) -> impl Future<Output = F::Output> {
    SEED.scope(Cell::new(seed), future)
}

/// Spawns a task that inherits the seed, if there is one.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match draw() {
        Some(seed) => tokio::spawn(SEED.scope(Cell::new(mix(seed, CHILD)), future)),
        None => tokio::spawn(future),
    }
}

/// A random number: from the seed in a simulation, from the machine otherwise.
pub fn random() -> u64 {
    draw().map_or_else(rand::random, |seed| mix(seed, CHILD))
}

#[allow(deprecated)]
type Tokio = TokioRuntime;

impl AsyncRuntime for TillRuntime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SmallRng::seed_from_u64(random())
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn draws(seed: u64) -> Vec<u64> {
        seeded(seed, async {
            let child = spawn(async { vec![random(), random()] });
            let mut all = vec![random()];
            all.extend(child.await.unwrap());
            all.push(random());
            all
        })
        .await
    }

    #[tokio::test]
    async fn a_seed_repeats_across_tasks() {
        assert_eq!(draws(7).await, draws(7).await);
        assert_ne!(draws(7).await, draws(8).await);
        let all = draws(7).await;
        assert!(all.iter().enumerate().all(|(i, x)| !all[..i].contains(x)));
    }

    #[test]
    fn openrafts_suite_for_runtimes() {
        openraft::testing::runtime::Suite::<TillRuntime>::test_all();
    }
}
