//! Commands with a bound on their time and on what they say.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

/// Kept of what a command says.
const SAID: usize = 16 << 10;
/// What it left running in the background may hold its output open.
const LINGER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct ShellResult {
    pub ok: bool,
    /// `exit status: 1`
    pub how: String,
    pub text: String,
}

impl ShellResult {
    /// The last line that says anything.
    pub(super) fn last_line(&self) -> &str {
        self.text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("")
    }
}

/// All that a command started, ended when this is dropped.
struct ProcessGroup(Option<i32>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // SAFETY: a plain system call; the group is that of a child which was not waited for yet.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
        }
    }
}

/// A line for the shell, with these variables.
pub(super) fn line(line: &str, env: &[(&str, String)]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).envs(env.iter().map(|(name, value)| (*name, value)));
    command
}

/// Runs it to its end. An error: it could not be started, or did not end in time and was killed, with all it started.
pub(super) async fn run(mut command: Command, within: Duration) -> Result<ShellResult, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(|error| error.to_string())?;
    let mut group = ProcessGroup(child.id().and_then(|pid| i32::try_from(pid).ok()));
    let out = tokio::spawn(read(child.stdout.take()));
    let err = tokio::spawn(read(child.stderr.take()));
    let status = match timeout(within, child.wait()).await {
        Ok(status) => status.map_err(|error| error.to_string())?,
        Err(_) => {
            drop(group);
            let _ = timeout(LINGER, child.wait()).await;
            return Err(format!("it did not end within {} s and was killed", within.as_secs_f64()));
        }
    };
    group.0 = None;
    let mut text = String::new();
    for said in [out, err] {
        if let Ok(Ok(said)) = timeout(LINGER, said).await {
            text += &String::from_utf8_lossy(&said);
        }
    }
    Ok(ShellResult { ok: status.success(), how: status.to_string(), text })
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), [0; 4 << 10]);
    let Some(mut from) = from else { return kept };
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        // Read on: who cannot write waits.
        kept.extend_from_slice(&piece[..count.min(SAID - kept.len())]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_bounded_in_time_and_output() {
        let said = run(line("echo $WHO; exit 3", &[("WHO", "till".into())]), Duration::from_secs(20)).await.unwrap();
        assert_eq!((said.ok, said.last_line()), (false, "till"));
        let said = run(line("yes | head -c 1000000", &[]), Duration::from_secs(20)).await.unwrap();
        assert!(said.ok && said.text.len() == SAID, "{}", said.text.len());

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        // What it starts goes with it.
        let forever = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let late = run(line(&forever, &[]), Duration::from_millis(300)).await.unwrap_err();
        assert!(late.contains("did not end within 0.3 s"), "{late}");
        let pid = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..500 {
            match std::fs::read_to_string(&stat) {
                Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => return,
            }
        }
        panic!("the process {pid} lives on");
    }
}
