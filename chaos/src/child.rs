//! Other programs, for as long as they may take, and what they print, as far as it may go.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// More of one stream is not kept.
const KEPT: u64 = 32 << 20;
const LOOK: Duration = Duration::from_millis(5);

/// How a program ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProgramEnd {
    pub success: bool,
    pub out: String,
    pub err: String,
}

/// Runs a program to its end; one that takes longer than `patience` is killed.
pub(crate) fn run(command: &mut Command, patience: Duration) -> Result<ProgramEnd, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    // It may print more than a pipe holds.
    let reading = thread::spawn(move || read_all(&mut out));
    let complaining = thread::spawn(move || read_all(&mut err));
    let until = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it hangs: no end after {patience:?}"));
            }
            Ok(None) => thread::sleep(LOOK),
            Err(error) => return Err(error.to_string()),
        }
    };
    let (out, err) = (reading.join().unwrap_or_default(), complaining.join().unwrap_or_default());
    Ok(ProgramEnd { success: status.success(), out, err })
}

fn read_all(from: &mut Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What could be read is what there is to show; the rest is read so that the program goes on.
        let _ = from.take(KEPT).read_to_end(&mut bytes);
        let _ = io::copy(from, &mut io::sink());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_heard_and_one_that_hangs_is_ended() {
        let patience = Duration::from_secs(60);
        let done = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), patience).unwrap();
        assert_eq!((done.success, &*done.out, &*done.err), (false, "out\n", "err\n"));
        let hung = run(Command::new("sleep").arg("600"), Duration::from_millis(20));
        assert!(hung.unwrap_err().contains("hangs"));
    }
}
