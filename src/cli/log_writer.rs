//! Where log lines go: a thread of its own writes them, so that whoever logs never waits and never fails.
//!
//! Standard output may be a full disk, a pipe that nobody reads, or one whose reader has gone. Lines wait in a bounded
//! buffer then, those that find it full are dropped, and the log says how many as soon as it can be written again.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::limits;
use crate::metrics;
use crate::model::visible::escaped;

/// Between two tries to write where writing failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the end waits for what is still to be written.
const LAST: Duration = Duration::from_millis(500);

/// Takes whole lines. A clone is a handle on the same log.
#[derive(Clone)]
pub(super) struct LogWriter(Arc<LogQueue>);

#[derive(Default)]
struct LogQueue {
    waiting: Mutex<WaitingLines>,
    /// There are lines, or no more will come.
    more: Condvar,
    /// All has been written.
    drained: Condvar,
}

#[derive(Default)]
struct WaitingLines {
    bytes: Vec<u8>,
    dropped: u64,
    writing: bool,
    closed: bool,
}

/// Ends the log: waits a little for what is still to be written.
pub(super) struct LogEnd(Arc<LogQueue>);

impl LogWriter {
    /// Starts the thread that writes to `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, LogEnd)> {
        let queue = Arc::new(LogQueue::default());
        let writing = queue.clone();
        thread::Builder::new().name("tillsync-logs".into()).spawn(move || writing.write_all(out))?;
        Ok((Self(queue.clone()), LogEnd(queue)))
    }
}

impl Write for LogWriter {
    /// Log lines quote what clients sent: a terminal that shows them must not obey it. Each write is whole lines of UTF-8.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let text = escaped(&String::from_utf8_lossy(lines)).into_owned();
        let mut waiting = self.0.waiting.lock();
        if waiting.bytes.len() + text.len() > limits::LOG_BUFFER {
            waiting.dropped += 1;
            metrics::LOG_LINES_DROPPED.add(1);
        } else {
            waiting.bytes.extend_from_slice(text.as_bytes());
            self.0.more.notify_one();
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogQueue {
    fn write_all(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        let mut dropped = 0;
        // A line was cut off where writing failed: what comes next must not go on in it.
        let mut cut = false;
        loop {
            {
                let mut waiting = self.waiting.lock();
                waiting.writing = false;
                while waiting.bytes.is_empty() {
                    self.drained.notify_all();
                    if waiting.closed {
                        return;
                    }
                    self.more.wait(&mut waiting);
                }
                waiting.writing = true;
                std::mem::swap(&mut lines, &mut waiting.bytes);
                dropped += std::mem::take(&mut waiting.dropped);
            }
            if std::mem::take(&mut cut) {
                lines.insert(0, b'\n');
            }
            match write_some(&mut out, &lines) {
                None if dropped > 0 => {
                    tracing::warn!(lines = dropped, "the log could not be written: lines were dropped");
                    dropped = 0;
                }
                None => {}
                Some(rest) => {
                    cut = rest > 0 && lines[rest - 1] != b'\n';
                    let lost = lines[rest..].iter().filter(|byte| **byte == b'\n').count();
                    let lost = u64::try_from(lost).unwrap_or(u64::MAX);
                    metrics::LOG_LINES_DROPPED.add(lost);
                    dropped += lost;
                    thread::sleep(PAUSE);
                }
            }
            lines.clear();
        }
    }
}

/// Writes what can be written; where it failed, if it did. A pipe that is full for now is waited for.
fn write_some(out: &mut impl Write, lines: &[u8]) -> Option<usize> {
    let mut done = 0;
    while done < lines.len() {
        match out.write(&lines[done..]) {
            Ok(0) => return Some(done),
            Ok(written) => done += written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(_) => return Some(done),
        }
    }
    None
}

impl Drop for LogEnd {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        self.0.more.notify_one();
        if waiting.writing || !waiting.bytes.is_empty() {
            self.0.drained.wait_for(&mut waiting, LAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Each write waits for what comes of it: `Ok(n)`, n bytes at most are taken.
    struct Scripted {
        script: Receiver<io::Result<usize>>,
        written: Written,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let most = self.script.recv().map_err(|_| io::Error::from(ErrorKind::BrokenPipe))??;
            let taken = most.min(bytes.len());
            self.written.lock().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Written = Arc<Mutex<Vec<u8>>>;

    fn scripted() -> (LogWriter, LogEnd, Sender<io::Result<usize>>, Written) {
        let (next, script) = channel();
        let written = Written::default();
        let (log, end) = LogWriter::start(Scripted { script, written: written.clone() }).unwrap();
        (log, end, next, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().clone()).unwrap()
    }

    #[test]
    fn a_log_line_holds_nothing_that_a_terminal_obeys() {
        let (mut log, end, next, written) = scripted();
        next.send(Ok(1_000)).unwrap();
        log.write_all("a reason \u{9b}2J\u{202e}\n".as_bytes()).unwrap();
        drop(end);
        assert_eq!(text(&written), "a reason \\u009b2J\\u202e\n");
    }

    #[test]
    fn whoever_logs_never_waits_and_what_finds_no_room_is_dropped() {
        let (mut log, end, next, written) = scripted();
        let line = [[b'x'; 99].as_slice(), b"\n"].concat();
        let before = metrics::LOG_LINES_DROPPED.get();
        // Nothing is read: the first lines are on their way, a buffer full waits, the others are dropped.
        let lines = 3 * limits::LOG_BUFFER / line.len();
        for _ in 0..lines {
            log.write_all(&line).unwrap();
        }
        assert!(log.0.waiting.lock().bytes.len() <= limits::LOG_BUFFER);
        assert!(metrics::LOG_LINES_DROPPED.get() - before >= lines as u64 / 3);
        for _ in 0..8 {
            next.send(Ok(usize::MAX)).unwrap();
        }
        drop(end);
        assert!(text(&written).lines().all(|line| line.len() == 99));
    }

    #[test]
    fn a_log_that_fails_goes_on_with_a_new_line_when_it_can_be_written_again() {
        let (mut log, end, next, written) = scripted();
        next.send(Ok(3)).unwrap();
        next.send(Err(ErrorKind::StorageFull.into())).unwrap();
        log.write_all(b"first\n").unwrap();
        // The cut line has failed before the next one is taken.
        while next_is_waited_for(&written, "fir") {}
        log.write_all(b"second\n").unwrap();
        next.send(Ok(1_000)).unwrap();
        next.send(Ok(1_000)).unwrap();
        drop(end);
        assert_eq!(text(&written), "fir\nsecond\n");
    }

    fn next_is_waited_for(written: &Mutex<Vec<u8>>, until: &str) -> bool {
        thread::yield_now();
        text(written) != until
    }

    #[test]
    fn the_end_waits_no_longer_than_it_says_for_a_reader_that_is_stuck() {
        let (mut log, end, next, written) = scripted();
        log.write_all(b"never read\n").unwrap();
        drop(end);
        assert_eq!(text(&written), "");
        drop(next);
    }
}
