//! The flags of every command that talks to a cluster.

use std::path::{Path, PathBuf};

use clap::Args;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::CommandError;
use super::waiting::nobody_answered;
use crate::client::rest::RestClient;
use crate::client::{ClusterTarget, NodeUrl, Trust};

/// Where the cluster is and who asks: the flags of every command that talks to one.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// The nodes, e.g. https://10.0.0.1:5000; repeat it or separate by commas. Default: those of `tillsync dev`
    #[arg(long = "url", value_name = "URL", value_delimiter = ',', env = "TILLSYNC_URL")]
    pub urls: Vec<String>,
    /// The token. Default: the admin token that `tillsync dev` left in its data folder
    #[arg(long, value_name = "TOKEN", env = "TILLSYNC_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file that holds the token: other users of the machine do not see it, as they do the one in --token
    #[arg(long, value_name = "FILE", env = "TILLSYNC_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The CA of the nodes' certificates, for URLs with https (`certs init` makes a ca.crt)
    #[arg(long, value_name = "FILE", env = "TILLSYNC_CA")]
    pub ca: Option<PathBuf>,
    /// The data folder of `tillsync dev`, for its token
    #[arg(long, value_name = "DIR", default_value = "./tillsync-data")]
    pub data: PathBuf,
}

impl TargetArgs {
    pub fn resolve(&self) -> Result<ClusterTarget, CommandError> {
        let trust = self.ca.as_deref().map(Trust::read).transpose()?;
        let mut nodes = Vec::new();
        for url in &self.urls {
            nodes.push(NodeUrl::trusting(url, trust.as_ref())?);
        }
        if nodes.is_empty() {
            for port in 5000..5003 {
                nodes.push(NodeUrl::plain(format!("127.0.0.1:{port}")));
            }
        }
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.trim().to_owned(),
            (None, Some(file)) => read_token(file)?,
            (None, None) => {
                let path = self.data.join("admin.token");
                std::fs::read_to_string(&path).map(|t| t.trim().to_owned()).map_err(|e| {
                    CommandError::new(format!(
                        "no --token-file or --token given, and {} cannot be read: {e}",
                        path.display()
                    ))
                })?
            }
        };
        Ok(ClusterTarget { nodes, token })
    }
}

/// The token in a file.
pub fn read_token(file: &Path) -> Result<String, CommandError> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| CommandError::usage(format!("the token file {} cannot be read: {e}", file.display())))?;
    match text.trim() {
        "" => Err(CommandError::usage(format!("the token file {} is empty", file.display()))),
        token => Ok(token.to_owned()),
    }
}

/// Asks one node after the other until one has answered: for what is the same done twice.
pub async fn ask_any<T: DeserializeOwned>(
    target: &ClusterTarget,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<T, CommandError> {
    let rest = RestClient::new(&target.token)?;
    let mut reasons = Vec::new();
    for node in &target.nodes {
        match rest.call(node, method.clone(), path, body).await {
            Ok(done) => return Ok(done),
            Err(error) if error.is_passing() => reasons.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(nobody_answered(&reasons))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("till.token");
        let args = |token_file| TargetArgs {
            urls: vec!["h:1".into()],
            token: None,
            token_file: Some(token_file),
            ca: None,
            data: dir.path().to_owned(),
        };
        std::fs::write(&file, "  abc.def.ghi\n").unwrap();
        assert_eq!(args(file.clone()).resolve().ok().map(|target| target.token).as_deref(), Some("abc.def.ghi"));
        std::fs::write(&file, "\n").unwrap();
        assert!(args(file).resolve().err().is_some_and(|why| why.message.contains("is empty") && why.exit == 2));
        assert!(args(dir.path().join("none")).resolve().is_err());
    }
}
