//! The report of a run: made, made again, and opened in a browser.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn chaos(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chaos")).args(args).output().unwrap()
}

/// A simulated run with several faults.
fn simulated(folder: &Path) -> PathBuf {
    let dir = folder.join("run");
    let ran = chaos(&["sim", "--replay", "6", "--report", dir.to_str().unwrap()]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    dir
}

#[test]
fn a_runs_folder_is_checked_and_its_reports_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = simulated(folder.path());
    let path = dir.to_str().unwrap();
    assert!(chaos(&["check", path]).status.success());
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("Nothing was lost."));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(json["holds"], true);
    for report in ["report.html", "report.json"] {
        std::fs::remove_file(dir.join(report)).unwrap();
    }
    assert!(chaos(&["report", path]).status.success());
    assert_eq!(std::fs::read_to_string(dir.join("report.html")).unwrap(), page);

    // A change that was acknowledged, and is not there.
    let history = dir.join("history.jsonl");
    let text = std::fs::read_to_string(&history).unwrap();
    std::fs::write(&history, text.replacen("\"version\":", "\"version\":9", 1)).unwrap();
    assert_eq!(chaos(&["check", path]).status.code(), Some(1));
    assert_eq!(chaos(&["report", path]).status.code(), Some(1));
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("BROKEN: data was lost") && page.contains("sim --replay 6"));

    let nowhere = chaos(&["report", folder.path().to_str().unwrap()]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("history.jsonl"));
}

/// A browser of Chromium's family, if there is one.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.is_file())
}

/// The page as it stands after its script ran, and what it said on the console.
fn opened(browser: &Path, page: &Path) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().unwrap();
    let out = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&out.stdout).into_owned(), console)
}

#[test]
fn the_page_opens_in_a_browser_without_errors() {
    let Some(browser) = browser() else {
        return eprintln!("SKIPPED: no Chromium on this machine, so the page was not opened in a browser");
    };
    let folder = tempfile::tempdir().unwrap();
    let page = simulated(folder.path()).join("report.html");
    let (dom, console) = opened(&browser, &page);
    assert_eq!(console, [""; 0], "the console stays empty");
    // The script has put the first moment into words.
    let reading = dom.split_once("aria-live=\"polite\">").unwrap().1;
    assert!(reading.starts_with("0.000 s to "), "{}", &reading[..200]);

    // An error would have been seen.
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, text.replace("id=\"reading\"", "id=\"gone\"")).unwrap();
    let (_, console) = opened(&browser, &page);
    assert!(console.iter().any(|line| line.contains("TypeError")), "{console:?}");
}
