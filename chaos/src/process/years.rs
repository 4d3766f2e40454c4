//! A shop's years in minutes: a day takes a second or two, with trade by day and rest at night, and what a year brings
//! comes on its days. Folders, memory and starts must not grow, and nothing that was acknowledged may be lost.
//!
//! - [`calendar`]: what comes on which day; [`events`]: how it is done
//! - [`shop`]: who sells meanwhile, and what must be there
//! - [`figures`]: what the nodes take at the end of each month, and whether that grows

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tillsync::token::Class;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::calendar::{YearEvent, calendar};
use self::figures::{MonthFigures, growing, table};
use self::shop::{Shop, ShopHours, TILLS};
use super::allowed;
use super::cluster::{ClusterPlan, ProcessCluster};
use super::commands::{NodeArgs, block_on, fresh_seed};
use super::disks;
use super::scenario::SettingValue;
use crate::rng::Rng;
use crate::starter::PortFinder;

mod calendar;
mod events;
mod figures;
mod shop;

/// What a till changes on a day.
const CHANGES: u64 = 20;
/// How much of a day the shop is open, of a hundred.
const OPEN: u64 = 65;
/// Smaller than a shop would have them, so that what is kept is full after a month.
const SETTINGS: &[(&str, u64)] = &[
    ("keep_changes", 2_000),
    ("keep_audit_rows", 2_000),
    ("keep_evidence_rows", 1_000),
    ("keep_elections", 1_000),
    ("log_mb", 2),
    ("disk_low_mb", 48),
    ("disk_min_mb", 32),
];
/// How long the last changes of the tills may take, with all nodes there.
const CLOSING: Duration = Duration::from_secs(60);
/// With so much wrong a run ends early.
const MOST_WRONG: usize = 20;

#[derive(Args)]
pub(crate) struct Years {
    /// Days of the shop
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: u64,
    /// How long a day takes at least, in milliseconds
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u64).range(200..=86_400_000))]
    day_ms: u64,
    /// What is drawn: when nodes are killed, which, and what tills sell. Default: another one every time
    #[arg(long)]
    seed: Option<u64>,
    /// Where the nodes' logs, the backups and the figures go. Default: chaos-runs/years-SEED
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The release that the nodes begin with: they are upgraded in the first quarter, one of them back and again
    #[arg(long, value_name = "TILLSYNC")]
    before: Option<PathBuf>,
    #[command(flatten)]
    nodes: NodeArgs,
}

/// One run.
struct YearsRun {
    shop: Arc<Shop>,
    binary: PathBuf,
    dir: PathBuf,
    backups: PathBuf,
    rng: Rng,
    ports: PortFinder,
    figures: Vec<MonthFigures>,
    done: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
}

impl Years {
    /// False: something was lost, or grows.
    pub(crate) fn run(self) -> Result<bool, String> {
        let binary = self.nodes.find()?;
        let seed = self.seed.unwrap_or_else(fresh_seed);
        let dir = self.dir.clone().unwrap_or_else(|| Path::new("chaos-runs").join(format!("years-{seed}")));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let dir = dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
        println!("{} days of at least {} ms; seed {seed}; {}", self.days, self.day_ms, dir.display());
        let wrong = block_on(self.live(seed, &dir, binary))?;
        for what in &wrong {
            println!("    {what}");
        }
        println!("{}", if wrong.is_empty() { "nothing was lost, and nothing grows" } else { "BROKEN" });
        Ok(wrong.is_empty())
    }

    async fn live(&self, seed: u64, dir: &Path, binary: PathBuf) -> Result<Vec<String>, String> {
        let mut rng = Rng::new(seed);
        let before = self.before.as_ref().map(|path| path.canonicalize().map_err(|error| format!("--before: {error}")));
        let before = before.transpose()?;
        let faketime = allowed::faketime();
        let can_mount = disks::can_mount(dir);
        if faketime.is_none() {
            println!("libfaketime is not installed: clocks stay right");
        }
        if let Err(why) = &can_mount {
            println!("no small file system can be mounted here: disks stay empty ({why})");
        }
        let settings = SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), SettingValue::Number(*value))).collect();
        let plan = ClusterPlan {
            binary: &binary,
            before: before.as_deref(),
            dir,
            nodes: 3,
            spare: 0,
            seed: rng.next(),
            small_disks: can_mount.is_ok(),
            proxied: false,
            tls: true,
            faketime: faketime.clone(),
            settings: &settings,
        };
        let cluster = Arc::new(ProcessCluster::start(&plan).await?);
        let open = Duration::from_millis(self.day_ms * OPEN / 100);
        let shop = Shop::new(cluster, open / CHANGES as u32);
        let mut tills = JoinSet::new();
        for till in shop.tills(&mut rng)? {
            tills.spawn(till);
        }
        let mut run = YearsRun {
            shop,
            binary: binary.clone(),
            dir: dir.to_owned(),
            backups: dir.join("backups"),
            rng: rng.fork(),
            ports: PortFinder::new(rng.next()),
            figures: Vec::new(),
            done: BTreeMap::new(),
            wrong: Vec::new(),
        };
        let mut year = calendar(self.days, &mut rng);
        // What this machine does not let us do is not counted as done.
        for events in year.values_mut() {
            events.retain(|event| match event {
                YearEvent::ClockOff(_) | YearEvent::ClockRight(_) => faketime.is_some(),
                YearEvent::DisksFill => can_mount.is_ok(),
                YearEvent::Finalize => before.is_some(),
                _ => true,
            });
        }
        run.days(&year, open, Duration::from_millis(self.day_ms)).await;
        run.end(&mut tills).await;
        run.write()?;
        Ok(run.wrong)
    }
}

impl YearsRun {
    async fn days(&mut self, year: &BTreeMap<u64, Vec<YearEvent>>, open: Duration, lasts: Duration) {
        for (day, events) in year {
            if self.wrong.len() >= MOST_WRONG {
                return self.wrong.push(format!("the run ends on day {day}: too much is wrong"));
            }
            let began = Instant::now();
            self.shop.hours.send_replace(ShopHours::Open);
            for event in events {
                if let Err(why) = self.happen(*day, *event).await {
                    self.wrong.push(format!("day {day}, {event:?}: {why}"));
                }
                *self.done.entry(event.name()).or_default() += 1;
            }
            // Some events are of the night; the shop was not open for long then.
            self.shop.hours.send_replace(ShopHours::Open);
            sleep_until(began + open).await;
            sleep(open / CHANGES as u32).await;
            self.shop.hours.send_replace(ShopHours::Night);
            sleep_until(began + lasts).await;
            self.look_after(*day).await;
        }
    }

    /// Nodes that ended by themselves are told, and started again.
    async fn look_after(&mut self, day: u64) {
        for (node, status) in self.shop.cluster.fallen() {
            let said = self.shop.cluster.last_line(node);
            self.wrong.push(format!("day {day}: node {node} ended by itself with {status}: {said}"));
            if let Err(why) = self.shop.cluster.revive(node) {
                self.wrong.push(why);
            }
        }
    }

    /// All nodes are there, and have what was acknowledged.
    async fn end(&mut self, tills: &mut JoinSet<()>) {
        for node in self.shop.cluster.members() {
            // One whose clock is still off does not serve: from its next start on the clock is right.
            if !self.shop.cluster.is_ready(node).await {
                self.shop.cluster.kill(node).await;
            }
            if let Err(why) = self.bring_back(node).await {
                self.wrong.push(why);
            }
        }
        self.shop.hours.send_replace(ShopHours::Closed);
        let closing = async {
            while let Some(till) = tills.join_next().await {
                if let Err(why) = till {
                    self.wrong.push(format!("a till ended by itself: {why}"));
                }
            }
        };
        if timeout(CLOSING, closing).await.is_err() {
            self.wrong.push(format!("after {} s a till's last change is not acknowledged", CLOSING.as_secs()));
            tills.abort_all();
        }
        self.wrong.extend(self.shop.take_wrong());
        let token = match self.shop.cluster.token_of("office", Class::Admin) {
            Ok(token) => token,
            Err(why) => return self.wrong.push(why),
        };
        for (_, gateway) in self.shop.cluster.gateways() {
            let wrong = self.shop.differing(&gateway.to_string(), &token, usize::MAX, &mut self.rng).await;
            self.wrong.extend(wrong);
        }
        self.wrong.extend(growing(&self.figures));
    }

    fn write(&self) -> Result<(), String> {
        let events: Vec<String> = self.done.iter().map(|(name, times)| format!("{times} × {name}")).collect();
        let text = format!(
            "{} changes of {TILLS} tills were acknowledged, and {} records are there. {}.\n\n{}",
            self.shop.acknowledged(),
            self.shop.records(),
            events.join(", "),
            table(&self.figures)
        );
        print!("{text}");
        let path = self.dir.join("years.txt");
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}
