//! A line a second about how a run goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::world::ProcessWorld;

pub(super) async fn tell(world: Arc<ProcessWorld>) {
    let mut every = interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Skip);
    every.tick().await;
    let (mut ok, mut bad) = (0, 0);
    loop {
        every.tick().await;
        let (recorder, outcomes) = (&world.recorder, world.recorder.outcomes());
        let now_ok = outcomes.ok.load(Ordering::Relaxed);
        let now_bad = outcomes.failed.load(Ordering::Relaxed) + outcomes.unknown.load(Ordering::Relaxed);
        let (leader, master) = {
            let seen = world.seen.lock();
            let newest = seen.values().max_by_key(|status| (status.term, status.digest_index));
            let leader = newest.and_then(|status| status.leader).map_or("-".into(), |id| id.to_string());
            (leader, newest.and_then(|status| status.master.clone()).unwrap_or("-".into()))
        };
        let going_on: Vec<String> = world.going_on.lock().values().cloned().collect();
        let seconds = recorder.us() / 1_000_000;
        println!(
            "{seconds:>4} s  {:>5} ops/s  {:>4} refused or unknown  leader {leader}  master {master:8}  {}",
            now_ok - ok,
            now_bad - bad,
            going_on.join("; ")
        );
        (ok, bad) = (now_ok, now_bad);
    }
}
