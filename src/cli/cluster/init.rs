//! `tillsync cluster init`: the files of a new cluster's first node.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::ClusterInitArgs;
use crate::cli::{CliResult, CommandError};
use crate::token::make_key_file;

pub(super) fn execute(args: &ClusterInitArgs) -> CliResult {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| CommandError::new(format!("{path}: {e}"))
    };
    fs::create_dir_all(&args.dir).map_err(failed(&args.dir))?;
    let dir = fs::canonicalize(&args.dir).map_err(failed(&args.dir))?;
    let (key, settings) = (dir.join("token.key"), dir.join("node.toml"));
    let text = node_toml(args, &dir)?;
    // Never over the settings of a node that is there.
    let file = OpenOptions::new().write(true).create_new(true).open(&settings);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed(&settings))?;
    make_key_file(&key).map_err(failed(&key))?;
    if !args.raft.ip().is_loopback() {
        let dir = dir.display();
        say!("Nodes on other machines need certificates. Make this node's, and those of the others, in {dir}:\n");
        say!("  tillsync certs init --dir {dir} --cluster {:?}", args.name);
        say!("  tillsync certs issue 1 --dir {dir}\n");
    }
    say!("The first node of cluster {:?} can be started:\n", args.name);
    say!("  tillsync serve --config {}", settings.display());
    say!("  tillsync token issue --class admin --sub admin --key {}\n", key.display());
    say!("Another node needs a copy of {} and, in place of `members`,", key.display());
    say!("  node_id = 2\n  join = [\"{}\"]\n", args.raft);
    say!(
        "Start it, then: tillsync cluster add --id 2 --raft HOST:PORT --gateway HOST:PORT --url http://{}",
        args.gateway
    );
    Ok(())
}

fn node_toml(args: &ClusterInitArgs, dir: &Path) -> CliResult<String> {
    let quoted = |path: &Path| -> CliResult<String> {
        let text = path.to_str().ok_or_else(|| CommandError::usage(format!("{} is not UTF-8", path.display())))?;
        // A JSON text is a TOML text.
        Ok(serde_json::Value::from(text).to_string())
    };
    let (data, key) = (quoted(&dir.join("data"))?, quoted(&dir.join("token.key"))?);
    let tls = if args.raft.ip().is_loopback() {
        String::new()
    } else {
        let file = |name: &str| quoted(&dir.join(name));
        let (ca, cert, key) = (file("ca.crt")?, file("node-1.crt")?, file("node-1.key")?);
        format!("\n# Made with `tillsync certs`.\n[raft.tls]\nca = {ca}\ncert = {cert}\nkey = {key}\n")
    };
    let (name, raft, gateway) = (serde_json::Value::from(args.name.as_str()), args.raft, args.gateway);
    Ok(format!(
        "# The first node of a cluster. Later members are added with `tillsync cluster add`.\n\
         # Nodes on other machines need certificates (raft_tls_ca, raft_tls_cert, raft_tls_key): docs/operating.md.\n\
         node_id = 1\ncluster_name = {name}\ndata_dir = {data}\nkey_file = {key}\n\
         gateway_listen = \"{gateway}\"\nraft_listen = \"{raft}\"\n\
         members = [{{ id = 1, raft = \"{raft}\", gateway = \"{gateway}\" }}]\n{tls}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};

    fn settings(raft: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let (raft, gateway) = (raft.parse().unwrap(), "127.0.0.1:5000".parse().unwrap());
        let args = ClusterInitArgs { dir: dir.path().to_owned(), name: "store-17".into(), raft, gateway };
        let mut layers = Layers::default();
        layers.file("node.toml", &node_toml(&args, Path::new("/etc/tillsync")).unwrap()).unwrap();
        Config::from_layers(&layers).unwrap()
    }

    #[test]
    fn a_node_that_others_reach_has_certificates_in_its_settings() {
        assert!(settings("127.0.0.1:5100").raft_tls.is_none());
        let tls = settings("10.0.17.1:5100").raft_tls.unwrap();
        assert_eq!(tls.cert, Path::new("/etc/tillsync/node-1.crt"));
    }

    #[test]
    fn what_it_writes_is_a_configuration_and_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let args = ClusterInitArgs {
            dir: dir.path().join("one"),
            name: "store \"17\"".into(),
            raft: "127.0.0.1:5100".parse().unwrap(),
            gateway: "127.0.0.1:5000".parse().unwrap(),
        };
        execute(&args).unwrap();
        let mut layers = Layers::default();
        layers.file("node.toml", &fs::read_to_string(args.dir.join("node.toml")).unwrap()).unwrap();
        let config = Config::from_layers(&layers).unwrap();
        assert_eq!(
            (config.cluster_name.as_str(), config.me().unwrap().raft.as_str()),
            ("store \"17\"", "127.0.0.1:5100")
        );
        assert!(crate::token::KeyRing::read(&config.key_file).is_ok());
        assert!(execute(&args).unwrap_err().message.contains("node.toml"));
    }
}
