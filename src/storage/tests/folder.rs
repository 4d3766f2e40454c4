//! Opening a data folder: whose it is, what may be wrong with it, and closing it again.

use std::fs;

use super::*;
use crate::storage::durability::flush;
use crate::storage::folder::format;
use crate::storage::{engine, memory};

#[tokio::test]
async fn a_closed_folder_opens_again_in_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    append(&*stores.log, entries(1..4, 10)).await.unwrap();
    put(&mut *stores.tables, 3, &[(RowKey::Meta, value(1, 10))]);
    stores.close.close().await.unwrap();
    assert!(append(&*stores.log, entries(4..5, 10)).await.is_err());
    assert!(stores.tables.get(&RowKey::Changes(1)).is_err());
    // The old handles may stay around.
    let again = open(dir.path());
    assert_eq!(again.log.bounds().last, Some(LogIndex(3)));
    assert_eq!(again.tables.applied(), applied(3));
    assert_eq!(again.tables.get(&RowKey::Meta).unwrap(), Some(value(1, 10)));
    again.close.close().await.unwrap();
}

#[tokio::test]
async fn somebody_elses_folder_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    let busy = open_error(dir.path(), &identity());
    assert!(matches!(busy, OpenError::Locked { .. }) && busy.is_configuration(), "{busy}");
    stores.close.close().await.unwrap();
    let other = FolderIdentity { node_id: 2, ..identity() };
    assert!(matches!(open_error(dir.path(), &other), OpenError::OtherNode { found: 1, expected: 2, .. }));
    let other = FolderIdentity { cluster_id: "d".into(), ..identity() };
    let error = open_error(dir.path(), &other);
    assert!(matches!(error, OpenError::OtherCluster { .. }) && error.is_configuration());
    assert!(!error.to_string().contains('\n'));

    // A folder that older programs must not open is one still.
    format::keep_older_out(dir.path()).unwrap();
    format::keep_older_out(dir.path()).unwrap();
    open(dir.path()).close.close().await.unwrap();
    write_identity(dir.path(), "format 3", "format 99");
    let error = open_error(dir.path(), &identity());
    assert!(matches!(error, OpenError::NewerFormat { found: 99, .. }) && error.is_configuration());
    let path = dir.path().join("identity");
    fs::write(&path, "nonsense").unwrap();
    let error = open_error(dir.path(), &identity());
    assert!(matches!(error, OpenError::Corrupt { .. }) && !error.is_configuration());
    fs::remove_file(&path).unwrap();
    let error = open_error(dir.path(), &identity());
    assert!(matches!(error, OpenError::Corrupt { .. }) && error.to_string().contains("identity file is missing"));
    // Another program's.
    fs::remove_file(dir.path().join("mark")).unwrap();
    assert!(matches!(open_error(dir.path(), &identity()), OpenError::NotOurs { .. }));
    format::refuse(dir.path(), "its data differs\nsince index 7").unwrap();
    let error = open_error(dir.path(), &identity());
    assert!(matches!(error, OpenError::Refused { .. }) && !error.is_configuration());
    assert!(error.to_string().ends_with("is not opened again: its data differs since index 7"), "{error}");
}

#[tokio::test]
async fn another_nodes_files_beside_this_ones_identity_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = FolderIdentity { node_id: 2, ..identity() };
    for (dir, identity) in [(&one, identity()), (&two, other.clone())] {
        let stores = crate::storage::open(dir.path(), &identity).unwrap();
        append(&*stores.log, entries(1..4, 10)).await.unwrap();
        stores.close.close().await.unwrap();
    }
    fs::copy(two.path().join("identity"), one.path().join("identity")).unwrap();
    let error = open_error(one.path(), &other);
    assert!(matches!(error, OpenError::OtherNode { found: 1, expected: 2, .. }), "{error}");
    assert!(error.is_configuration());
}

#[test]
fn a_file_is_no_folder() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = open_error(file.path(), &identity());
    assert!(
        error.is_configuration() && error.to_string().contains("is a file: `data_dir` must name a folder"),
        "{error}"
    );
}

#[tokio::test]
async fn a_flipped_bit_does_not_make_a_folder_another_nodes() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close.close().await.unwrap();
    let path = dir.path().join("identity");
    let text = fs::read(&path).unwrap();
    for (at, bit) in (0..text.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = text.clone();
        damaged[at] ^= 1 << bit;
        fs::write(&path, &damaged).unwrap();
        match crate::storage::open(dir.path(), &identity()) {
            Ok(stores) => stores.close.close().await.unwrap(),
            Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "bit {bit} of {at}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_folder_of_an_earlier_version_is_opened_and_has_a_mark_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    append(&*stores.log, entries(1..4, 10)).await.unwrap();
    put(&mut *stores.tables, 3, &[(RowKey::Meta, value(1, 10))]);
    stores.close.close().await.unwrap();
    without_mark(dir.path());
    // Whatever else it lacks.
    let db = sled::Config::new().path(dir.path().join("engine")).segment_size(engine::SEGMENT).open().unwrap();
    db.open_tree("meta").unwrap().remove("votes").unwrap();
    drop(db);
    for _ in 0..2 {
        let stores = open(dir.path());
        assert_eq!(stores.log.bounds().last, Some(LogIndex(3)));
        assert_eq!(stores.tables.get(&RowKey::Meta).unwrap(), Some(value(1, 10)));
        stores.close.close().await.unwrap();
    }
    fs::remove_file(dir.path().join("mark")).unwrap();
    let error = open_error(dir.path(), &identity());
    assert!(!error.is_configuration() && error.to_string().contains("new number"), "{error}");
}

#[tokio::test]
async fn an_unknown_cluster_is_filled_in_later() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = FolderIdentity { cluster_id: String::new(), ..identity() };
    for who in [&unknown, &unknown, &identity(), &unknown] {
        let stores = crate::storage::open(dir.path(), who).unwrap_or_else(|error| panic!("{error}"));
        stores.close.close().await.unwrap();
    }
    let other = FolderIdentity { cluster_id: "d".into(), ..identity() };
    assert!(matches!(open_error(dir.path(), &other), OpenError::OtherCluster { .. }));
}

#[tokio::test]
async fn damage_is_an_error_and_never_a_panic() {
    for (file, damage) in [("conf", 0), ("conf", 7), ("db", 0x5A), ("db", 0xFF)] {
        let dir = tempfile::tempdir().unwrap();
        let stores = open(dir.path());
        append(&*stores.log, entries(1..200, 300)).await.unwrap();
        stores.close.close().await.unwrap();
        let path = dir.path().join("engine").join(file);
        let len = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![damage; len as usize]).unwrap();
        for entry in fs::read_dir(dir.path().join("engine")).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("snap.") && file == "db" {
                fs::write(path, vec![damage; 64]).unwrap();
            }
        }
        let error = open_error(dir.path(), &identity());
        assert!(!error.is_configuration() && !error.to_string().contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_torn_file_of_the_engine_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    append(&*stores.log, entries(1..20, 300)).await.unwrap();
    stores.close.close().await.unwrap();
    fs::write(dir.path().join("engine/snap.0000.generating"), b"torn").unwrap();
    fs::write(dir.path().join("snapshots/build-1.tmp"), b"torn").unwrap();
    let stores = open(dir.path());
    assert_eq!(stores.log.bounds().last, Some(LogIndex(19)));
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 0);
    assert!(dir.path().join("ballast").exists());
    stores.close.close().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_first_open_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    stores.close.close().await.unwrap();
    let path = dir.path().join("identity");
    let text = fs::read_to_string(&path).unwrap();
    write_identity(dir.path(), "state ready", "state creating");
    fs::write(dir.path().join("engine/conf"), b"").unwrap();
    let stores = open(dir.path());
    stores.close.close().await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn every_group_commit_reaches_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    for index in 1..20 {
        let before = flush::calls();
        append(&*stores.log, entries(index..index + 1, 100)).await.unwrap();
        assert!(flush::calls() > before);
        let before = flush::calls();
        wait(stores.log.save_vote(Bytes::from(format!("vote{index}")))).await.unwrap();
        assert!(flush::calls() > before);
    }
    stores.close.close().await.unwrap();
}

#[tokio::test]
async fn memory_survives_a_restart_and_loses_what_was_not_synced() {
    let disk = memory::MemoryDisk::default();
    let mut stores = disk.open();
    append(&*stores.log, entries(1..4, 10)).await.unwrap();
    put(&mut *stores.tables, 2, &[(RowKey::Meta, value(1, 10))]);
    stores.snapshots.build().await.unwrap();
    put(&mut *stores.tables, 3, &[(RowKey::Meta, value(2, 10))]);
    disk.hold();
    let (done, mut lost) = oneshot::channel();
    stores.log.append(entries(4..6, 10), Box::new(move |outcome| drop(done.send(outcome))));
    assert_eq!(stores.log.bounds().last, Some(LogIndex(5)));
    assert!(lost.try_recv().is_err());
    disk.crash();
    assert!(lost.await.unwrap().is_err());
    let again = disk.open();
    assert_eq!(again.log.bounds().last, Some(LogIndex(3)));
    assert_eq!(again.tables.applied(), applied(2));
    assert_eq!(again.snapshots.current().unwrap().applied, applied(2));
    assert!(append(&*stores.log, entries(4..5, 10)).await.is_err());
    let late = append(&*again.log, entries(4..5, 10));
    disk.sync();
    disk.release();
    late.await.unwrap();
    again.close.close().await.unwrap();
    assert_eq!(disk.open().log.bounds().last, Some(LogIndex(4)));
}
