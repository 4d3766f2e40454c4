//! A whole cluster in one process: the real model, consensus, cluster and gateway code on a simulated network, clock and
//! disk. One seed is one run, with one trace.
//!
//! - [`plan`]: what will go wrong, drawn from the seed
//! - [`network_model`]: what becomes of messages; [`disk`]: when writes are durable; [`clock`]: what each node takes
//!   for the time
//! - [`world`]: the nodes; [`faults`]: what is done to them; [`members`]: nodes that come and go
//! - [`upgrade`]: nodes that get a new program under load
//! - [`testbed`], [`link`]: the cluster as clients meet it, which real processes have too ([`crate::clients`])
//! - [`run`]: one run, from the first election to the closing checks
//! - [`sweep`]: many seeds, a process each; [`shrink`]: the smallest plan that still fails
//! - [`fixed`]: randomness of the standard library, from the seed

pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod ending;
pub(crate) mod faults;
pub(crate) mod fixed;
pub(crate) mod link;
pub(crate) mod members;
pub(crate) mod network_model;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod shrink;
pub(crate) mod sweep;
pub(crate) mod testbed;
pub(crate) mod upgrade;
pub(crate) mod world;
