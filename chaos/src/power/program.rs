//! A program that runs on the disk until the power goes, it ends by itself, or it hangs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::device::BlockDevice;
use super::events::{ProgramEvent, QUEUE};
use crate::starter;

/// The longest line that a program may say.
const LINE: u64 = 64 << 10;

/// How a life of a program ended. It is dead in any case.
#[derive(Debug)]
pub(super) enum ProgramDeath {
    PowerLost,
    Exited(ExitStatus),
    /// It was given so long, and lived on.
    TimeOver,
}

pub(super) struct Program {
    child: Child,
    reader: Option<JoinHandle<()>>,
    events: Receiver<ProgramEvent>,
}

/// Where the disk and the program report to.
pub(super) fn channel() -> (SyncSender<ProgramEvent>, Receiver<ProgramEvent>) {
    sync_channel(QUEUE)
}

impl Program {
    /// What it says on its error output goes to the end of `log`.
    pub(super) fn start(
        mut command: Command,
        log: &Path,
        (to, events): (SyncSender<ProgramEvent>, Receiver<ProgramEvent>),
    ) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        starter::signal_at_our_end(&mut command, libc::SIGKILL);
        let mut child = command.spawn()?;
        let output = child.stdout.take();
        let reader = std::thread::spawn(move || {
            if let Some(output) = output {
                listen(BufReader::new(output), &to);
            }
            let _ = to.send(ProgramEvent::Ended);
        });
        Ok(Self { child, reader: Some(reader), events })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Follows the program until it is dead. It is given so long; once a fault struck, it has `grace` from then on.
    pub(super) fn follow(
        mut self,
        device: &BlockDevice,
        limit: Duration,
        grace: Duration,
        mut hear: impl FnMut(&str),
    ) -> io::Result<ProgramDeath> {
        let mut deadline = Instant::now() + limit;
        let mut end = None;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(ProgramEvent::Said(line)) => hear(&line),
                Ok(ProgramEvent::PowerLost) => {
                    end.get_or_insert(ProgramDeath::PowerLost);
                    self.kill(device);
                }
                Ok(ProgramEvent::FaultStruck) => deadline = Instant::now() + grace,
                Ok(ProgramEvent::Ended) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    end.get_or_insert(ProgramDeath::TimeOver);
                    device.power_off();
                    self.kill(device);
                    // Dead programs say nothing; only what is on its way is still to come.
                    deadline = Instant::now() + limit;
                }
            }
        }
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            // It sent its last event before.
            let _ = reader.join();
        }
        device.end_calls();
        Ok(end.unwrap_or(ProgramDeath::Exited(status)))
    }

    /// First the signal, then the end of the calls that hang: the program never runs on.
    fn kill(&mut self, device: &BlockDevice) {
        // Fails only for a program that is dead.
        let _ = self.child.kill();
        device.end_calls();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(mut output: impl BufRead, to: &SyncSender<ProgramEvent>) {
    loop {
        let mut line = Vec::new();
        let read = (&mut output).take(LINE).read_until(b'\n', &mut line);
        // A line without its end was cut off by the kill.
        if !matches!(read, Ok(1..)) || line.pop() != Some(b'\n') {
            return;
        }
        if to.send(ProgramEvent::Said(String::from_utf8_lossy(&line).into_owned())).is_err() {
            return;
        }
    }
}
