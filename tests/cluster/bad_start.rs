//! What a node says that cannot start: one sentence that names the thing, and an exit code.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::harness::{Dev, both, tillsync};
use crate::single_node::Alone;

#[test]
fn a_wrong_setting_is_named() {
    let alone = Alone::new();
    let (code, said) = alone.fails(&alone.config(1, "lost_ms = \"soon\""));
    assert_eq!(code, 2);
    assert!(said.contains("5004") && said.contains("lost_ms"), "{said}");
    let (code, said) = alone.fails(Path::new("/no/such/node.toml"));
    assert!(code == 2 && said.contains("/no/such/node.toml"), "{said}");
    assert!(!alone.data().exists(), "nothing is written");
}

#[test]
fn a_port_in_use_is_named() {
    let alone = Alone::new();
    let _held = TcpListener::bind(("127.0.0.1", alone.ports[0])).unwrap();
    let (code, said) = alone.fails(&alone.config(1, ""));
    assert_eq!(code, 2);
    assert!(said.contains("5004") && said.contains(&format!("port {}", alone.ports[0])), "{said}");
    assert!(!alone.data().exists(), "nothing is written");
}

#[test]
fn dev_names_a_port_in_use() {
    let dev = Dev::start(&[]);
    let output =
        tillsync().args(["dev", "--port", &dev.port.to_string(), "--data"]).arg(dev.path("other")).output().unwrap();
    let said = both(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("port {}", dev.port)) && said.trim_end().lines().count() == 1, "{said}");
    let output = tillsync().args(["dev", "--port", "1024", "--data"]).arg(dev.data()).output().unwrap();
    assert!(both(&output).contains("another tillsync runs on the folder"), "{}", both(&output));
}

#[test]
fn a_folder_of_another_node_or_of_a_newer_format_is_left_alone() {
    let alone = Alone::new();
    alone.run_once();
    let (code, said) = alone.fails(&alone.config(2, ""));
    assert_eq!(code, 2);
    assert!(said.contains("5004") && said.contains("belongs to node 1, this is node 2"), "{said}");

    let identity = alone.data().join("identity");
    let text = std::fs::read_to_string(&identity).unwrap();
    // Without the sum of what is damaged by nobody.
    let (lines, _) = text.split_once("sum ").unwrap();
    // A new cluster's folder is one of a newer format as soon as its version is.
    let newer = lines.replace("format 2", "format 999").replace("format 3", "format 999");
    std::fs::write(&identity, newer).unwrap();
    let (code, said) = alone.fails(&alone.config(1, ""));
    assert_eq!(code, 2);
    assert!(said.contains("5004") && said.contains("format 999"), "{said}");

    std::fs::write(&identity, text).unwrap();
    alone.run_once();
}

#[test]
fn a_damaged_folder_is_named() {
    let alone = Alone::new();
    alone.run_once();
    // The engine's own files, wherever it keeps them.
    let mut files = Vec::new();
    collect(&alone.data().join("engine"), &mut files);
    assert!(!files.is_empty());
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.iter_mut().for_each(|b| *b = !*b);
        std::fs::write(&file, bytes).unwrap();
    }
    let (code, said) = alone.fails(&alone.config(1, ""));
    assert_eq!(code, 1);
    assert!(said.contains("5001") && said.contains(&alone.data().display().to_string()), "{said}");
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

/// A command whose output nobody reads any more (`dev | head`): it does not panic, and a cluster goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_went_away_is_no_reason_to_panic() {
    let dev = Dev::start_unread();
    dev.ready().await;
    // Its supervisor says so, to nobody.
    dev.kill(&[1]);
    dev.ready().await;
    let mut status = tillsync();
    status.args(["cluster", "status", "--url", &dev.url_flag(), "--data"]).arg(dev.data());
    let mut child = status.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
}
