//! Which models a provider has: those that it began with, and those that arrive while it serves.
//!
//! A model on its way is expected, then served from what is there of it, then settled, or withdrawn at any of these steps. Only
//! [`Provider::settle`] makes receipts possible.

use std::sync::{Arc, PoisonError};

use assay_api::{Arriving, Refusal};
use assay_core::id::ModelRoot;
use assay_engine::presence::Presence;

use super::Provider;
use crate::serving::ServedModel;

/// When to ask again for a model that is expected.
const RETRY_AFTER_S: u32 = 1;

/// A model of which nothing can be executed yet.
pub(super) struct Expected {
    name: String,
    root: ModelRoot,
    presence: Arc<Presence>,
}

impl Provider {
    /// The models that can be asked.
    pub fn served(&self) -> Vec<Arc<ServedModel>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn model(&self, root: ModelRoot) -> Result<Arc<ServedModel>, Refusal> {
        if let Some(found) = self.served().into_iter().find(|m| m.artifact().root() == root) {
            return Ok(found);
        }
        let asked = root.to_string();
        let expected = self.expected.read().unwrap_or_else(PoisonError::into_inner);
        match expected.iter().any(|e| e.root == root) {
            true => Err(Refusal::ModelArriving { asked, retry_after_s: RETRY_AFTER_S }),
            false => Err(Refusal::UnknownModel { asked }),
        }
    }

    /// A model is on its way, of which `presence` says what is here.
    pub fn expect(&self, name: &str, root: ModelRoot, presence: Arc<Presence>) {
        let expected = Expected { name: name.to_owned(), root, presence };
        self.expected.write().unwrap_or_else(PoisonError::into_inner).push(expected);
    }

    /// A model can be asked from now on.
    pub fn serve(&self, model: ServedModel) {
        let root = model.artifact().root();
        self.models.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(model));
        self.expected.write().unwrap_or_else(PoisonError::into_inner).retain(|e| e.root != root);
    }

    /// A model that arrived is what its root says: its answers get their receipts.
    pub fn settle(&self, root: ModelRoot) {
        self.served().iter().filter(|m| m.artifact().root() == root).for_each(|m| m.settle());
    }

    /// A model on its way will not arrive, or is not what it says: it is neither expected nor served any more, and its answers end
    /// without receipts. Waits for the model's thread; a model that is whole stays.
    pub fn withdraw(&self, root: ModelRoot, reason: &str) {
        let is_meant = |m: &Arc<ServedModel>| {
            let arrives = m.artifact().presence().is_some_and(|p| !p.is_settled());
            m.artifact().root() == root && arrives
        };
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Arc<ServedModel>> = models.extract_if(.., |m| is_meant(m)).collect();
        drop(models);
        gone.iter().for_each(|m| m.withdraw(reason));
        self.expected.write().unwrap_or_else(PoisonError::into_inner).retain(|e| e.root != root);
    }

    pub(super) fn on_their_way(&self) -> Vec<Arriving> {
        let expected = self.expected.read().unwrap_or_else(PoisonError::into_inner);
        let expected = expected.iter().map(|e| Arriving {
            id: e.name.clone(),
            root: e.root,
            bytes: e.presence.bytes(),
            size: e.presence.size(),
            listed: false,
            layers_executed: 0,
            layers: 0,
        });
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let served = self.served().into_iter().filter_map(|m| {
            let presence = m.artifact().presence().filter(|p| !p.is_settled())?;
            let (executed, layers) = m.layers();
            Some(Arriving {
                id: m.artifact().provenance().name.clone(),
                root: m.artifact().root(),
                bytes: presence.bytes(),
                size: presence.size(),
                listed: true,
                layers_executed: count(executed),
                layers: count(layers),
            })
        });
        expected.chain(served).collect()
    }
}
