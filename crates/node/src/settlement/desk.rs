//! Where auditors come for what they were drawn to check: `POST /v1/audits` (`docs/daemons.md`).
//!
//! Invariant: leaves are given to members of the batch's panel alone, records to the member, or the second, that the beacon drew for the
//! receipt; and sealed, so that nobody on the way reads a prompt. Of a record whose client withholds its consent, nobody gets more than the receipt and
//! that it does. What the desk knows of the ledger is what the last round of settlement read. It
//! refuses in plain text: a refusal says nothing that is not on the ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use alloy_primitives::{Address, B256};
use assay_api::audits::{
    AUDIT_REQUEST_BYTES_MAX, AuditAnswer, AuditLeaf, AuditRequest, AuditRequestError, LEAVES_MAX, PAGE_BYTES,
    SignedAuditRequest, Wanted, seal_answer,
};
use assay_core::canonical::Canonical as _;
use assay_core::consent::Consent;
use assay_core::embedding::Record;
use assay_ledger::audits::{assigned, is_drawn};
use assay_ledger::contracts::Directory::Rates;
use assay_ledger::contracts::address;
use assay_ledger::epochs::{Identity, Leaf};
use assay_ledger::ledger::Ledger;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tokio::sync::Semaphore;

use super::event::{Event, Listener};
use crate::store::{ReceiptStore, StoreError};

/// Requests that are answered at once; others wait. Reading records must not crowd out paid work.
const AT_ONCE: usize = 2;
/// Records that are read at once.
const PAGE: usize = 64;

/// Who audits a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Panel {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) beacon: B256,
    pub(super) backing: u64,
    pub(super) auditors: Vec<Address>,
}

/// Why an auditor is not given what it asks for.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The request is not believed.
    #[error(transparent)]
    Request(#[from] AuditRequestError),
    /// No batch of that epoch is being audited, as far as this node has read.
    #[error(
        "no batch of epoch {epoch} is being audited, as far as this node has read; try again in a minute"
    )]
    NotAudited {
        /// Of which epoch.
        epoch: u64,
    },
    /// The auditor is not on the panel.
    #[error("{auditor} is not on the panel of epoch {epoch}")]
    NotOnPanel {
        /// Who asks.
        auditor: Address,
        /// Of which epoch.
        epoch: u64,
    },
    /// A number is not in the batch.
    #[error("sequence number {sequence} is not in the batch of epoch {epoch}")]
    NotInBatch {
        /// Which.
        sequence: u64,
        /// Of which epoch.
        epoch: u64,
    },
    /// The receipt was not drawn for this auditor.
    #[error("receipt {sequence} was not drawn for {auditor}")]
    NotAssigned {
        /// Which.
        sequence: u64,
        /// Who asks.
        auditor: Address,
    },
    /// The receipts cannot be read.
    #[error("the receipts cannot be read; see the provider's log")]
    Store(#[source] StoreError),
    /// The key of the request is none.
    #[error("the request's key is no key that an answer can be sealed to")]
    Key,
}

impl DeskError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            DeskError::Request(e) => e.code(),
            DeskError::NotAudited { .. } => "audit_not_open",
            DeskError::NotOnPanel { .. } => "audit_not_on_panel",
            DeskError::NotInBatch { .. } => "audit_not_in_batch",
            DeskError::NotAssigned { .. } => "audit_not_assigned",
            DeskError::Store(_) => "audit_store",
            DeskError::Key => "audit_key",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            DeskError::Request(AuditRequestError::Signature { .. }) => StatusCode::FORBIDDEN,
            DeskError::Request(_) | DeskError::Key => StatusCode::BAD_REQUEST,
            DeskError::NotAudited { .. } | DeskError::NotInBatch { .. } => StatusCode::NOT_FOUND,
            DeskError::NotOnPanel { .. } | DeskError::NotAssigned { .. } => StatusCode::FORBIDDEN,
            DeskError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Answers auditors of one provider.
pub struct AuditDesk {
    identity: Identity,
    store: Arc<ReceiptStore>,
    rates: Rates,
    panels: RwLock<BTreeMap<u64, Panel>>,
    listener: Listener,
    working: Semaphore,
}

impl AuditDesk {
    pub(super) fn new(
        ledger: &Ledger,
        identity: Identity,
        store: Arc<ReceiptStore>,
        listener: Listener,
    ) -> AuditDesk {
        let rates = ledger.parameters().rates.clone();
        let working = Semaphore::new(AT_ONCE);
        AuditDesk { identity, store, rates, panels: RwLock::default(), listener, working }
    }

    /// The route.
    pub fn routes(self: &Arc<AuditDesk>) -> Router {
        Router::new().route("/v1/audits", post(take)).with_state(Arc::clone(self))
    }

    pub(super) fn knows(&self, epoch: u64) -> bool {
        self.panels.read().unwrap_or_else(PoisonError::into_inner).contains_key(&epoch)
    }

    pub(super) fn see(&self, epoch: u64, panel: Panel) {
        self.panels.write().unwrap_or_else(PoisonError::into_inner).insert(epoch, panel);
    }

    pub(super) fn forget(&self, is_over: impl Fn(u64) -> bool) {
        self.panels.write().unwrap_or_else(PoisonError::into_inner).retain(|epoch, _| !is_over(*epoch));
    }

    /// The answer to a body, sealed.
    fn answer(&self, body: &[u8], now_s: u64) -> Result<Vec<u8>, DeskError> {
        let request = SignedAuditRequest::read(body, self.identity.provider, now_s)?;
        let (epoch, auditor) = (request.epoch, address(&request.auditor));
        let panels = self.panels.read().unwrap_or_else(PoisonError::into_inner);
        let panel = panels.get(&epoch).cloned().ok_or(DeskError::NotAudited { epoch })?;
        drop(panels);
        if !panel.auditors.contains(&auditor) {
            return Err(DeskError::NotOnPanel { auditor, epoch });
        }
        let answer = match &request.wanted {
            Wanted::Leaves { from } => AuditAnswer::Leaves(self.leaves(&panel, epoch, *from)?),
            Wanted::Records(numbers) => AuditAnswer::Records(self.records(&panel, &request, numbers)?),
        };
        let count = match &answer {
            AuditAnswer::Leaves(all) => all.len(),
            AuditAnswer::Records(all) => all.len(),
        };
        let sealed = seal_answer(&request, &answer).ok_or(DeskError::Key)?;
        (self.listener)(Event::Audited { auditor, epoch, count });
        Ok(sealed)
    }

    fn is_own(&self, record: &Record) -> bool {
        let signed = record.receipt();
        signed.domain == self.identity.domain && signed.receipt.provider == self.identity.provider
    }

    fn leaves(&self, panel: &Panel, epoch: u64, from: u64) -> Result<Vec<Option<AuditLeaf>>, DeskError> {
        let end = panel.first.saturating_add(panel.count.into());
        if from < panel.first || from >= end {
            return Err(DeskError::NotInBatch { sequence: from, epoch });
        }
        let end = end.min(from.saturating_add(LEAVES_MAX.into()));
        let mut leaves = vec![None; usize::try_from(end.saturating_sub(from)).unwrap_or(0)];
        let mut next = from;
        while next < end {
            let page = self.store.from_sequence(next, PAGE).map_err(DeskError::Store)?;
            let Some(last) = page.last() else { break };
            next = last.receipt().receipt.sequence.saturating_add(1);
            for record in page.iter().filter(|record| self.is_own(record)) {
                let signed = record.receipt();
                let place =
                    usize::try_from(signed.receipt.sequence.saturating_sub(from)).unwrap_or(usize::MAX);
                if let Some(leaf) = leaves.get_mut(place) {
                    let Leaf { epoch, fee_micro_usd, model_root, signing_hash } = Leaf::of(signed);
                    *leaf = Some(AuditLeaf { epoch, fee_micro_usd, model_root, signing_hash });
                }
            }
        }
        Ok(leaves)
    }

    /// Records until the page is full, at least one.
    fn records(
        &self,
        panel: &Panel,
        request: &AuditRequest,
        numbers: &[u64],
    ) -> Result<Vec<Vec<u8>>, DeskError> {
        let auditor = address(&request.auditor);
        let epoch = request.epoch;
        let end = panel.first.saturating_add(panel.count.into());
        let mut records = Vec::new();
        let mut bytes = 0usize;
        for sequence in numbers.iter().copied() {
            let missing = DeskError::NotInBatch { sequence, epoch };
            if sequence < panel.first || sequence >= end {
                return Err(missing);
            }
            let found = self.store.from_sequence(sequence, 1).map_err(DeskError::Store)?.pop();
            let found = found.filter(|r| r.receipt().receipt.sequence == sequence && self.is_own(r));
            let record = found.ok_or(missing)?;
            if !self.is_assigned(panel, auditor, sequence, record.receipt().receipt.fee_micro_usd) {
                return Err(DeskError::NotAssigned { sequence, auditor });
            }
            // What its client lets nobody see is not shown, and that it does not is.
            let canonical = match record.consent() {
                Consent::Given => record.to_canonical_bytes(),
                Consent::Withheld => record.withheld().to_canonical_bytes(),
            };
            bytes = bytes.saturating_add(canonical.len());
            if bytes > PAGE_BYTES && !records.is_empty() {
                break;
            }
            records.push(canonical);
        }
        Ok(records)
    }

    fn is_assigned(&self, panel: &Panel, auditor: Address, sequence: u64, fee: u64) -> bool {
        let provider = address(&self.identity.provider);
        let members = u8::try_from(panel.auditors.len()).unwrap_or(u8::MAX);
        let drawn = is_drawn(&panel.beacon, provider, sequence, fee, panel.backing, &self.rates);
        let who = assigned(&panel.beacon, provider, sequence, members, self.rates.secondPpm);
        drawn
            && who.is_some_and(|who| {
                let of = |member: u8| panel.auditors.get(usize::from(member)) == Some(&auditor);
                of(who.first) || who.second.is_some_and(of)
            })
    }
}

pub(super) fn refused(status: StatusCode, code: &str, message: impl ToString) -> Response {
    (status, axum::Json(json!({"error": {"code": code, "message": message.to_string()}}))).into_response()
}

async fn take(State(desk): State<Arc<AuditDesk>>, request: Request) -> Response {
    let body = match to_bytes(request.into_body(), AUDIT_REQUEST_BYTES_MAX).await {
        Ok(body) => body,
        Err(e) => return refused(StatusCode::PAYLOAD_TOO_LARGE, "audit_too_long", e),
    };
    let Ok(_working) = desk.working.acquire().await else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "audit_stopped", "the provider stops");
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let working = Arc::clone(&desk);
    let answered = tokio::task::spawn_blocking(move || working.answer(&body, now)).await;
    match answered.expect("reading records does not panic") {
        Ok(sealed) => sealed.into_response(),
        Err(e) => {
            if let DeskError::Store(source) = &e {
                tracing::error!(%source, "records for an auditor could not be read");
            }
            refused(e.status(), e.code(), &e)
        }
    }
}
