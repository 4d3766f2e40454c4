//! What a data folder says of itself: [`format`](mod@format) whose it is and how far its making came, [`side_mark`] what the
//! engine's file must hold, [`restoring`] that it is being filled.

pub(crate) mod format;
pub(crate) mod restoring;
pub(crate) mod side_mark;
