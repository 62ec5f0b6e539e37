//! The store: what it gives back is what was put in, whatever happens in between.

#![allow(clippy::unwrap_used)]

mod arriving;
mod content;
mod crashes;
mod damage;
mod model;
