//! A run with attackers: honest devices alone, then beside the attack, and what is left when it is over.

use std::fmt::Display;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tillsync::client::NodeUrl;
use tillsync::client::link::{ClientLink, ClientTransport};
use tillsync::token::Class;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::attack::{self, DeviceToken, RunningAttack, Stolen, Victim};
use super::http::HttpClient;
use super::monitor::until;
use super::scenario;
use super::world::ProcessWorld;
use crate::checker::Verdict;
use crate::clients::device::{GUARDED, PLAIN, RECEIPTS};
use crate::clients::{newcomer, queue, timed};
use crate::history::{AttackKind, Attacked, History, NodeUse, Span};
use crate::report::RunDescription;
use crate::report::figures::{Figures, Latency};
use crate::report::words::took_us;

/// What honest devices write, and all that they ask to be told of.
pub(super) const TABLES: [&str; 7] =
    [PLAIN, GUARDED, RECEIPTS, queue::SALES, timed::LARGE, newcomer::FIRST, super::ending::CLOSING];
/// What the shop wrote before.
pub(super) const CATALOGUE: &str = "catalogue";
const CATALOGUE_PRICES: &str = "catalogue_prices";
const CATALOGUE_RECORDS: u64 = 40_000;
/// How often prices change for each time that the catalogue is written.
const PRICES: u64 = 2;
/// Rows of the catalogue in one page, when all of it is read.
const CATALOGUE_PAGE: u64 = 1_000;
const CATALOGUE_BYTES: usize = 2 << 10;
/// Pictures of what is sold, how many prices change for each that does, and how often one changes while the shop is open.
const CATALOGUE_PICTURES: &str = "catalogue_pictures";
const PICTURES: u64 = 200;
const PRICES_A_PICTURE: u64 = 60;
const PICTURE_EVERY: Duration = Duration::from_millis(500);
/// Writes under way at once on a node.
const UNDER_WAY: u64 = 32;
const ANSWER: Duration = Duration::from_secs(20);
/// Descriptors of this process beside those of attackers.
const OWN_DESCRIPTORS: u64 = 1_500;
/// How often a handheld comes that has nothing yet, and how many of them there are.
const HANDHELDS_EVERY: Duration = Duration::from_secs(10);
const HANDHELDS: u64 = 12;
/// How much longer an attack may last until all attackers were busy.
const BEGINS: Duration = Duration::from_secs(120);
/// How often the nodes' descriptors are counted.
const COUNT: Duration = Duration::from_secs(1);
/// How long a node may have until it has closed what attackers left, and given rates back.
const GONE: Duration = Duration::from_secs(90);
/// How long the devices that a thief registered may stay, and how many are forgotten at once.
const FORGOTTEN: Duration = Duration::from_secs(150);
const DELETES: usize = 8;
/// The honest devices find their places first.
const SETTLE: Duration = Duration::from_secs(3);

/// Fails at once if the attack could not be what was asked for.
pub(super) fn allowed(attack: &scenario::AttackPlan) -> Result<(), String> {
    attack::raise_descriptors(attack.sockets * 3 / 2 + OWN_DESCRIPTORS)
}

/// The load is going on; it stays when this is done.
pub(super) async fn run(
    world: &Arc<ProcessWorld>,
    attack: &scenario::AttackPlan,
    lasts: Duration,
    seed: u64,
) -> Result<(), String> {
    fill(world, attack).await?;
    sleep(SETTLE).await;
    let mut nodes: Vec<NodeUse> =
        world.cluster.members().into_iter().map(|node| NodeUse { node, ..NodeUse::default() }).collect();
    let mut handhelds = JoinSet::new();
    handhelds.spawn(take_everything_again(world.clone()));
    handhelds.spawn(change_pictures(world.clone(), attack.picture_bytes()));
    world.say_phase("honest devices only");
    nodes.iter().for_each(|used| forget_peak(world, used.node));
    let from_us = world.recorder.us();
    sleep(Duration::from_secs_f64(attack.honest_s)).await;
    let honest = Span { from_us, to_us: world.recorder.us() };
    for used in &mut nodes {
        (used.honest_kb, used.descriptors_before) = (peak_kb(world, used.node), descriptors(world, used.node));
        forget_peak(world, used.node);
    }
    world.say_phase("attack");
    let from_us = world.recorder.us();
    let under_way = RunningAttack::start(attack.sockets, victims(world)?, stolen(world)?, seed)?;
    let began = Instant::now();
    // On a machine that has no time for it the attack takes longer to begin.
    while began.elapsed() < lasts || (!under_way.is_busy() && began.elapsed() < lasts + BEGINS) {
        sleep(COUNT).await;
        for used in &mut nodes {
            used.descriptors_most = descriptors(world, used.node).max(used.descriptors_most);
        }
    }
    let hostile = Span { from_us, to_us: world.recorder.us() };
    for used in &mut nodes {
        used.hostile_kb = peak_kb(world, used.node);
    }
    handhelds.shutdown().await;
    // Joining the thread takes as long as its attackers take to notice.
    let outcome = tokio::task::spawn_blocking(move || under_way.stop()).await.map_err(|error| error.to_string())?;
    world.say_phase("after the attack");
    gone(world, &mut nodes).await;
    forget_ghosts(world).await;
    room_left(world).await;
    world.recorder.attacked(Attacked {
        honest,
        hostile,
        sockets: attack.sockets,
        sockets_most: outcome.most,
        sockets_mean: outcome.mean,
        kinds: outcome.kinds,
        nodes,
        failures: Vec::new(),
        slow_ms: attack.slow_ms,
        memory_percent: attack.memory_percent,
    });
    Ok(())
}

/// Writes the catalogue, then its prices and pictures, over and over, by all nodes, and reads all of it from every node as
/// a backup does: what nodes keep in memory of what is written and read is full then, as after a day.
async fn fill(world: &ProcessWorld, attack: &scenario::AttackPlan) -> Result<(), String> {
    let gateways = world.cluster.gateways();
    let picture_bytes = attack.picture_bytes();
    let share = attack.filled.div_ceil(gateways.len().max(1) as u64);
    let writers = gateways.iter().enumerate().map(|(number, (node, gateway))| async move {
        let mut writer = CatalogueWriter::connect(world, *node, gateway).await?;
        let first = number as u64 * share;
        writer.write(CATALOGUE, first..first + share, CATALOGUE_BYTES).await?;
        for _ in 0..PRICES {
            for begin in (first..first + share).step_by(PRICES_A_PICTURE as usize) {
                let prices = begin..(begin + PRICES_A_PICTURE).min(first + share);
                writer.write(CATALOGUE_PRICES, prices, 0).await?;
                if picture_bytes > 0 {
                    let picture = begin / PRICES_A_PICTURE;
                    writer.write(CATALOGUE_PICTURES, picture..picture + 1, picture_bytes).await?;
                }
            }
        }
        writer.link.close().await;
        Ok::<(), String>(())
    });
    join_all(writers).await.into_iter().collect::<Result<(), String>>()?;
    for node in world.cluster.members() {
        let mut after = String::new();
        loop {
            let path = format!("/system/export/records?limit={CATALOGUE_PAGE}{after}");
            let page = world.ask(node, "GET", &path, None, ANSWER).await;
            let page = page.map_err(|why| format!("node {node} does not give the catalogue back: {why}"))?;
            let page: Value = serde_json::from_slice(&page).map_err(|error| error.to_string())?;
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
    }
    Ok(())
}

/// Writes its share of the catalogue on one node.
struct CatalogueWriter {
    node: u64,
    device_id: String,
    link: ClientLink,
}

impl CatalogueWriter {
    async fn connect(world: &ProcessWorld, node: u64, gateway: &impl ToString) -> Result<Self, String> {
        let device_id = format!("catalogue-{node}");
        let token = world.cluster.token_of(&device_id, Class::Manager)?;
        let url = NodeUrl::plain(gateway.to_string());
        let link = ClientLink::connect(ClientTransport::Ws, &url, &token).await;
        let mut writer = Self { node, device_id, link: link.map_err(|error| lost(node, &error))? };
        let device_id = &writer.device_id;
        let online = json!({ "device_id": device_id, "priority": 0, "capabilities": ["no-master"], "subscribe": [] });
        writer.send("device_online", &online).await?;
        Ok(writer)
    }

    async fn send(&mut self, event: &str, data: &Value) -> Result<(), String> {
        self.link.send(event, &data.to_string()).await.map_err(|error| lost(self.node, &error))
    }

    /// Writes each number once, with so many bytes about it; all are acknowledged when this is done.
    async fn write(&mut self, table: &str, mut numbers: Range<u64>, bytes: usize) -> Result<(), String> {
        let about = "x".repeat(bytes);
        let records = if table == CATALOGUE_PICTURES { PICTURES } else { CATALOGUE_RECORDS };
        let mut under_way = 0;
        loop {
            while under_way < UNDER_WAY
                && let Some(number) = numbers.next()
            {
                let write = json!({
                    "device_id": self.device_id, "table_name": table,
                    "record_id": number % records, "operation": "update",
                    "new_data": { "n": number, "about": about },
                });
                self.send("data_update", &write).await?;
                under_way += 1;
            }
            if under_way == 0 {
                return Ok(());
            }
            let event = timeout(ANSWER, self.link.next()).await.map_err(|error| lost(self.node, &error))?;
            let event = event.map_err(|error| lost(self.node, &error))?;
            match event.name.as_str() {
                "acknowledged" => under_way -= 1,
                "error" => return Err(lost(self.node, &event.data)),
                _ => {}
            }
        }
    }
}

fn lost(node: u64, why: &impl Display) -> String {
    format!("node {node} does not take the catalogue: {why}")
}

/// The back office changes a picture now and then, on one node after the other.
async fn change_pictures(world: Arc<ProcessWorld>, bytes: usize) {
    if bytes == 0 {
        return;
    }
    for number in 0.. {
        let began = Instant::now();
        if let Err(why) = change_picture(&world, number, bytes).await {
            world.recorder.anomaly(format!("a picture could not be changed: {why}"));
        }
        sleep_until(began + PICTURE_EVERY).await;
    }
}

async fn change_picture(world: &ProcessWorld, number: u64, bytes: usize) -> Result<(), String> {
    let gateways = world.cluster.gateways();
    let (node, gateway) = *gateways.get(number as usize % gateways.len().max(1)).ok_or("there is no node")?;
    let mut writer = CatalogueWriter::connect(world, node, &gateway).await?;
    writer.write(CATALOGUE_PICTURES, number..number + 1, bytes).await?;
    writer.link.close().await;
    Ok(())
}

/// Handhelds that have nothing yet come to one node after the other and take everything: nothing that devices do costs a
/// node more memory.
async fn take_everything_again(world: Arc<ProcessWorld>) {
    for number in 0.. {
        let began = Instant::now();
        let who = format!("handheld-{}", number % HANDHELDS);
        if let Err(why) = take_everything(&world, &who, number).await {
            world.recorder.anomaly(format!("{who} could not take everything: {why}"));
        }
        sleep_until(began + HANDHELDS_EVERY).await;
    }
}

async fn take_everything(world: &ProcessWorld, who: &str, number: u64) -> Result<(), String> {
    let gateways = world.cluster.gateways();
    let (node, gateway) = *gateways.get(number as usize % gateways.len().max(1)).ok_or("there is no node")?;
    let token = world.cluster.token_of(who, Class::InventoryAssistant)?;
    let lost = |why: &dyn std::fmt::Display| format!("node {node}: {why}");
    let mut link = ClientLink::connect(ClientTransport::Ws, &NodeUrl::plain(gateway.to_string()), &token)
        .await
        .map_err(|e| lost(&e))?;
    let online = json!({ "device_id": who, "priority": 0, "capabilities": ["no-master"], "subscribe": [] });
    link.send("device_online", &online.to_string()).await.map_err(|e| lost(&e))?;
    let ask = json!({ "device_id": who, "sync_type": "full" });
    link.send("sync_request", &ask.to_string()).await.map_err(|e| lost(&e))?;
    loop {
        let event = timeout(ANSWER, link.next()).await.map_err(|e| lost(&e))?.map_err(|e| lost(&e))?;
        match event.name.as_str() {
            "sync_response" if event.data["has_more"] == json!(false) => break,
            "sync_error" | "error" => return Err(lost(&event.data)),
            _ => {}
        }
    }
    link.close().await;
    Ok(())
}

fn victims(world: &ProcessWorld) -> Result<Vec<Victim>, String> {
    let victim = |id: u64| {
        let address = |text: Option<String>| text.and_then(|text| text.parse().ok());
        Some(Victim { gateway: address(world.cluster.gateway(id))?, raft: address(world.cluster.raft(id))? })
    };
    let found: Option<Vec<Victim>> = world.cluster.members().into_iter().map(victim).collect();
    found.ok_or_else(|| "a node's addresses are not known".into())
}

fn stolen(world: &ProcessWorld) -> Result<Stolen, String> {
    let token = |device: &str, class| {
        let token = world.cluster.token_of(device, class)?;
        Ok::<DeviceToken, String>(DeviceToken { device: device.to_owned(), token })
    };
    Ok(Stolen {
        tills: [token("stolen-till-1", Class::SalesAssistant)?, token("stolen-till-2", Class::SalesAssistant)?],
        manager: token("stolen-manager", Class::Manager)?,
        warehouse: token("stolen-warehouse", Class::InventoryAssistant)?,
        onlooker: token("stolen-onlooker", Class::SalesAssistant)?,
    })
}

/// Waits until the nodes have closed what attackers left.
async fn gone(world: &ProcessWorld, nodes: &mut [NodeUse]) {
    // What is open then is judged by the invariant.
    let _: bool = until(GONE, async || {
        let mut all = true;
        for used in nodes.iter_mut() {
            used.descriptors_after = descriptors(world, used.node);
            all &= used.descriptors_after <= used.descriptors_before + 16;
        }
        sleep(Duration::from_millis(200)).await;
        all
    })
    .await;
}

/// An admin makes room again: devices that a thief registered count as there for a while, and can be forgotten then.
async fn forget_ghosts(world: &ProcessWorld) {
    let mut left = String::new();
    let done = until(FORGOTTEN, async || {
        let Some(node) = world.cluster.members().first().copied() else { return false };
        let listed = world.ask(node, "GET", "/device/roles?consistency=stale", None, ANSWER).await;
        let Ok(Ok(listed)) = listed.map(|listed| serde_json::from_slice::<Value>(&listed)) else { return false };
        let devices = listed["devices"].as_array().map_or(&[][..], |devices| devices);
        let ghosts = devices
            .iter()
            .filter(|device| device["device_id"].as_str().is_some_and(|name| name.starts_with(attack::GHOST)));
        let (there, away): (Vec<&Value>, Vec<&Value>) = ghosts.partition(|ghost| ghost["is_active"] == json!(true));
        left = format!("{} are there, {} are to be forgotten", there.len(), away.len());
        for some in away.chunks(DELETES) {
            let deletes = some.iter().map(async |ghost| {
                let path = format!("/device/{}", ghost["device_id"].as_str().unwrap_or_default());
                world.ask(node, "DELETE", &path, None, ANSWER).await
            });
            if let Some(Err(why)) = join_all(deletes).await.into_iter().find(Result::is_err) {
                left = why.to_string();
            }
        }
        sleep(Duration::from_millis(200)).await;
        there.is_empty() && away.is_empty()
    });
    if !done.await {
        world.recorder.anomaly(format!("{FORGOTTEN:?} after the attack the thief's devices are still there: {left}"));
    }
}

/// A device that nobody knew makes a table that was not there, and a conflict of its own is kept.
async fn room_left(world: &ProcessWorld) {
    for node in world.cluster.members() {
        let name = format!("after-{node}");
        let Ok(token) = world.cluster.token_of(&name, Class::SalesAssistant) else { return };
        let Some(authority) = world.cluster.gateway(node) else { continue };
        let door = HttpClient { authority: &authority, token: &token, within: ANSWER };
        let write = json!({ "device_id": name, "operation": "update", "new_data": { "v": "mine" } });
        let online = json!({ "device_id": name, "priority": 0, "capabilities": ["no-master"] });
        let tried = async {
            door.call("POST", "/device/register", Some(&online)).await?;
            door.call("POST", &format!("/data/{name}/1"), Some(&write)).await
        };
        if let Err(why) = tried.await {
            world.recorder.anomaly(format!("after the attack node {node} has no room for {name} and its table: {why}"));
        }
    }
}

fn of(world: &ProcessWorld, node: u64, file: &str) -> Option<PathBuf> {
    Some(PathBuf::from(format!("/proc/{}/{file}", world.cluster.pid(node)?)))
}

/// The greatest resident memory since it was forgotten; 0 where it is not told.
fn peak_kb(world: &ProcessWorld, node: u64) -> u64 {
    let text = of(world, node, "status").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    peak_of(&text).unwrap_or(0)
}

fn peak_of(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

fn forget_peak(world: &ProcessWorld, node: u64) {
    if let Some(path) = of(world, node, "clear_refs")
        && let Err(error) = fs::write(&path, "5")
    {
        world.note(format!("the greatest memory of node {node} cannot be forgotten: {error}"));
    }
}

fn descriptors(world: &ProcessWorld, node: u64) -> u64 {
    of(world, node, "fd").and_then(|path| fs::read_dir(path).ok()).map_or(0, |open| open.count() as u64)
}

/// What an attack came to, for people; nothing of a run without one.
pub(super) fn lines(about: &RunDescription, history: &History, verdict: &Verdict) -> Vec<String> {
    let Some(attack) = Figures::of(about, history, verdict).attack else { return Vec::new() };
    let mut lines = Vec::new();
    for (phase, figures) in [("before the attack", attack.before), ("beside the attack", attack.beside)] {
        for (name, latency) in [("writes", figures.write), ("reads", figures.read), ("syncs", figures.sync)] {
            let Some(Latency { p50_us, p99_us, max_us }) = latency else { continue };
            let [p50, p99, max] = [p50_us, p99_us, max_us].map(took_us);
            lines.push(format!("{phase}: {name} half within {p50}, 99 % within {p99}, longest {max}"));
        }
    }
    for used in &attack.nodes {
        let NodeUse { node, honest_kb, hostile_kb, descriptors_before, descriptors_most, descriptors_after } = used;
        lines.push(format!(
            "node {node}: {} MB before, {} MB beside the attack ({} %); descriptors {descriptors_before}, then up to \
             {descriptors_most}, then {descriptors_after}",
            honest_kb / 1_024,
            hostile_kb / 1_024,
            hostile_kb * 100 / (*honest_kb).max(1)
        ));
    }
    lines.push(format!(
        "attackers held {} sockets in the mean, {} at most; honest devices failed {} times",
        attack.sockets_mean, attack.sockets_most, attack.failures
    ));
    for kind in &attack.kinds {
        let AttackKind { name, attempts, answered, ended, .. } = kind;
        lines
            .push(format!("{name:28} {attempts:>8} connections, {answered:>8} answered, {ended:>8} ended by the node"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_what_linux_says() {
        assert_eq!(peak_of("Name:\ttillsync\nVmPeak:\t  900 kB\nVmHWM:\t   5320 kB\nVmRSS:\t 12 kB\n"), Some(5_320));
        assert_eq!(peak_of("Name:\ttillsync\n"), None);
    }
}
