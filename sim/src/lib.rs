//! The network under one seed.
//!
//! Invariant: a run follows from its arguments and its seed alone; it prints its seed when something that must hold does not, and the same
//! seed plays it again. There is no I/O, no clock and no thread in it.
//!
//! Two halves on the same [`random`]: [`economy`], thousands of participants with abstract inference over a model of the contracts' money, with [`sweep`], which
//! varies the deployment's numbers; and [`network`], the roles themselves, as the state machines that the daemons run, over the contracts. Nothing
//! here stands for a role that does not exist.

pub mod economy;
pub mod events;
pub mod formulas;
pub mod gas;
pub mod ledger;
pub mod network;
pub mod plan;
pub mod prediction;
pub mod random;
pub mod report;
pub mod scenario;
pub mod statistics;
pub mod sweep;
