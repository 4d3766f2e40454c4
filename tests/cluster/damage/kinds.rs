//! Kinds of damage to a data folder, at places that a seed chooses. The tests of the storage include this file, too.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        for _ in 0..3 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
        }
        (self.0 >> 11) % n.max(1)
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// What an older copy of the whole folder is does not show in the folder: it is no kind of these.
pub(crate) const KINDS: [&str; 15] = [
    "a bit anywhere",
    "a bit of a small file",
    "a bit near the end",
    "several bits",
    "a tail cut off",
    "cut in half",
    "zeros",
    "zeros at the end",
    "an older engine",
    "an older single file",
    "swapped files",
    "a missing file",
    "a file cut to nothing",
    "garbage appended",
    "a block of another place",
];

/// Copies a folder, without the file that only keeps room.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.file_name() != "ballast" {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// All files below that hold something, in one order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            out.extend(files(&entry.path()));
        } else if entry.file_name() != "lock" {
            out.push(entry.path());
        }
    }
    out.sort();
    out
}

/// The end of what was written: behind it the engine's file is zeros.
pub(crate) fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

fn flip(path: &Path, at: u64, bit: u64) -> String {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
    format!("bit {bit} at {at}")
}

fn cut(path: &Path, to: u64) -> String {
    File::options().write(true).open(path).unwrap().set_len(to).unwrap();
    format!("cut to {to}")
}

/// Does the damage; what was done.
pub(crate) fn damage(dir: &Path, older: &Path, kind: &str, random: &mut Random) -> String {
    let all = files(dir);
    let db = dir.join("engine/db");
    let name = |path: &Path| path.strip_prefix(dir).unwrap().display().to_string();
    let said = |path: &Path, what: String| format!("{}: {what}", name(path));
    match kind {
        "a bit anywhere" => said(&db, flip(&db, random.below(written(&db)), random.below(8))),
        "a bit of a small file" => {
            let small: Vec<_> =
                all.iter().filter(|path| **path != db && fs::metadata(path).unwrap().len() > 0).collect();
            let path = *random.of(&small);
            said(path, flip(path, random.below(fs::metadata(path).unwrap().len()), random.below(8)))
        }
        "a bit near the end" => {
            let (end, near) = (written(&db), *random.of(&[4_096, 65_536]));
            said(&db, flip(&db, end - 1 - random.below(near.min(end)), random.below(8)))
        }
        "several bits" => {
            let end = written(&db);
            let flips: Vec<_> =
                (0..2 + random.below(7)).map(|_| flip(&db, random.below(end), random.below(8))).collect();
            said(&db, flips.join(", "))
        }
        "a tail cut off" => {
            let end = written(&db);
            let less = [1 + random.below(64), 4_096 * (1 + random.below(16)), random.below(end)];
            said(&db, cut(&db, end.saturating_sub(*random.of(&less))))
        }
        "cut in half" => said(&db, cut(&db, written(&db) / 2)),
        "zeros" | "a block of another place" => {
            let len = *random.of(&[16, 512, 4_096, 65_536]);
            let mut place = || random.below(written(&db).saturating_sub(len)) / 512 * 512;
            let (at, from) = (place(), place());
            let file = File::options().read(true).write(true).open(&db).unwrap();
            let mut block = vec![0; len as usize];
            if kind != "zeros" {
                file.read_exact_at(&mut block, from).unwrap();
            }
            file.write_all_at(&block, at).unwrap();
            said(&db, format!("{len} bytes at {at}"))
        }
        "zeros at the end" => {
            let end = written(&db);
            let len = (*random.of(&[1, 16, 512, 4_096, 65_536]) + random.below(16)).min(end);
            let file = File::options().write(true).open(&db).unwrap();
            file.write_all_at(&vec![0; len as usize], end - len).unwrap();
            said(&db, format!("{len} bytes at {}", end - len))
        }
        "an older engine" => {
            fs::remove_dir_all(dir.join("engine")).unwrap();
            copy(&older.join("engine"), &dir.join("engine"));
            "engine".into()
        }
        "an older single file" => {
            let older_files = files(older);
            let path = random.of(&older_files).strip_prefix(older).unwrap();
            fs::copy(older.join(path), dir.join(path)).unwrap();
            path.display().to_string()
        }
        "swapped files" => {
            let a = random.of(&all);
            let others: Vec<_> = all.iter().filter(|path| *path != a).collect();
            let b = *random.of(&others);
            let (left, right) = (fs::read(a).unwrap(), fs::read(b).unwrap());
            fs::write(a, right).unwrap();
            fs::write(b, left).unwrap();
            format!("{} and {}", name(a), name(b))
        }
        "a missing file" => {
            let path = random.of(&all);
            fs::remove_file(path).unwrap();
            name(path)
        }
        "a file cut to nothing" => {
            let path = random.of(&all);
            File::create(path).unwrap();
            name(path)
        }
        "garbage appended" => {
            let path = random.of(&all);
            let mut bytes = fs::read(path).unwrap();
            bytes.extend((0..1 + random.below(5_000)).map(|_| random.below(256) as u8));
            fs::write(path, bytes).unwrap();
            name(path)
        }
        other => panic!("{other}"),
    }
}
