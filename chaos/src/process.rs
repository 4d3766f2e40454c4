//! Chaos on real processes: `tillsync serve` on loopback, a proxy between every two of them, clients on real
//! connections, faults, and the same checkers as for the simulation.
//!
//! - [`scenario`], [`workload`], [`kind`], [`library`]: what is to happen; [`allowed`]: what this machine lets happen
//! - [`cluster`], [`network`], [`proxy`], [`disks`], [`stall`]: the nodes and what is between and under them
//! - [`testbed`]: the cluster as its clients meet it, which the simulation has, too ([`crate::clients`]);
//!   [`faults`]: who breaks them; [`monitor`]: who looks at them
//! - [`hostile`]: attackers beside honest devices; [`attack`]: what they do; [`honest_link`]: what honest devices are refused;
//!   [`narrow`]: what is left of a history without the attackers
//! - [`ending`]: healing, and what the nodes hold then; [`times`]: what time it says; [`run`]: all of it in order
//! - [`years`]: a shop's years in minutes; [`soak`]: many runs; [`commands`]: the command line

mod allowed;
mod attack;
mod cluster;
pub(crate) mod commands;
mod disks;
mod ending;
mod faults;
mod honest_link;
mod hostile;
mod http;
mod kind;
mod library;
mod monitor;
mod narrow;
mod network;
mod progress;
mod proxy;
mod run;
mod scenario;
mod soak;
mod stall;
mod testbed;
mod times;
mod workload;
mod world;
pub(crate) mod years;
