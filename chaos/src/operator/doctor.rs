//! `chaos doctor`: what this machine allows. Each line is tried, not guessed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::process::Command;

use super::{block_on, embedded, shell};

const WITHIN: Duration = Duration::from_secs(10);
/// A command on any machine may say much; a line shows this much of it.
const LINE: usize = 100;
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
];

#[derive(Args)]
pub(crate) struct Doctor {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// Where clusters would keep their data
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
}

#[derive(Debug, Serialize)]
struct CheckLine {
    name: &'static str,
    there: bool,
    /// What was seen.
    found: String,
    #[serde(rename = "for")]
    used_for: &'static str,
    /// What is used without it.
    instead: &'static str,
}

type CheckResult = Result<String, String>;

impl Doctor {
    pub(crate) fn run(&self) -> Result<bool, String> {
        let lines = block_on(async { Ok::<_, String>(self.look().await) })?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&lines).map_err(|error| error.to_string())?);
            return Ok(true);
        }
        for line in &lines {
            println!("{:4} {:20} {}", if line.there { "yes" } else { "no" }, line.name, line.found);
            println!("     {:20} for: {}", "", line.used_for);
            if !line.there {
                println!("     {:20} instead: {}", "", line.instead);
            }
        }
        Ok(true)
    }

    async fn look(&self) -> Vec<CheckLine> {
        let mut lines = Vec::new();
        let mut add = |name, used_for, instead, found: CheckResult| {
            let there = found.is_ok();
            let found = found.unwrap_or_else(|why| why);
            lines.push(CheckLine { name, there, found: crate::report::words::cut(&found, LINE), used_for, instead });
        };
        add(
            "tillsync",
            "clusters of real processes",
            "simulation only (`chaos sim`); or name one by --binary",
            tillsync().await,
        );
        add(
            "root",
            "namespaces, file systems, and faults in them",
            "faults of processes, and proxies between nodes",
            root(),
        );
        let (namespaces, iptables) = namespaces().await;
        add(
            "network namespaces",
            "partitions: each node in a network of its own",
            "proxies between nodes on loopback",
            namespaces,
        );
        add("iptables", "one-way partitions and losses in namespaces", "proxies between nodes on loopback", iptables);
        add("FUSE", "power cuts and bad disks under a real node", "simulated disks (`chaos sim`)", fuse());
        add("tmpfs", "a disk that is full", "nothing: full disks are left out", tmpfs().await);
        add("libfaketime", "a wrong clock on one node", "simulated clocks (`chaos sim`)", faketime().await);
        add("browser", "the test that opens the report's page", "the page is made, but not opened", browser().await);
        add(
            "two cores",
            "times that mean something while nodes fight for the CPU",
            "looser bounds: read pauses with care",
            cores(),
        );
        add(
            "disk",
            "data that a sync brings to a disk",
            "a faster machine than a shop's: syncs cost nothing",
            disk(&self.data).await,
        );
        lines
    }
}

async fn said(mut command: Command, args: &[&str]) -> CheckResult {
    command.args(args);
    let said = shell::run(command, WITHIN).await?;
    if said.ok { Ok(said.text.trim().to_owned()) } else { Err(format!("{}: {}", said.how, said.last_line())) }
}

async fn say(program: &str, args: &[&str]) -> CheckResult {
    said(Command::new(program), args).await.map_err(|why| format!("{program}: {why}"))
}

async fn tillsync() -> CheckResult {
    let program = embedded::program(None)?;
    let version = said(Command::new(&program), &["--version"]).await?;
    Ok(format!("{version}, {}", program.display()))
}

fn root() -> CheckResult {
    // SAFETY: a plain system call that cannot fail.
    match unsafe { libc::geteuid() } {
        0 => Ok("this is root".into()),
        id => Err(format!("this is user {id}")),
    }
}

/// Makes a namespace, filters in it, and removes it.
async fn namespaces() -> (CheckResult, CheckResult) {
    let name = format!("chaos-doctor-{}", std::process::id());
    if let Err(why) = say("ip", &["netns", "add", &name]).await {
        return (Err(why), Err("not tried without a namespace".into()));
    }
    let rule = ["-A", "INPUT", "-s", "127.1.1.1", "-j", "DROP"];
    let filter = say("ip", &[&["netns", "exec", &name, "iptables"][..], &rule].concat()).await;
    let removed = say("ip", &["netns", "del", &name]).await;
    let made = removed.map(|_| "made one and removed it".into());
    (made, filter.map(|_| "set a rule in a namespace".into()))
}

fn fuse() -> CheckResult {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    device.map(|_| "/dev/fuse can be opened".into()).map_err(|error| format!("/dev/fuse: {error}"))
}

async fn tmpfs() -> CheckResult {
    let dir = std::env::temp_dir().join(format!("chaos-doctor-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|error| error.to_string())?;
    let path = dir.display().to_string();
    let mounted = say("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", &path]).await;
    let mut found = mounted.map(|_| "made one, filled it and removed it".to_owned());
    if found.is_ok() {
        if std::fs::write(dir.join("full"), vec![1; 128 << 10]).is_ok() {
            found = Err("it took more than its size".into());
        }
        say("umount", &[&path]).await?;
    }
    std::fs::remove_dir(&dir).map_err(|error| error.to_string())?;
    found
}

async fn faketime() -> CheckResult {
    let library = FAKETIME.iter().find(|path| Path::new(path).exists());
    let library = library.ok_or("libfaketime.so.1 is not installed")?;
    let mut command = Command::new("date");
    command.env("LD_PRELOAD", library).env("FAKETIME", "@2001-02-03 12:00:00");
    match said(command, &["+%Y"]).await?.as_str() {
        "2001" => Ok(format!("moved a clock by {library}")),
        year => Err(format!("the clock was not moved, it is {year}")),
    }
}

async fn browser() -> CheckResult {
    for name in BROWSERS {
        if let Ok(version) = say(name, &["--version"]).await {
            return Ok(version.lines().next().unwrap_or(name).to_owned());
        }
    }
    Err("no Chromium was found".into())
}

fn cores() -> CheckResult {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores >= 2 { Ok(format!("{cores} cores")) } else { Err("one core".into()) }
}

/// What kind of disk it is, how much is free, and what a sync costs.
async fn disk(data: &Path) -> CheckResult {
    let path = data.display().to_string();
    let table = say("df", &["-PTm", &path]).await?;
    let last = table.lines().last().unwrap_or_default();
    let words: Vec<&str> = last.split_whitespace().collect();
    let (Some(kind), Some(free)) = (words.get(1), words.get(4).and_then(|free| free.parse::<u64>().ok())) else {
        return Err(format!("df said {last:?}"));
    };
    let sync = sync_time(data).map_err(|error| format!("{path}: {error}"))?;
    let found = format!("{kind}, {free} MB free, a sync takes {} µs", sync.as_micros());
    if matches!(*kind, "tmpfs" | "ramfs") || free < 1_000 { Err(found) } else { Ok(found) }
}

/// The middle of some syncs of a small file.
fn sync_time(data: &Path) -> std::io::Result<Duration> {
    let path = data.join(format!(".chaos-doctor-{}", std::process::id()));
    let measured = File::create(&path).and_then(|mut file| {
        let mut times = Vec::new();
        for _ in 0..21 {
            file.write_all(&[7; 4 << 10])?;
            let began = Instant::now();
            file.sync_data()?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    });
    std::fs::remove_file(&path).or_else(|error| if measured.is_err() { Ok(()) } else { Err(error) })?;
    measured
}
