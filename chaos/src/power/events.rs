//! What the parent waits for while a program runs on the disk.

/// Lines and news that may wait; the program and the disk wait for the parent beyond that.
pub(super) const QUEUE: usize = 4_096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProgramEvent {
    /// The program said a whole line.
    Said(String),
    /// The program's output ended: it is dead.
    Ended,
    /// The power went.
    PowerLost,
    /// The first operation failed.
    FaultStruck,
}
