//! What makes bytes durable: [`flush`] syncs where the engine does not, [`poison`] keeps the first error, [`stalls`] sees
//! calls that do not come back, [`disk_error`] says what an operator can do.

pub mod disk_error;
pub mod flush;
pub mod poison;
pub mod stalls;
