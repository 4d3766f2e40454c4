//! Whole clusters of real processes of the built binary, killed with SIGKILL and started wrongly.
//! Each test has its own ports and its own folder, so they can run side by side.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod addresses;
mod backup;
mod bad_start;
mod damage;
mod demo;
mod digests;
mod doctor;
mod elections;
mod errors;
mod faulty_disk;
mod harness;
mod identity;
mod kill;
mod limits;
mod load;
mod malformed;
mod many_sessions;
mod membership;
mod netns;
mod old_folder;
mod private;
mod processes;
mod recovery;
mod retrying_clients;
mod rolling;
mod schedule;
mod shrinks;
mod single_node;
mod slow_disks;
mod sqlite;
mod stolen;
mod strangers;
mod tls;
mod tokens;
mod two_sessions;
mod upgrade;
