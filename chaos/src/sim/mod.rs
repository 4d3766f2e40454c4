//! A whole cluster in one process: the real model, consensus, cluster and gateway code on a simulated network, clock and
//! disk. One seed is one run, with one trace.
//!
//! - [`plan`]: what will go wrong, drawn from the seed
//! - [`weather`]: what becomes of messages; [`disk`]: when writes are durable; [`clock`]: what each node takes for the time
//! - [`world`]: the nodes; [`faults`]: what is done to them; [`members`]: nodes that come and go
//! - [`client`]: what all simulated devices share; [`device`]: those that keep a cursor; [`timed`]: those that know times
//!   only; [`queue`]: durable queues; [`twins`]: one device on two nodes; [`newcomer`]: devices that write before they are known
//! - [`run`]: one run, from the first election to the closing checks
//! - [`sweep`]: many seeds, a process each; [`shrink`]: the smallest plan that still fails
//! - [`fixed`]: randomness of the standard library, from the seed

pub mod client;
pub mod clock;
pub mod device;
pub mod disk;
pub mod ending;
pub mod faults;
pub mod fixed;
pub mod link;
pub mod members;
pub mod newcomer;
pub mod plan;
pub mod queue;
pub mod recorder;
pub mod run;
pub mod shrink;
pub mod sweep;
pub mod timed;
pub mod twins;
pub mod weather;
pub mod world;
