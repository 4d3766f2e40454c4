//! What a device does how often.

use std::time::Duration;

/// How often a device does what, where the runs differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceHabits {
    /// Records of each table that devices meet on.
    pub records: u64,
    /// The longest pause between two turns.
    pub pause_ms: u64,
    pub turns: Turns,
    pub writes: WriteHabits,
    pub syncs: SyncHabits,
    /// How long a device whose resume was refused stays to see what it is told all the same.
    pub refused: Duration,
}

/// Of a thousand turns; in the others the device listens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    pub writes: u64,
    /// Inserts under numbers that other devices use as well.
    pub inserts: u64,
    pub reads: u64,
    pub syncs: u64,
    pub reconnects: u64,
    /// Orders by hand to be master.
    pub claims: u64,
    /// Calls for an election.
    pub elections: u64,
    pub shutdowns: u64,
    /// Times in which it does not take what is sent to it.
    pub deaf: u64,
}

/// Of a hundred writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteHabits {
    /// Inserts under numbers that other devices use as well.
    pub inserts: u64,
    /// Those that name the version that they may replace.
    pub conditional: u64,
    /// Of the others, and of reads: those of the table that is removed.
    pub removed_table: u64,
    pub deletes: u64,
    /// The data of a write names its request: the log can only be read over REST, which does not tell it.
    pub name_the_request: bool,
}

/// Of ten syncs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyncHabits {
    pub full: u64,
    /// From the first change on: several pages.
    pub from_the_beginning: u64,
    /// The others begin at the device's cursor, or fewer changes than this before it.
    pub before_the_cursor: u64,
}

/// What a device does in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Write,
    Insert,
    Read,
    Sync,
    Reconnect,
    Claim,
    CallElection,
    ShutDown,
    Deaf,
    Listen,
}

impl Turns {
    /// The turn that a number below a thousand stands for.
    pub(crate) fn turn(self, mut drawn: u64) -> Turn {
        let shares = [
            (self.writes, Turn::Write),
            (self.inserts, Turn::Insert),
            (self.reads, Turn::Read),
            (self.syncs, Turn::Sync),
            (self.reconnects, Turn::Reconnect),
            (self.claims, Turn::Claim),
            (self.elections, Turn::CallElection),
            (self.shutdowns, Turn::ShutDown),
            (self.deaf, Turn::Deaf),
        ];
        for (share, turn) in shares {
            if drawn < share {
                return turn;
            }
            drawn -= share;
        }
        Turn::Listen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_turn_has_its_share() {
        let turns = Turns { writes: 500, reads: 300, syncs: 1, deaf: 9, ..Turns::default() };
        let of = |turn: Turn| (0..1_000).filter(|drawn| turns.turn(*drawn) == turn).count();
        assert_eq!([Turn::Write, Turn::Read, Turn::Sync, Turn::Deaf, Turn::Listen].map(of), [500, 300, 1, 9, 190]);
        assert_eq!((turns.turn(499), turns.turn(500), turns.turn(800)), (Turn::Write, Turn::Read, Turn::Sync));
    }
}
