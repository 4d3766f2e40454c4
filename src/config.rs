//! Settings of a node: a TOML file, then the environment (`TILLSYNC_…`), then flags; the later one wins.
//!
//! Every setting is a row of [`SETTINGS`], whatever layer it comes from. A wrong one is error 5004 with its name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::NodeId;
use crate::limits;
use crate::model::background_tasks::Retention;
use crate::model::error::{Code, Error};

#[cfg(test)]
mod docs;
mod layers;
mod network;
mod rates;
mod settings;

pub use layers::{Layers, is_address};
pub use network::AddressRange;
pub use rates::{Rate, RateLimits};
pub use settings::{SETTINGS, Setting, SettingKind, setting};

/// A node's settings, complete and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node_id: NodeId,
    pub cluster_name: String,
    pub data_dir: PathBuf,
    pub key_file: PathBuf,
    pub gateway_listen: SocketAddr,
    pub gateway_tls: Option<GatewayTlsFiles>,
    /// Of web pages; empty: any.
    pub cors_origins: Vec<String>,
    pub raft_listen: SocketAddr,
    pub raft_tls: Option<RaftTls>,
    /// The founding members; empty for a node that will be added.
    pub members: Vec<Member>,
    /// Where nodes of the cluster are that this one will be added to.
    pub join: Vec<String>,
    pub raft: RaftTimes,
    pub election: ElectionTimes,
    pub presence: PresenceTimes,
    pub request_timeout: Duration,
    pub sessions: usize,
    /// The number was asked for: it is not the default.
    pub sessions_given: bool,
    /// Connections of devices, and of one address without a token.
    pub connections: usize,
    pub connections_per_address: usize,
    pub trusted_proxies: Vec<AddressRange>,
    /// What each token's subject may ask for.
    pub allowed: RateLimits,
    /// The longest life of a token that this node signs.
    pub paired_token: Duration,
    pub retention: Retention,
    /// What the log may have; half as many as a snapshot has if that is more.
    pub log_bytes: u64,
    /// Of the free room on the data folder's disk.
    pub disk: RoomThresholds,
    /// How often all data is read; zero: never.
    pub scrub_every: Duration,
    /// A call on the data folder that takes longer ends the node.
    pub flush_watchdog: Duration,
    /// Backups that the cluster takes by itself.
    pub backup: Option<BackupSettings>,
    pub log_level: String,
    pub log_format: LogFormat,
}

/// Where and when a node takes backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSettings {
    /// A folder, or `s3://BUCKET/PREFIX`.
    pub to: String,
    pub every: Duration,
    /// What came after a backup; `None`: never.
    pub incremental_every: Option<Duration>,
    /// How many backups stay there.
    pub keep: u64,
    pub verify_every: Option<Duration>,
    /// Where they are restored for a moment; `None`: in the data folder.
    pub scratch: Option<PathBuf>,
}

impl BackupSettings {
    fn from_layers(layers: &Layers) -> Result<Option<Self>, Error> {
        let unless_zero = |key: &str| layers.span(key).map(|every| (!every.is_zero()).then_some(every));
        let settings = Self {
            to: layers.text("backup_to")?,
            every: layers.span("backup_every")?,
            incremental_every: unless_zero("backup_incremental_every")?,
            keep: layers.number("backup_keep")?,
            verify_every: unless_zero("backup_verify_every")?,
            scratch: Some(layers.text("backup_scratch")?).filter(|path| !path.is_empty()).map(PathBuf::from),
        };
        Ok(Some(settings).filter(|settings| !settings.to.is_empty()))
    }
}

/// Bytes that must be free on the data folder's disk: with less, its room is low, or full (`storage::room`). 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomThresholds {
    pub low: u64,
    pub min: u64,
}

/// A node of the cluster, as the others and the devices reach it: `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub raft: String,
    pub gateway: String,
}

/// The files that the gateway's TLS is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayTlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The files that the TLS between nodes is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTimes {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

/// Of elections of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTimes {
    pub timeout: Duration,
    pub tries: u32,
    pub backoff: Duration,
    /// Entries that a candidate's node may be behind.
    pub lag: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceTimes {
    pub ping: Duration,
    pub lost: Duration,
    pub grace: Duration,
    pub rest: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// The settings that the layers give together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Error> {
        let sessions = usize::try_from(layers.number("sessions")?).unwrap_or(usize::MAX);
        let connections = match usize::try_from(layers.number("connections")?).unwrap_or(usize::MAX) {
            0 => sessions.saturating_mul(2).saturating_add(limits::CONNECTIONS_BESIDE),
            given => given,
        };
        let config = Self {
            node_id: NodeId(layers.number("node_id")?),
            cluster_name: layers.text("cluster_name")?,
            data_dir: layers.text("data_dir")?.into(),
            key_file: layers.text("key_file")?.into(),
            gateway_listen: layers.listen("gateway_listen")?,
            gateway_tls: layers
                .files(["gateway_tls_cert", "gateway_tls_key"])?
                .map(|[cert, key]| GatewayTlsFiles { cert, key }),
            cors_origins: layers.origins("cors_origins")?,
            raft_listen: layers.listen("raft_listen")?,
            raft_tls: layers.files(["raft_tls_ca", "raft_tls_cert", "raft_tls_key"])?.map(|[ca, cert, key]| RaftTls {
                ca,
                cert,
                key,
            }),
            members: layers.members("members")?,
            join: layers.addresses("join")?,
            raft: RaftTimes {
                heartbeat: layers.milliseconds("raft_heartbeat_ms")?,
                election_min: layers.milliseconds("raft_election_timeout_min_ms")?,
                election_max: layers.milliseconds("raft_election_timeout_max_ms")?,
            },
            presence: PresenceTimes {
                ping: layers.milliseconds("ping_ms")?,
                lost: layers.milliseconds("lost_ms")?,
                grace: layers.milliseconds("grace_ms")?,
                rest: layers.milliseconds("rest_presence_ms")?,
            },
            election: ElectionTimes {
                timeout: layers.milliseconds("master_election_timeout_ms")?,
                tries: u32::try_from(layers.number("master_election_tries")?).unwrap_or(u32::MAX),
                backoff: layers.milliseconds("master_election_backoff_ms")?,
                lag: layers.number("master_election_lag")?,
            },
            request_timeout: layers.milliseconds("request_timeout_ms")?,
            sessions,
            sessions_given: sessions != limits::SESSIONS,
            connections,
            connections_per_address: usize::try_from(layers.number("connections_per_address")?).unwrap_or(usize::MAX),
            trusted_proxies: layers.networks("trusted_proxies")?,
            allowed: RateLimits::from_layers(layers)?,
            paired_token: Duration::from_secs(layers.number("paired_token_hours")? * 3_600),
            retention: Retention {
                changes: layers.number("keep_changes")?,
                change_bytes: layers.number("keep_changes_mb")? << 20,
                audit_rows: layers.number("keep_audit_rows")?,
                evidence_rows: layers.number("keep_evidence_rows")?,
                conflicts: layers.number("keep_conflicts")?,
                elections: layers.number("keep_elections")?,
            },
            log_bytes: layers.number("log_mb")? << 20,
            disk: RoomThresholds { low: layers.number("disk_low_mb")? << 20, min: layers.number("disk_min_mb")? << 20 },
            scrub_every: layers.milliseconds("scrub_every_ms")?,
            flush_watchdog: layers.milliseconds("flush_watchdog_ms")?,
            backup: BackupSettings::from_layers(layers)?,
            log_level: layers.text("log_level")?,
            log_format: if layers.text("log_format")? == "json" { LogFormat::Json } else { LogFormat::Text },
        };
        config.check()?;
        Ok(config)
    }

    /// This node among the members.
    pub fn me(&self) -> Option<&Member> {
        self.members.iter().find(|m| m.id == self.node_id)
    }

    /// What no single setting can be wrong about on its own.
    fn check(&self) -> Result<(), Error> {
        match (self.members.is_empty(), self.join.is_empty()) {
            (true, true) => {
                return Err(wrong("members", "is missing, and so is join: a node founds a cluster or joins one"));
            }
            (false, false) => return Err(wrong("join", "a node that is one of the members has nothing to join")),
            _ => {}
        }
        if !self.members.is_empty() && self.me().is_none() {
            return Err(wrong("node_id", &format!("{} is not among the members", self.node_id)));
        }
        if self.raft.election_min >= self.raft.election_max {
            return Err(wrong("raft_election_timeout_min_ms", "must be less than raft_election_timeout_max_ms"));
        }
        if self.raft.heartbeat * 2 > self.raft.election_min {
            return Err(wrong("raft_heartbeat_ms", "must be at most half of raft_election_timeout_min_ms"));
        }
        if self.presence.ping >= self.presence.lost {
            return Err(wrong("ping_ms", "must be less than lost_ms"));
        }
        let Retention { changes, audit_rows, .. } = self.retention;
        if changes < audit_rows {
            let why =
                format!("must be at least keep_audit_rows ({audit_rows}): a change is kept as long as its audit row");
            return Err(wrong("keep_changes", &why));
        }
        if self.disk.min > self.disk.low {
            let low = self.disk.low >> 20;
            return Err(wrong(
                "disk_min_mb",
                &format!("must be at most disk_low_mb ({low}), below which it is warned"),
            ));
        }
        if self.gateway_listen == self.raft_listen {
            return Err(wrong("raft_listen", &format!("{} is gateway_listen as well", self.raft_listen)));
        }
        self.check_plain_text()
    }

    /// Between machines, whoever reads along or joins in without a certificate would have the whole store.
    fn check_plain_text(&self) -> Result<(), Error> {
        if self.raft_tls.is_some() {
            return Ok(());
        }
        let missing =
            |what: String| wrong("raft_tls_cert", &format!("is missing: {what} is not loopback, see `tillsync certs`"));
        if !self.raft_listen.ip().is_loopback() {
            return Err(missing(format!("raft_listen {}", self.raft_listen)));
        }
        if let Some(address) = self.join.iter().find(|address| !is_loopback(address)) {
            return Err(missing(format!("{address} in join")));
        }
        match self.members.iter().find(|m| !is_loopback(&m.raft)) {
            Some(member) => Err(missing(format!("the raft address {} of member {}", member.raft, member.id))),
            None => Ok(()),
        }
    }
}

/// Whether a `HOST:PORT` is surely on this machine. Names are not looked up: what they mean can change.
pub fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Error 5004 about a setting.
pub(crate) fn wrong(key: &str, why: &str) -> Error {
    Error::new(Code::Configuration, format!("setting {key}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        node_id = 2
        data_dir = "data"
        key_file = "token.key"
        members = [
            { id = 1, raft = "a:5100", gateway = "a:5000" },
            { id = 2, raft = "b:5100", gateway = "b:5000" },
        ]
        raft_tls_ca = "ca.crt"
        raft_tls_cert = "node-2.crt"
        raft_tls_key = "node-2.key"
    "#;

    fn read(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, Error> {
        let mut layers = Layers::default();
        layers.file("node.toml", file)?;
        layers.environment(|key| env.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned()))?;
        for (key, value) in flags {
            layers.flag(key, value)?;
        }
        Config::from_layers(&layers)
    }

    #[test]
    fn a_short_file_is_enough() {
        let config = read(FILE, &[], &[]).unwrap();
        assert_eq!(
            (config.node_id, config.members.len(), config.me().unwrap().raft.as_str()),
            (NodeId(2), 2, "b:5100")
        );
        assert_eq!(config.presence.lost, Duration::from_secs(6));
        assert_eq!(config.request_timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_node_that_joins_names_no_members() {
        let file = "node_id = 4\ndata_dir = \"d\"\nkey_file = \"k\"\n";
        let config = read(&format!("{file}join = [\"127.0.0.1:1\", \"[::1]:2\"]"), &[], &[]).unwrap();
        assert_eq!((config.join, config.members), (vec!["127.0.0.1:1".to_owned(), "[::1]:2".into()], vec![]));
        let env = [("TILLSYNC_JOIN", "127.0.0.1:1, 127.0.0.1:2")];
        assert_eq!(read(file, &env, &[]).unwrap().join, ["127.0.0.1:1", "127.0.0.1:2"]);
        let error = read(file, &[("TILLSYNC_JOIN", "a:1")], &[]).unwrap_err();
        assert!(error.message.contains("a:1 in join is not loopback"), "{}", error.message);
    }

    #[test]
    fn the_environment_beats_the_file_and_a_flag_beats_both() {
        let env = [("TILLSYNC_NODE_ID", "1"), ("TILLSYNC_PING_MS", "150"), ("TILLSYNC_LOG_FORMAT", "json")];
        let config = read(FILE, &env, &[("ping_ms", "250")]).unwrap();
        assert_eq!(
            (config.node_id, config.presence.ping, config.log_format),
            (NodeId(1), Duration::from_millis(250), LogFormat::Json)
        );
        let env = [("TILLSYNC_MEMBERS", "2=[::1]:1/h:2, 7=x:3/y:4")];
        let members = read(FILE, &env, &[]).unwrap().members;
        assert_eq!(members[0], Member { id: NodeId(2), raft: "[::1]:1".into(), gateway: "h:2".into() });
        assert_eq!(members[1].id, NodeId(7));
    }

    #[test]
    fn backups_are_taken_where_a_place_is_named() {
        assert_eq!(read(FILE, &[], &[]).unwrap().backup, None);
        let env = [("TILLSYNC_BACKUP_EVERY", "7d"), ("TILLSYNC_BACKUP_INCREMENTAL_EVERY", "0")];
        let backup =
            read(&format!("backup_to = \"s3://shop/17\"\n{FILE}"), &env, &[("backup_keep", "3")]).unwrap().backup;
        let settings = BackupSettings {
            to: "s3://shop/17".into(),
            every: Duration::from_secs(7 * 86_400),
            incremental_every: None,
            keep: 3,
            verify_every: Some(Duration::from_secs(86_400)),
            scratch: None,
        };
        assert_eq!(backup, Some(settings));
    }

    #[test]
    fn what_is_wrong_is_named_in_one_sentence() {
        let with = |line: &str| format!("{FILE}\n{line}");
        for (file, says) in [
            (with("colour = 1"), "unknown setting colour"),
            (with("lost_ms = \"soon\""), "setting lost_ms"),
            (with("lost_ms = 7"), "setting lost_ms"),
            (with("gateway_listen = \"here\""), "setting gateway_listen"),
            (with("log_format = \"xml\""), "setting log_format"),
            (with("backup_every = \"24\""), "setting backup_every: must be a time such as"),
            (with("backup_every = \"0\""), "setting backup_every: must be from 1000 ms to 366 days"),
            (with("backup_every = 24"), "setting backup_every"),
            (with("backup_to = \"ftp://a/b\""), "setting backup_to: must be a folder or s3://"),
            (with("ping_ms = 9000"), "setting ping_ms"),
            (with("keep_changes = 1000"), "setting keep_changes: must be at least keep_audit_rows"),
            (with("disk_min_mb = 2000"), "setting disk_min_mb: must be at most disk_low_mb (1024)"),
            (with("disk_low_mb = 0"), "setting disk_min_mb"),
            (with("raft_election_timeout_max_ms = 100"), "setting raft_election_timeout_min_ms"),
            (with("raft_heartbeat_ms = 99"), "setting raft_heartbeat_ms"),
            (with("raft_listen = \"127.0.0.1:5000\""), "setting raft_listen"),
            (FILE.replace("node_id = 2", "node_id = 3"), "setting node_id"),
            (with("join = [\"a:5100\"]"), "setting join"),
            ("node_id = 2\ndata_dir = \"d\"\nkey_file = \"k\"".to_owned(), "setting members"),
            ("node_id = 2\ndata_dir = \"d\"\nkey_file = \"k\"\njoin = [\"a\"]".to_owned(), "setting join"),
            (FILE.replace("node_id = 2", ""), "setting node_id"),
            (FILE.replace("id = 1", "id = 2"), "setting members"),
            (FILE.replace("a:5100", "nowhere"), "setting members"),
            (FILE.replace("raft = \"a:5100\"", "road = \"a:5100\""), "setting members"),
            (FILE.replace("raft_tls_key = \"node-2.key\"", ""), "setting raft_tls_key"),
            (with("gateway_tls_key = \"g.key\""), "setting gateway_tls_cert"),
            (with("trusted_proxies = [\"10.0.0.0/33\"]"), "setting trusted_proxies"),
            (with("trusted_proxies = [\"proxy\"]"), "setting trusted_proxies"),
            (with("connections = -1"), "setting connections"),
            (with("paired_token_hours = 8785"), "setting paired_token_hours"),
            (with("[gateway]\ntls_cert = 7"), "setting gateway_tls_cert"),
            (with("[raft.tls]\nca = \"other.crt\""), "setting raft_tls_ca"),
            (with("[gateway.tls]\ncolour = 7"), "unknown setting gateway_tls_colour"),
            ("node_id = = 2".to_owned(), "line 1"),
        ] {
            let error = read(&file, &[], &[]).unwrap_err();
            assert_eq!(error.code, Code::Configuration);
            assert!(error.message.contains(says) && !error.message.contains('\n'), "{}", error.message);
        }
        let error = read(FILE, &[("TILLSYNC_LOST_MS", "x")], &[]).unwrap_err();
        assert!(error.message.contains("TILLSYNC_LOST_MS"), "{}", error.message);
    }

    #[test]
    fn plain_text_between_nodes_is_for_loopback_only() {
        let plain = |listen: &str, peer: &str| {
            let file = format!(
                "node_id = 1\ndata_dir = \"d\"\nkey_file = \"k\"\nraft_listen = \"{listen}\"\nmembers = [\
                 {{ id = 1, raft = \"localhost:1\", gateway = \"a:1\" }}, {{ id = 2, raft = \"{peer}\", gateway = \"b:1\" }}]"
            );
            read(&file, &[], &[]).map(|_| ()).map_err(|e| e.message)
        };
        assert_eq!(plain("127.0.0.1:5100", "[::1]:5101"), Ok(()));
        assert_eq!(plain("[::1]:5100", "127.8.0.1:5101"), Ok(()));
        for (listen, peer, names) in [
            ("0.0.0.0:5100", "127.0.0.1:5101", "raft_listen 0.0.0.0:5100"),
            ("10.0.0.1:5100", "127.0.0.1:5101", "raft_listen 10.0.0.1:5100"),
            ("127.0.0.1:5100", "10.0.0.2:5101", "10.0.0.2:5101 of member 2"),
            ("127.0.0.1:5100", "till-2:5101", "till-2:5101 of member 2"),
        ] {
            let error = plain(listen, peer).unwrap_err();
            assert!(error.contains("setting raft_tls_cert") && error.contains(names), "{error}");
        }
    }

    #[test]
    fn a_table_is_the_beginning_of_the_keys_in_it() {
        let config = read(&format!("{FILE}\n[gateway.tls]\ncert = \"g.crt\"\nkey = \"g.key\""), &[], &[]).unwrap();
        assert_eq!(config.gateway_tls, Some(GatewayTlsFiles { cert: "g.crt".into(), key: "g.key".into() }));
        assert_eq!(read(FILE, &[], &[]).unwrap().gateway_tls, None);
        let env = [("TILLSYNC_GATEWAY_TLS_CERT", "e.crt"), ("TILLSYNC_GATEWAY_TLS_KEY", "e.key")];
        assert_eq!(read(FILE, &env, &[]).unwrap().gateway_tls.unwrap().cert, PathBuf::from("e.crt"));
    }

    #[test]
    fn every_default_is_a_value_of_its_setting() {
        let config = read(FILE, &[], &[]).unwrap();
        assert_eq!(config.gateway_listen.port(), 5000);
        assert_eq!(config.retention, Retention::default());
        assert_eq!(config.paired_token, limits::PAIRED_TOKEN);
        assert_eq!(config.disk, RoomThresholds { low: limits::DISK_LOW_MB << 20, min: limits::DISK_MIN_MB << 20 });
        for (i, row) in SETTINGS.iter().enumerate() {
            assert!(!SETTINGS[..i].iter().any(|s| s.key == row.key), "{} is there twice", row.key);
        }
    }
}
