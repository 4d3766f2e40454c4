//! An upgrade under load: the nodes get a new program one by one, some of them go back for a while, and in the end the
//! cluster's version is raised.

use std::sync::Arc;
use std::time::Duration;

use tillsync::cluster::{Cluster, MembershipChange};
use tillsync::model::version::Build;
use tillsync::proto::Principal;
use tokio::time::{Instant, sleep};

use super::world::SimWorld;
use crate::rng::Rng;

const WITHIN: Duration = Duration::from_secs(3);
/// How long the version may take to be raised once all nodes are there and new.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Gives every node the new program, while the load and the faults go on.
pub(crate) async fn run(world: Arc<SimWorld>, mut rng: Rng) {
    let mut pause = async |world: &SimWorld, least: u64, most: u64| {
        let ms = rng.between(least, most);
        sleep(Duration::from_millis(ms)).await;
        let early = rng.percent(30);
        if early {
            // An operator in a hurry: it must be refused while a node has the program of before.
            let _ = ask(world).await;
        }
        rng.percent(20)
    };
    let goes_back = pause(&world, 500, 2_500).await;
    for (at, id) in world.ids().into_iter().enumerate() {
        replace(&world, id, Build::THIS).await;
        let again = pause(&world, 100, 900).await;
        if again || (at == 0 && goes_back) {
            replace(&world, id, Build::BEFORE).await;
            pause(&world, 100, 600).await;
            replace(&world, id, Build::THIS).await;
        }
    }
    world.recorder.say(|| "every node has the new program".to_owned());
    let _ = ask(&world).await;
}

/// The node stops in order and starts with that program, unless a fault has it down: then it comes back with it.
async fn replace(world: &Arc<SimWorld>, id: u64, build: Build) {
    let _turn = world.changing.lock().await;
    // For good.
    if build < Build::THIS && world.version() > build.newest() {
        return;
    }
    world.with(id, |place| place.build = build);
    if world.stop(id).await {
        world.start(id).await;
    }
}

/// Asks each node that runs to have the version raised, until one says that it was.
async fn ask(world: &SimWorld) -> Result<(), String> {
    let mut why = "no node runs".to_owned();
    for up in world.serving().into_values() {
        let by = Principal { sub: "chaos".into(), ..Principal::default() };
        let asking = up.cluster.change(MembershipChange::Finalize, by, WITHIN);
        let answer = tokio::select! {
            biased;
            answer = asking => answer.map_err(|error| error.to_string()),
            () = up.dead.cancelled() => Err("the node died while it was asked".to_owned()),
        };
        match answer {
            Ok(done) => {
                world.recorder.say(|| format!("finalized: {done:?}"));
                return Ok(());
            }
            Err(error) => why = error,
        }
        world.recorder.say(|| format!("not finalized: {why}"));
    }
    Err(why)
}

/// Everything has healed: whoever still has the program of before gets the new one, and the version is raised.
pub(crate) async fn end(world: &Arc<SimWorld>) {
    for id in world.ids() {
        let mut old = false;
        world.with(id, |place| old = place.build < Build::THIS);
        if old {
            replace(world, id, Build::THIS).await;
        }
    }
    let until = Instant::now() + PATIENCE;
    while world.version() < Build::THIS.newest() {
        let asked = ask(world).await;
        if Instant::now() >= until {
            let why = asked.err().unwrap_or_default();
            return world.recorder.anomaly(format!("after healing the cluster's version is not raised: {why}"));
        }
        sleep(PAUSE).await;
    }
}
