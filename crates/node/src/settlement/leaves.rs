//! Where whoever holds a receipt sees what stands at its number: `POST /v1/leaves` (`docs/daemons.md`).
//!
//! Invariant: what is shown is what was posted, with its path under the posted root; nothing of a receipt is shown but its hash, so that anyone may ask. The desk
//! knows the batches that settlement had posted when its last round ended, and reads their files beside it. It refuses in plain text.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use assay_api::leaves::{
    LEAVES_REQUEST_BYTES_MAX, LeavesAnswer, LeavesRequest, LeavesRequestError, PostedLeaf,
};
use assay_core::canonical::Canonical as _;
use assay_ledger::epochs::{Batch, Builder, Disk, Identity, Progress, ProofError, Shelf};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::sync::Semaphore;

use super::desk::refused;

/// Requests that are answered at once; others wait. Hashing leaves must not crowd out paid work.
const AT_ONCE: usize = 1;

/// Why leaves are not shown.
#[derive(Debug, thiserror::Error)]
enum LeavesError {
    /// The request is none.
    #[error(transparent)]
    Request(#[from] LeavesRequestError),
    /// This node has posted no such batch, as far as it has read, or does not keep it any more.
    #[error(
        "no batch of epoch {epoch} is here, as far as this node has read; try again in a minute, or demand the leaf on the ledger"
    )]
    NotPosted {
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
    /// The batch cannot be read.
    #[error("the batch cannot be read; see the provider's log")]
    Unread(#[source] ProofError),
}

impl LeavesError {
    /// Stable code.
    fn code(&self) -> &'static str {
        match self {
            LeavesError::Request(e) => e.code(),
            LeavesError::NotPosted { .. } => "leaves_not_posted",
            LeavesError::NotInBatch { .. } => "leaves_not_in_batch",
            LeavesError::Unread(_) => "leaves_unread",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            LeavesError::Request(_) => StatusCode::BAD_REQUEST,
            LeavesError::NotPosted { .. } | LeavesError::NotInBatch { .. } => StatusCode::NOT_FOUND,
            LeavesError::Unread(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Shows leaves of one provider.
pub(super) struct LeavesDesk {
    identity: Identity,
    shelf: Shelf,
    posted: RwLock<BTreeMap<u64, Batch>>,
    working: Semaphore,
}

impl LeavesDesk {
    /// A desk beside the builder in `folder`, which has shown it nothing yet.
    pub(super) fn new(folder: &Path, identity: Identity) -> LeavesDesk {
        let shelf = Shelf::new(folder, &identity);
        LeavesDesk { identity, shelf, posted: RwLock::default(), working: Semaphore::new(AT_ONCE) }
    }

    /// The route.
    pub(super) fn routes(self: &Arc<LeavesDesk>) -> Router {
        Router::new().route("/v1/leaves", post(take)).with_state(Arc::clone(self))
    }

    /// Learns which batches were posted. One that was only sealed is shown to nobody: it may be taken back.
    pub(super) fn see<D: Disk>(&self, builder: &Builder<D>) {
        let posted = builder.batches().iter().filter(|entry| entry.progress != Progress::Sealed);
        let posted = posted.map(|entry| (entry.batch.epoch, entry.batch.clone())).collect();
        *self.posted.write().unwrap_or_else(PoisonError::into_inner) = posted;
    }

    /// The answer to a body.
    fn answer(&self, body: &[u8]) -> Result<Vec<u8>, LeavesError> {
        let LeavesRequest { epoch, numbers, .. } = LeavesRequest::read(body, self.identity.provider)?;
        let posted = self.posted.read().unwrap_or_else(PoisonError::into_inner);
        let batch = posted.get(&epoch).cloned().ok_or(LeavesError::NotPosted { epoch })?;
        drop(posted);
        let mut leaves = Vec::with_capacity(numbers.len());
        for sequence in numbers {
            let (leaf, proof) = self.shelf.leaf(&batch, sequence).map_err(|e| match e {
                ProofError::NotHeld { sequence } => LeavesError::NotInBatch { sequence, epoch },
                other => LeavesError::Unread(other),
            })?;
            leaves.push(PostedLeaf { leaf, path: proof.path });
        }
        Ok(LeavesAnswer { leaves }.to_canonical_bytes())
    }
}

async fn take(State(desk): State<Arc<LeavesDesk>>, request: Request) -> Response {
    let body = match to_bytes(request.into_body(), LEAVES_REQUEST_BYTES_MAX).await {
        Ok(body) => body,
        Err(e) => return refused(StatusCode::PAYLOAD_TOO_LARGE, "leaves_too_long", e),
    };
    let Ok(_working) = desk.working.acquire().await else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "leaves_stopped", "the provider stops");
    };
    let working = Arc::clone(&desk);
    let answered = tokio::task::spawn_blocking(move || working.answer(&body)).await;
    match answered.expect("reading leaves does not panic") {
        Ok(answer) => answer.into_response(),
        Err(e) => {
            if let LeavesError::Unread(source) = &e {
                tracing::error!(%source, "leaves of a batch could not be read");
            }
            refused(e.status(), e.code(), &e)
        }
    }
}
