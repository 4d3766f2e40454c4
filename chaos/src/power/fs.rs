//! The file system in front of the disk: FUSE, in this process, in this process. The kernel caches what it reads, and nothing that it writes.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::device::BlockDevice;
use super::disk::{ErrnoCode, Ino, ModelDisk};
use super::faults::DiskOp;

/// Names and lengths may be remembered by the kernel: nobody else changes them, and every cut is a new mount.
const KEEP: Duration = Duration::from_secs(60);
const BLOCK: u64 = 512;

pub(super) struct FuseFront(pub Arc<BlockDevice>);

fn attr(disk: &ModelDisk, ino: Ino) -> Result<FileAttr, ErrnoCode> {
    let len = disk.len(ino)?;
    let (kind, perm, nlink) = match len {
        Some(_) => (FileType::RegularFile, 0o644, 1),
        None => (FileType::Directory, 0o755, 2),
    };
    let size = len.unwrap_or(4_096);
    let time: SystemTime = UNIX_EPOCH;
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(BLOCK),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink,
        // SAFETY: these calls only tell who we are.
        uid: unsafe { libc::geteuid() },
        gid: unsafe { libc::getegid() },
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    })
}

fn error(code: ErrnoCode) -> Errno {
    Errno::from_i32(code)
}

impl FuseFront {
    fn entry(&self, reply: ReplyEntry, op: DiskOp, work: impl FnOnce(&mut ModelDisk) -> Result<Ino, ErrnoCode>) {
        let found = self.0.run(op, |disk| {
            let ino = work(disk)?;
            attr(disk, ino)
        });
        match found {
            Ok(attr) => reply.entry(&KEEP, &attr, Generation(0)),
            Err(code) => reply.error(error(code)),
        }
    }

    fn empty(&self, reply: ReplyEmpty, outcome: Result<(), ErrnoCode>) {
        match outcome {
            Ok(()) => reply.ok(),
            Err(code) => reply.error(error(code)),
        }
    }
}

impl Filesystem for FuseFront {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, DiskOp::Look, |disk| disk.find(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.run(DiskOp::Look, |disk| attr(disk, ino.0)) {
            Ok(attr) => reply.attr(&KEEP, &attr),
            Err(code) => reply.error(error(code)),
        }
    }

    /// Only lengths mean anything here.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let op = if size.is_some() { DiskOp::Write } else { DiskOp::Look };
        let changed = self.0.run(op, |disk| {
            size.map_or(Ok(()), |size| disk.set_len(ino.0, size))?;
            attr(disk, ino.0)
        });
        match changed {
            Ok(attr) => reply.attr(&KEEP, &attr),
            Err(code) => reply.error(error(code)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.entry(reply, DiskOp::Name, |disk| disk.make(parent.0, name, true));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, self.0.run(DiskOp::Name, |disk| disk.remove(parent.0, name, false)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, self.0.run(DiskOp::Name, |disk| disk.remove(parent.0, name, true)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        self.empty(reply, self.0.run(DiskOp::Name, |disk| disk.rename((parent.0, name), (newparent.0, newname))));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.0.run(DiskOp::Name, |disk| {
            let ino = disk.make(parent.0, name, false)?;
            attr(disk, ino)
        });
        match made {
            Ok(attr) => reply.created(&KEEP, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(code) => reply.error(error(code)),
        }
    }

    /// As on any disk what was read stays in the kernel's cache; writes go through it. It ends with the mount.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.run(DiskOp::Read, |disk| disk.read(ino.0, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(code) => reply.error(error(code)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.run(DiskOp::Write, |disk| disk.write(ino.0, offset, data)) {
            Ok(written) => reply.written(written as u32),
            Err(code) => reply.error(error(code)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.empty(reply, self.0.run(DiskOp::Write, |disk| disk.grow(ino.0, offset.saturating_add(length))));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let op = if datasync { DiskOp::Sync } else { DiskOp::FullSync };
        self.empty(reply, self.0.sync(ino.0, op));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty(reply, self.0.sync(ino.0, DiskOp::Sync));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.0.run(DiskOp::Look, |disk| {
            let names = disk.list(ino.0)?;
            names.into_iter().map(|(name, ino)| Ok((name, ino, disk.len(ino)?.is_none()))).collect()
        });
        let listed: Vec<_> = match listed {
            Ok(listed) => listed,
            Err(code) => return reply.error(error(code)),
        };
        let dots = [".".into(), "..".into()].map(|name: std::ffi::OsString| (name, ino.0, true));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (name, ino, folder)) in (1..).zip(dots.into_iter().chain(listed)).skip(skip) {
            let kind = if folder { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(ino), place, kind, &name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (used, capacity) = self.0.space();
        let (all, free) = (capacity.min(1 << 40) / BLOCK, capacity.saturating_sub(used).min(1 << 40) / BLOCK);
        reply.statfs(all, free, free, 1 << 20, 1 << 20, BLOCK as u32, 255, BLOCK as u32);
    }
}
