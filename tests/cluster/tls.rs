//! Certificates from the command line to the devices, on one real node.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tillsync::client::link::{ClientLink, ClientTransport};
use tillsync::client::rest::RestClient;
use tillsync::client::{NodeUrl, Trust};

use crate::harness::{PATIENCE, both, succeeds, tillsync};
use crate::single_node::Alone;

fn certs(args: &[&str], dir: &Path) -> Command {
    let mut command = tillsync();
    command.arg("certs").args(args).arg("--dir").arg(dir);
    command
}

/// The TLS lines of a node's settings.
fn tls(alone: &Alone) -> String {
    let path = |name: &str| format!("{:?}", alone.path("certs").join(name));
    let (ca, cert, key) = (path("ca.crt"), path("node-1.crt"), path("node-1.key"));
    format!("[raft.tls]\nca = {ca}\ncert = {cert}\nkey = {key}\n[gateway.tls]\ncert = {cert}\nkey = {key}")
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn certificates_are_made_once_and_private() {
    let alone = Alone::new();
    let dir = alone.path("certs");
    succeeds(&mut certs(&["init", "--cluster", "one"], &dir));
    let again = certs(&["init"], &dir).output().unwrap();
    assert!(again.status.code() == Some(2) && both(&again).contains("there already"), "{}", both(&again));
    succeeds(&mut certs(&["issue", "1", "--host", "till-1,10.0.0.1"], &dir));
    let again = certs(&["issue", "1"], &dir).output().unwrap();
    assert!(again.status.code() == Some(2) && both(&again).contains("--replace"), "{}", both(&again));
    let first = std::fs::read_to_string(dir.join("node-1.crt")).unwrap();
    succeeds(&mut certs(&["issue", "1", "--replace"], &dir));
    assert_ne!(std::fs::read_to_string(dir.join("node-1.crt")).unwrap(), first);
    let wrong = certs(&["issue", "2", "--host", "not a name"], &dir).output().unwrap();
    assert!(both(&wrong).contains("neither a host name nor an IP address"), "{}", both(&wrong));
    // The key of another CA: nothing is made.
    succeeds(&mut certs(&["init"], &alone.path("other")));
    std::fs::copy(alone.path("other").join("ca.key"), dir.join("ca.key")).unwrap();
    let mixed = certs(&["issue", "3"], &dir).output().unwrap();
    assert!(mixed.status.code() == Some(2) && both(&mixed).contains("no certificate was made"), "{}", both(&mixed));
    assert!(!dir.join("node-3.crt").exists() && !dir.join("node-3.key").exists());
    #[cfg(unix)]
    for key in ["ca.key", "node-1.key"] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(dir.join(key).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_node_without_its_certificates_does_not_start() {
    let alone = Alone::new();
    let dir = alone.path("certs");
    // On loopback, but its peer is not.
    let path = alone.config(1, "");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("}]", "}, { id = 2, raft = \"192.0.2.1:1\", gateway = \"192.0.2.1:2\" }]"))
        .unwrap();
    let (code, said) = alone.fails(&path);
    assert!(code == 2 && said.contains("5004") && said.contains("setting raft_tls_cert"), "{said}");
    let (code, said) = alone.fails(&alone.config(1, &tls(&alone)));
    assert!(code == 2 && said.contains("5004") && said.contains("setting raft_tls_ca"), "{said}");
    succeeds(&mut certs(&["init"], &dir));
    succeeds(&mut certs(&["issue", "2"], &dir));
    for end in ["crt", "key"] {
        std::fs::copy(dir.join(format!("node-2.{end}")), dir.join(format!("node-1.{end}"))).unwrap();
    }
    let (code, said) = alone.fails(&alone.config(1, &tls(&alone)));
    assert!(code == 2 && said.contains("5004") && said.contains("is not that of node 1"), "{said}");
    assert!(!alone.data().exists(), "nothing is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_speak_tls_to_the_gateway() {
    let alone = Alone::new();
    let dir = alone.path("certs");
    succeeds(&mut certs(&["init"], &dir));
    succeeds(&mut certs(&["issue", "1"], &dir));
    let mut serve = tillsync();
    let config = alone.config(1, &tls(&alone));
    serve.args(["serve", "--stop-with-stdin", "--config"]).arg(&config);
    let _node = Running(serve.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());

    let authority = format!("localhost:{}", alone.ports[0]);
    let url = format!("https://{authority}");
    let ca = dir.join("ca.crt");
    let health = |ready: bool| {
        let mut command = tillsync();
        command.args(["health", "--url", &url, "--ca"]).arg(&ca).args(ready.then_some("--ready"));
        command
    };
    let end = Instant::now() + PATIENCE;
    while !health(true).output().unwrap().status.success() {
        assert!(Instant::now() < end, "{}", both(&health(true).output().unwrap()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(succeeds(&mut health(false)).contains("ok"));
    // By the node's own settings, which say whom to ask and whom to trust.
    let by_settings = |ready: bool| {
        let mut command = tillsync();
        command.args(["health", "--config"]).arg(&config).args(ready.then_some("--ready"));
        command
    };
    assert!(succeeds(&mut by_settings(true)).contains("ready") && succeeds(&mut by_settings(false)).contains("ok"));

    let mut issue = tillsync();
    issue.args(["token", "issue", "--class", "admin", "--sub", "boss", "--key"]).arg(alone.path("token.key"));
    let token = String::from_utf8(issue.output().unwrap().stdout).unwrap().trim().to_owned();
    let mut status = tillsync();
    let status = status.args(["cluster", "status", "--url", &url, "--token", &token, "--ca"]).arg(&ca);
    assert!(succeeds(status).contains(&url));

    // Every command that an operator has, over TLS.
    let run = |words: &[&str]| {
        let mut command = tillsync();
        command.args(words).args(["--url", &url, "--token", &token, "--ca"]).arg(&ca);
        command
    };
    let itself = run(&["cluster", "transfer", "1"]).output().unwrap();
    assert!(itself.status.code() == Some(1) && both(&itself).contains("node 1 leads already"), "{}", both(&itself));
    let last = run(&["cluster", "remove", "1"]).output().unwrap();
    assert!(last.status.code() == Some(1) && both(&last).contains("last voter"), "{}", both(&last));
    let nobody = ["cluster", "add", "--id", "2", "--raft", "127.0.0.1:1", "--gateway", "127.0.0.1:2", "--timeout", "1"];
    let nobody = run(&nobody).output().unwrap();
    assert!(nobody.status.code() == Some(1) && both(&nobody).contains("refused it"), "{}", both(&nobody));
    succeeds(&mut run(&["device", "ls"]));
    succeeds(&mut run(&["access", "ls"]));
    succeeds(run(&["export"]).arg(alone.path("all.db")));
    succeeds(run(&["backup"]).arg(alone.path("backups")));

    let node = NodeUrl::trusting(&url, Some(&Trust::read(&ca).unwrap())).unwrap();
    // Kept: what a connection that ends at once had sent may be lost with it.
    let mut links = Vec::new();
    for (transport, record) in [(ClientTransport::Ws, 1), (ClientTransport::Socketio, 2)] {
        let mut link = ClientLink::connect(transport, &node, &token).await.unwrap();
        link.send("device_online", r#"{"device_id": "boss"}"#).await.unwrap();
        let update = format!(
            r#"{{"device_id": "boss", "table_name": "t", "record_id": {record}, "operation": "insert", "new_data": {{}}}}"#
        );
        link.send("data_update", &update).await.unwrap();
        links.push(link);
    }
    let rest = RestClient::new(&token).unwrap();
    while rest.status(&node).await.unwrap().head_seq < 2 {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Whoever trusts another CA, or speaks plain text, gets nowhere.
    succeeds(&mut certs(&["init"], &alone.path("other")));
    let stranger = Trust::read(&alone.path("other").join("ca.crt")).unwrap();
    let error = rest.status(&NodeUrl::trusting(&url, Some(&stranger)).unwrap()).await.unwrap_err();
    assert!(error.is_passing(), "{error}");
    assert!(rest.status(&NodeUrl::plain(authority)).await.is_err());
    // Settings that name another certificate than the one that is shown.
    let renamed = alone.path("other-node.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    succeeds(&mut certs(&["issue", "1"], &alone.path("other")));
    std::fs::write(&renamed, text.replace("certs", "other")).unwrap();
    let other = tillsync().args(["health", "--config"]).arg(&renamed).output().unwrap();
    assert!(other.status.code() == Some(1), "{}", both(&other));
    let bare = tillsync().args(["health", "--url", &url]).output().unwrap();
    assert!(bare.status.code() == Some(2) && both(&bare).contains("--ca"), "{}", both(&bare));
}
