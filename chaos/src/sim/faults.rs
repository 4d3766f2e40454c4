//! Doing to the cluster what the plan says, and taking it back.

use std::sync::Arc;
use std::time::Duration;

use tillsync::consensus::runtime::spawn;
use tillsync::ids::NodeId;
use tokio::time::{Instant, sleep, sleep_until};

use super::members;
use super::network_model::Badness;
use super::plan::{SimFault, SimScope, SimTimedFault};
use super::world::SimWorld;
use crate::history::FaultWindow;

/// How often it is looked whether there is a majority.
const LOOK: Duration = Duration::from_millis(5);
/// How long the network stays slow when a leader's power is back.
const SLOW_AFTER_BLINK: Duration = Duration::from_millis(150);
/// The longest sync just before the power goes.
const BUSY: Duration = Duration::from_millis(80);

/// One fault, from its time on.
pub(crate) async fn inject(world: Arc<SimWorld>, timed: SimTimedFault, began: Instant) {
    sleep_until(began + Duration::from_millis(timed.at_ms)).await;
    let from_us = world.recorder.us();
    let lasts = Duration::from_millis(timed.for_ms);
    let what = match act(&world, timed.fault, lasts).await {
        Some(what) => what,
        None => return world.recorder.say(|| format!("{:?} found nobody", timed.fault)),
    };
    let (name, to_us) = (timed.fault.name().to_owned(), world.recorder.us());
    world.recorder.band(FaultWindow { name, what, from_us, to_us, majority: true });
}

/// Notes the times without a majority, until it is aborted.
pub(crate) async fn watch_majority(world: Arc<SimWorld>) {
    let mut gone = None;
    loop {
        world.recorder.majority(&mut gone, world.majority());
        sleep(LOOK).await;
    }
}

pub(crate) fn node(world: &SimWorld, who: SimScope) -> Option<u64> {
    match who {
        SimScope::Leader => world.leader(),
        SimScope::Node(id) => Some(id).filter(|id| world.has(*id)),
    }
}

/// Returns when the fault is over; `None` if it met nobody.
async fn act(world: &Arc<SimWorld>, fault: SimFault, lasts: Duration) -> Option<String> {
    match fault {
        SimFault::Kill { who } => crash(world, node(world, who)?, false, lasts).await,
        SimFault::PowerCut { who } => crash(world, node(world, who)?, true, lasts).await,
        SimFault::Blink { ms, delay_ms } => {
            let id = node(world, SimScope::Leader)?;
            let by = Badness { delay_us: delay_ms * 1_000, ..Badness::default() };
            world.weather.worsen(by);
            let crashed = crash(world, id, true, Duration::from_millis(ms)).await;
            sleep(SLOW_AFTER_BLINK).await;
            world.weather.better(by);
            crashed
        }
        SimFault::PowerCutAll => {
            // Busy disks: much is written that no sync has covered yet.
            for id in world.ids() {
                world.with(id, |place| place.disk.slow(BUSY));
            }
            sleep(BUSY * 2).await;
            for id in world.ids() {
                world.with(id, |place| place.disk.mend());
            }
            let gone: Vec<u64> = world.ids().into_iter().filter(|id| world.crash(*id, true)).collect();
            sleep(lasts).await;
            for id in &gone {
                let world = world.clone();
                let id = *id;
                spawn(async move { world.start(id).await });
            }
            Some(format!("the power of {gone:?} was cut"))
        }
        SimFault::Restart { who } => {
            let id = node(world, who)?;
            if !world.stop(id).await {
                return None;
            }
            sleep(lasts).await;
            world.start(id).await;
            Some(format!("node {id} was restarted"))
        }
        SimFault::SlowDisk { who, ms } => {
            let id = node(world, who)?;
            world.with(id, |place| place.disk.slow(Duration::from_millis(ms)));
            sleep(lasts).await;
            world.with(id, |place| place.disk.mend());
            Some(format!("the disk of node {id} took up to {ms} ms"))
        }
        SimFault::StuckDisk { who } => {
            let id = node(world, who)?;
            world.with(id, |place| place.disk.stick());
            sleep(lasts).await;
            world.with(id, |place| place.disk.mend());
            Some(format!("the disk of node {id} was stuck"))
        }
        SimFault::Skew { who, ms } => {
            let id = node(world, who)?;
            world.with(id, |place| place.clock.skew(ms));
            sleep(lasts).await;
            world.with(id, |place| place.clock.skew(0));
            Some(format!("the clock of node {id} was wrong by {ms} ms"))
        }
        SimFault::Churn => {
            let until = Instant::now() + lasts;
            while Instant::now() < until {
                world.churn.send_modify(|n| *n += 1);
                sleep(Duration::from_millis(150)).await;
            }
            Some("all devices lost their connections".into())
        }
        SimFault::Transfer { to } => {
            let from = world.leader().filter(|from| *from != to)?;
            let up = world.up().remove(&from)?;
            // A transfer may fail, as it may in a shop.
            let moved = up.cluster.transfer_leader(NodeId(to), lasts).await.is_ok();
            Some(format!("leadership was to go from {from} to {to}: {moved}"))
        }
        SimFault::AddNode => members::add(world, lasts).await,
        SimFault::RemoveNode { who, dead } => members::remove(world, node(world, who)?, dead, lasts).await,
        SimFault::Isolate { .. } | SimFault::Shatter { .. } | SimFault::OneWay { .. } | SimFault::Bridge { .. } => {
            links(world, fault, lasts).await
        }
        SimFault::Delay { ms } => worse(world, Badness { delay_us: ms * 1_000, ..Badness::default() }, lasts).await,
        SimFault::Lose { of_million } => worse(world, Badness { lost: of_million, ..Badness::default() }, lasts).await,
        SimFault::Duplicate { of_million } => {
            worse(world, Badness { again: of_million, ..Badness::default() }, lasts).await
        }
    }
}

async fn crash(world: &Arc<SimWorld>, id: u64, power: bool, lasts: Duration) -> Option<String> {
    if !world.crash(id, power) {
        return None;
    }
    sleep(lasts).await;
    world.start(id).await;
    Some(format!("node {id} {}", if power { "lost its power" } else { "was killed" }))
}

async fn worse(world: &Arc<SimWorld>, by: Badness, lasts: Duration) -> Option<String> {
    world.weather.worsen(by);
    sleep(lasts).await;
    world.weather.better(by);
    Some(format!("{by:?}"))
}

async fn links(world: &Arc<SimWorld>, fault: SimFault, lasts: Duration) -> Option<String> {
    let ids = world.ids();
    let both = |a: u64, b: u64| [(a, b), (b, a)];
    let (pairs, silent): (Vec<(u64, u64)>, bool) = match fault {
        SimFault::Isolate { who, silent } => {
            let id = node(world, who)?;
            (ids.iter().filter(|other| **other != id).flat_map(|other| both(id, *other)).collect(), silent)
        }
        SimFault::Shatter { silent } => {
            let all = ids.iter().flat_map(|a| ids.iter().map(|b| (*a, *b)));
            (all.filter(|(a, b)| a != b).collect(), silent)
        }
        SimFault::OneWay { from, to } => (vec![(from, to)], true),
        SimFault::Bridge { a, b, silent } => (both(a, b).to_vec(), silent),
        _ => return None,
    };
    if !pairs.iter().all(|(from, to)| world.has(*from) && world.has(*to)) {
        return None;
    }
    for (from, to) in &pairs {
        hold(world, *from, *to, silent);
    }
    sleep(lasts).await;
    for (from, to) in &pairs {
        let_go(world, *from, *to, silent);
    }
    Some(format!("{} was cut{}", name_of(&pairs), if silent { " silently" } else { "" }))
}

fn name_of(pairs: &[(u64, u64)]) -> String {
    pairs.iter().map(|(from, to)| format!("{from}>{to}")).collect::<Vec<_>>().join(" ")
}

fn hold(world: &SimWorld, from: u64, to: u64, silent: bool) {
    let mut held = world.held.lock();
    *held.entry((from, to, silent)).or_default() += 1;
    drop(held);
    if silent { world.router.mute(from, to) } else { world.router.cut(from, to) }
}

/// Several faults may hold one link: the last one lets it go.
fn let_go(world: &SimWorld, from: u64, to: u64, silent: bool) {
    let mut held = world.held.lock();
    let Some(count) = held.get_mut(&(from, to, silent)) else { return };
    *count -= 1;
    if *count > 0 {
        return;
    }
    held.remove(&(from, to, silent));
    drop(held);
    if silent { world.router.unmute(from, to) } else { world.router.join(from, to) }
}
