//! The file system through a real mount, where this machine allows one.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::BlockDevice;
use super::events::ProgramEvent;
use super::faults::{CutMoment, DiskOp, FailedOp, Faults};
use super::loss::Loss;
use super::mount::{self, Mount};
use super::program::channel;
use crate::rng::Rng;

struct ScratchFolder {
    folder: tempfile::TempDir,
    device: Arc<BlockDevice>,
}

impl ScratchFolder {
    fn mounted<T>(&self, cut: CutMoment, faults: Faults, work: impl FnOnce(&Path) -> T) -> T {
        let mount = Mount::new(self.device.clone(), self.folder.path()).unwrap();
        self.device.arm(cut, faults, channel().0);
        let outcome = work(self.folder.path());
        self.device.end_calls();
        mount.end().unwrap();
        outcome
    }

    fn healthy<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        self.mounted(CutMoment::Never, Faults::default(), work)
    }

    fn cut(&self, loss: Loss) {
        self.device.cut(loss, &mut Rng::new(1));
    }
}

/// Runs the test on a thread with mounts of its own, or says why it does not.
fn with_disk(journal: bool, test: impl FnOnce(&ScratchFolder) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let fuse = File::options().read(true).write(true).open("/dev/fuse").map(drop);
        if let Err(error) = fuse.and_then(|()| mount::own_namespace()) {
            println!("skipped: no file system of our own can be mounted here: {error}");
            return;
        }
        test(&ScratchFolder { folder: tempfile::tempdir().unwrap(), device: Arc::new(BlockDevice::new(journal)) });
    });
    thread.join().unwrap();
}

#[test]
fn files_are_files() {
    with_disk(false, |place| {
        place.healthy(|at| {
            fs::create_dir_all(at.join("a/b")).unwrap();
            let path = at.join("a/b/file");
            let mut file = File::create(&path).unwrap();
            file.write_all(&[1; 300_000]).unwrap();
            file.write_all_at(b"middle", 100_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 300_000);
            let mut text = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut text).unwrap();
            assert_eq!((text.len(), &text[99_999..100_007]), (300_000, &b"\x01middle\x01"[..]));
            fs::rename(&path, at.join("other")).unwrap();
            assert!(!path.exists() && at.join("other").exists());
            file.set_len(5).unwrap();
            assert_eq!(fs::read(at.join("other")).unwrap(), [1; 5]);
            fs::remove_dir_all(at.join("a")).unwrap();
            let names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["other"]);
            let first = File::open(at.join("other")).unwrap();
            first.try_lock().unwrap();
            assert!(File::open(at.join("other")).unwrap().try_lock().is_err());
        });
    });
}

#[test]
fn a_cut_takes_what_was_not_synced() {
    with_disk(false, |place| {
        place.healthy(|at| {
            let file = File::create(at.join("file")).unwrap();
            file.write_all_at(b"synced", 0).unwrap();
            file.sync_data().unwrap();
            File::open(at).unwrap().sync_all().unwrap();
            file.write_all_at(b"LOST", 0).unwrap();
            fs::write(at.join("new"), b"x").unwrap();
            assert_eq!(fs::read(at.join("file")).unwrap(), b"LOSTed");
        });
        place.cut(Loss::Whole);
        place.healthy(|at| {
            assert_eq!(fs::read(at.join("file")).unwrap(), b"synced");
            assert!(!at.join("new").exists());
        });
    });
}

#[test]
fn after_the_power_went_no_call_is_answered() {
    with_disk(false, |place| {
        let mount = Mount::new(place.device.clone(), place.folder.path()).unwrap();
        let (to, events) = channel();
        place.device.arm(CutMoment::Sync { nth: 2, done: false }, Faults::default(), to);
        let path = place.folder.path().join("file");
        let program = std::thread::spawn(move || {
            let file = File::create(path).unwrap();
            (0..10)
                .take_while(|n| file.write_all_at(&[*n], u64::from(*n)).and_then(|()| file.sync_all()).is_ok())
                .count()
        });
        assert_eq!(events.recv_timeout(Duration::from_secs(60)), Ok(ProgramEvent::PowerLost));
        assert!(!program.is_finished());
        place.device.end_calls();
        assert_eq!(program.join().unwrap(), 1);
        mount.end().unwrap();
    });
}

#[test]
fn a_bad_disk_says_so() {
    with_disk(true, |place| {
        let fail = |op, nth| Faults { fail: Some(FailedOp { op, nth, times: 1 }), ..Faults::default() };
        let code = |outcome: std::io::Result<()>| outcome.unwrap_err().raw_os_error();
        place.mounted(CutMoment::Never, fail(DiskOp::Write, 2), |at| {
            let file = File::create(at.join("file")).unwrap();
            file.write_all_at(b"1", 0).unwrap();
            assert_eq!(code(file.write_all_at(b"2", 0)), Some(libc::EIO));
            file.write_all_at(b"3", 0).unwrap();
            file.sync_all().unwrap();
        });
        place.mounted(CutMoment::Never, fail(DiskOp::Sync, 1), |at| {
            let file = File::options().write(true).open(at.join("file")).unwrap();
            file.write_all_at(b"4", 0).unwrap();
            assert_eq!(code(file.sync_all()), Some(libc::EIO));
            // As on Linux: all seems well again.
            file.sync_all().unwrap();
        });
        place.cut(Loss::Nothing);
        place.mounted(CutMoment::Never, fail(DiskOp::Read, 2), |at| {
            assert_eq!(fs::read(at.join("file")).unwrap(), b"3");
            assert_eq!(place.device.struck(), 0);
        });
        place.mounted(CutMoment::Never, Faults { room: Some(1_000), ..Faults::default() }, |at| {
            assert_eq!(code(fs::write(at.join("big"), [0; 2_000])), Some(libc::ENOSPC));
            assert_eq!(fs::read(at.join("big")).unwrap().len(), 1_000);
            fs::remove_file(at.join("big")).unwrap();
            fs::write(at.join("big"), [0; 1_000]).unwrap();
        });
        let slow = Faults { slow_sync: Duration::from_millis(30), ..Faults::default() };
        place.mounted(CutMoment::Never, slow, |at| {
            let file = File::create(at.join("slow")).unwrap();
            let began = Instant::now();
            file.sync_all().unwrap();
            assert!(began.elapsed() >= Duration::from_millis(30));
        });
    });
}
