//! The last answers, for `GET /v1/receipts` and for requests that come again. In memory: providers keep theirs for ever.

use std::collections::{HashMap, VecDeque};

use assay_api::Event;
use assay_core::embedding::Record;
use assay_core::id::ReceiptId;

/// Bytes of them.
pub(super) const RECORDS_BYTES_MAX: usize = 64 << 20;

/// An answer that was told.
pub(super) struct Kept {
    pub(super) record: Record,
    /// What the client heard, but for the end.
    pub(super) events: Vec<Event>,
    pub(super) bytes: usize,
    /// The name that the client heard first, if the answer was begun by another provider.
    pub(super) named: Option<ReceiptId>,
}

/// The last ones, up to [`RECORDS_BYTES_MAX`].
#[derive(Default)]
pub(super) struct Records {
    by_id: HashMap<ReceiptId, Kept>,
    names: HashMap<ReceiptId, ReceiptId>,
    order: VecDeque<ReceiptId>,
    bytes: usize,
}

impl Records {
    /// One of them, by its receipt or by the name that the client heard.
    pub(super) fn get(&self, id: ReceiptId) -> Option<&Kept> {
        self.by_id.get(&id).or_else(|| self.by_id.get(self.names.get(&id)?))
    }

    /// Keeps one, and lets the oldest go.
    pub(super) fn keep(&mut self, kept: Kept) {
        let id = kept.record.receipt().receipt.id();
        if kept.bytes > RECORDS_BYTES_MAX || self.by_id.contains_key(&id) {
            return;
        }
        self.bytes += kept.bytes;
        if let Some(named) = kept.named {
            self.names.insert(named, id);
        }
        self.by_id.insert(id, kept);
        self.order.push_back(id);
        while self.bytes > RECORDS_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(kept) = self.by_id.remove(&oldest) {
                self.bytes -= kept.bytes;
                kept.named.and_then(|named| self.names.remove(&named));
            }
        }
    }
}
