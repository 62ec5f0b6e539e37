//! The gateway: the whole network behind one API.
//!
//! [`network`] implements `Inference` by asking providers; [`routing`] says whom, [`queue`] when, [`accounts`] who may ask and what it cost. It never links
//! the engine, and holds nobody's model.

pub mod accounts;
pub mod network;
pub mod queue;
pub mod routing;
