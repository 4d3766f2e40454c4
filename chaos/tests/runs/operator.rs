//! What an operator does: faults in a running cluster, hooks, and the drill, on real nodes.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{both, chaos, tillsync};

const PATIENCE: Duration = Duration::from_secs(120);

/// It did what it was asked; what it said.
fn done(args: &[&str]) -> String {
    let out = chaos(args);
    assert!(out.status.success(), "{args:?}: {}", both(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// It could not; why.
fn refused(args: &[&str]) -> String {
    let out = chaos(args);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// `tillsync dev` on ports of its own; gone when dropped.
struct Dev {
    child: Child,
    folder: tempfile::TempDir,
    urls: String,
}

impl Dev {
    fn start() -> Self {
        for attempt in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let begin = 14_000 + (std::process::id() as u16 % 900) * 6 + attempt * 601;
            let free = |port: &u16| (0..3).all(|step| TcpListener::bind(("127.0.0.1", port + step)).is_ok());
            let port = (begin..begin + 600).step_by(3).find(free).unwrap();
            let log = folder.path().join("dev.log");
            let mut command = Command::new(tillsync());
            command.args(["dev", "--port", &port.to_string(), "--data"]).arg(folder.path().join("data"));
            command.stdin(Stdio::null()).stdout(fs::File::create(&log).unwrap()).stderr(Stdio::null());
            let urls = [0, 1, 2].map(|step| format!("http://127.0.0.1:{}", port + step)).join(",");
            let mut dev = Self { child: command.spawn().unwrap(), folder, urls };
            let end = Instant::now() + PATIENCE;
            while dev.child.try_wait().unwrap().is_none() && Instant::now() < end {
                if fs::read_to_string(&log).unwrap().contains("Tillsync runs") {
                    return dev;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("tillsync dev does not start");
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn pid(&self, node: u64) -> String {
        fs::read_to_string(self.folder.path().join(format!("data/node-{node}/pid"))).unwrap().trim().to_owned()
    }

    /// Stopped by SIGSTOP.
    fn stands(&self, node: u64) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid(node))).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    }
}

/// A process in the middle of a write stops when that is done.
fn soon(what: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !what() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

impl Drop for Dev {
    fn drop(&mut self) {
        // A node that stands still would not hear that it is to end.
        for node in 1..=3 {
            let _ = Command::new("kill").args(["-CONT", &self.pid(node)]).status();
        }
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap()
}

/// Nothing was lost. How long writes paused hangs on the machine, so that is not asked here.
fn nothing_lost(report: &Value) {
    let broken: Vec<&str> = report["broken"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(broken.iter().all(|name| *name == "availability"), "{broken:?}: {report:#}");
    for name in ["exactly_once", "one_log", "linearizable", "masters"] {
        let found = report["invariants"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        assert!(found["checked"].as_u64().unwrap() > 10, "{found}");
    }
}

#[test]
fn a_drill_breaks_a_cluster_in_every_way_and_finds_every_sale() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let program = tillsync();
    let run =
        chaos(&["drill", "--minutes", "0.2", "--binary", program.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(matches!(run.status.code(), Some(0 | 1)), "{said}");
    let report = report(&out);
    nothing_lost(&report);
    let mut names: Vec<&str> =
        report["faults"].as_array().unwrap().iter().map(|band| band["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    let all = ["freeze most", "freeze the leader", "handover", "kill all", "kill another", "kill the leader"];
    assert_eq!(names, [&all[..], &["rolling restart"]].concat(), "{said}");
    assert!(said.contains("The power fails") && said.contains("longest time without a sale"), "{said}");
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("The nodes' logs"));
}

#[test]
fn faults_and_hooks_strike_a_running_cluster_and_are_taken_back() {
    let dev = Dev::start();
    let data = dev.data();

    // Not unasked, and not what is not there.
    assert!(refused(&["inject", "kill", "--data", &data, "--node", "1"]).contains("--yes"));
    assert!(refused(&["inject", "kill", "--data", &data, "--node", "7", "--yes"]).contains("no node 7"));
    assert!(refused(&["inject", "transfer", "--data", &data, "--node", "all", "--yes"]).contains("one node only"));
    let before = dev.pid(1);
    assert!(done(&["inject", "stop", "--data", &data, "--node", "1,2", "--yes"]).contains("no majority"));
    assert!(soon(|| dev.stands(1) && dev.stands(2)) && !dev.stands(3));
    assert!(done(&["heal", "--data", &data]).contains("all 3 nodes are well"));
    assert_eq!((dev.stands(1), dev.pid(1)), (false, before.clone()));
    done(&["inject", "kill", "--data", &data, "--node", "1", "--yes"]);
    done(&["heal", "--data", &data]);
    assert_ne!(dev.pid(1), before, "`tillsync dev` has started it again");
    let before = dev.pid(2);
    done(&["inject", "restart", "--data", &data, "--node", "2", "--yes"]);
    assert_ne!(dev.pid(2), before);
    let moved = chaos(&["inject", "transfer", "--data", &data, "--node", "3", "--yes"]);
    // It may have come to lead by itself.
    assert!(moved.status.success() || String::from_utf8_lossy(&moved.stderr).contains("leads already"), "{moved:?}");

    // A command that fails is said; what it may have broken is healed all the same.
    let hooks = dev.folder.path().join("hooks.toml");
    let mark = dev.folder.path().join("healed");
    let stop = format!("kill -STOP $(cat {data}/node-$CHAOS_LEADER/pid)");
    let go_on = format!("kill -CONT $(cat {data}/node-*/pid)");
    let write = |lasts: u64| {
        let text = format!(
            "[[fault]]\nname = \"no such\"\ninject = \"echo no machine; exit 3\"\nheal = \"touch {}\"\n\
             [[fault]]\nname = \"hang\"\ninject = \"{stop}\"\nheal = \"{go_on}\"\nfor = {lasts}\n",
            mark.display()
        );
        fs::write(&hooks, text).unwrap();
    };
    write(1);
    let out = dev.folder.path().join("out");
    let args = ["target", "--url", &dev.urls, "--data", &data, "--hooks", hooks.to_str().unwrap(), "--slot", "1"];
    let args = [&args[..], &["--out", out.to_str().unwrap()]].concat();
    assert!(refused(&args).contains("--yes"));
    let token = fs::read_to_string(Path::new(&data).join("admin.token")).unwrap();
    let run = ["run", hooks.to_str().unwrap(), "--target", &dev.urls, "--token", token.trim()];
    let run = [&run[..], &["--dir", out.to_str().unwrap()]].concat();
    assert!(refused(&run).contains("--yes"));
    assert!(String::from_utf8_lossy(&chaos(&run).stdout).contains("echo no machine"), "it shows what it will do");
    assert!(refused(&["run", "--target", &dev.urls]).contains("SCENARIO"));
    assert!(!out.exists());
    let args = [&args[..], &["--yes"]].concat();
    assert!(refused(&args).contains("no such could not be done"), "the exit code says that not all was done");
    assert!(mark.exists());
    let played = report(&out);
    nothing_lost(&played);
    assert_eq!(played["faults"][0]["name"], "hang");

    // Interrupted, it heals first.
    write(1_000);
    let mut child = Command::new(env!("CARGO_BIN_EXE_chaos"));
    let mut child =
        child.args(&args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while !(1..=3).any(|node| dev.stands(node)) {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "no node was stopped");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(said.contains("stopped before the end"), "{said}");
    assert!((1..=3).all(|node| !dev.stands(node)));
    nothing_lost(&report(&out));
}

#[test]
fn the_doctor_says_what_is_there_and_what_is_used_instead() {
    let lines: Value = serde_json::from_str(&done(&["doctor", "--json"])).unwrap();
    let lines = lines.as_array().unwrap();
    for name in ["root", "network namespaces", "FUSE", "libfaketime", "browser", "disk"] {
        let line = lines.iter().find(|line| line["name"] == name).unwrap();
        assert!(line["there"].is_boolean());
        for part in ["found", "for", "instead"] {
            assert!(!line[part].as_str().unwrap().is_empty(), "{line}");
        }
    }
    assert!(done(&["doctor"]).contains("for: "));
}
