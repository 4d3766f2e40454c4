//! The key file of a running node: what changes in it is taken over, so that keys are changed without a restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::token::KeyRing;

/// How often the file is looked at. It is a few lines; a file system that tells of changes is not everywhere.
const LOOK: Duration = Duration::from_millis(500);

/// Follows the file until `stop`. A file that cannot be used changes nothing, and is told once.
pub(super) async fn follow(keys: KeyRing, path: PathBuf, stop: CancellationToken) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What the node started with was read a moment ago; reading it again changes nothing.
    let mut last = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = stop.cancelled() => return,
        }
        let text = tokio::fs::read_to_string(&path).await.map_err(|e| e.to_string());
        if last.as_ref() != Some(&text) {
            take_over(&keys, &path, &text, last.is_none());
            last = Some(text);
        }
    }
}

fn take_over(keys: &KeyRing, path: &Path, text: &Result<String, String>, first: bool) {
    match text.as_ref().map_err(Clone::clone).and_then(|t| KeyRing::parse(t)) {
        Ok(read) => {
            keys.replace(&read);
            if !first {
                tracing::info!(path = %path.display(), "the keys of tokens were changed");
            }
        }
        Err(why) => {
            tracing::warn!(path = %path.display(), "the key file cannot be used, the keys stay as they are: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UnixMs;
    use crate::token::Class;

    #[tokio::test]
    async fn a_change_is_taken_over_and_a_bad_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token.key");
        let (a, b) = ("aa".repeat(32), "bb".repeat(32));
        std::fs::write(&path, &a).unwrap();
        let keys = KeyRing::read(&path).unwrap();
        let (token, claims) = keys.issue("d", Class::Admin, UnixMs(0), 60).unwrap();
        let stop = CancellationToken::new();
        let following = tokio::spawn(follow(keys.clone(), path.clone(), stop.clone()));
        let changed = |want: bool| {
            let (keys, claims) = (keys.clone(), claims.clone());
            async move {
                for _ in 0..100 {
                    if keys.holds(&claims) != want {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                assert_eq!(keys.holds(&claims), want);
            }
        };
        std::fs::write(&path, format!("{b}\n{a}")).unwrap();
        while keys.issue("d", Class::Admin, UnixMs(0), 60).unwrap().1.key == claims.key {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(keys.verify(&token, UnixMs(0)).is_ok(), "both keys are valid");
        std::fs::write(&path, "nonsense").unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert!(keys.verify(&token, UnixMs(0)).is_ok(), "a bad file changes nothing");
        std::fs::write(&path, b).unwrap();
        changed(false).await;
        stop.cancel();
        following.await.unwrap();
    }
}
