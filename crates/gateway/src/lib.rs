//! The gateway: the whole network behind one API.
//!
//! [`network`] implements `Inference` by asking providers; [`routing`] says whom, [`queue`] when, [`accounts`] who may ask and what it cost, [`callers`] how
//! somebody without an account pays, [`lanes`] out of which channel its provider is paid. It never links
//! the engine, and holds nobody's model.

pub mod accounts;
pub mod callers;
pub mod lanes;
pub mod network;
pub mod queue;
pub mod routing;
