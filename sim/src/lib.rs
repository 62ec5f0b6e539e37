//! The network under one seed.
//!
//! Invariant: a run follows from its arguments and its seed alone; it prints its seed when something that must hold does not, and the same
//! seed plays it again. There is no I/O, no clock and no thread in it.
//!
//! What is here: [`economy`], thousands of participants with abstract inference over a model of the contracts' money, and [`sweep`], which varies the
//! deployment's numbers. What will join it on the same [`random`] and [`events`]: the roles themselves, as the state machines that the daemons run.
//! Nothing here stands for a role that does not exist.

pub mod economy;
pub mod events;
pub mod formulas;
pub mod gas;
pub mod ledger;
pub mod plan;
pub mod prediction;
pub mod random;
pub mod report;
pub mod scenario;
pub mod statistics;
pub mod sweep;
