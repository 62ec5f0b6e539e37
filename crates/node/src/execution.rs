//! Models that this node can execute again: for audits, and for disputes about what it or others signed.
//!
//! Invariant: an executable model is what its root says; it was hashed here, whole, before anything was concluded from it. It refuses to fetch:
//! which models are installed, whoever opens the library says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use assay_core::answer::AnswerRecord;
use assay_core::digest::ExecutionDigests;
use assay_core::embedding::{EmbeddingRecord, Record};
use assay_core::id::{Hash, ModelRoot};
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_core::request::Sampling;
use assay_engine::artifact::Artifact;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Head;
use assay_engine::text::{TextError, Tokenizer};
use assay_verify::dispute::parties::{Player, stands_by};
use assay_verify::embedding::check_embedding_by_reexecution;
use assay_verify::microstep::Choice;
use assay_verify::reexecution::Subject as Model;
use assay_verify::trace::NotExecutable;
use assay_verify::trace::walk::{Subject, Trace};
use serde::{Deserialize, Serialize};

/// Says where the model with a root is installed, if it is.
pub type Installed = Arc<dyn Fn(ModelRoot) -> Option<Arc<Artifact>> + Send + Sync>;

/// Why a model cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It is not here.
    #[error("model {root} is not installed; `assay pull` it")]
    Missing {
        /// Which.
        root: ModelRoot,
    },
    /// The file holds another one.
    #[error(
        "what is installed as model {root} has the root {found}: the file is damaged; remove it and `assay pull` it again"
    )]
    Damaged {
        /// Which was asked for.
        root: ModelRoot,
        /// What its content is.
        found: ModelRoot,
    },
    /// Its tokenizer cannot be used.
    #[error("the tokenizer of model {root} cannot be used: {source}")]
    Text {
        /// Of which.
        root: ModelRoot,
        /// Why.
        source: TextError,
    },
}

impl LibraryError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            LibraryError::Missing { .. } => "model_missing",
            LibraryError::Damaged { .. } => "model_damaged",
            LibraryError::Text { .. } => "model_text",
        }
    }
}

/// What an execution of a record came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The trace root (protocol 9.3); of embeddings the root over the trace roots of their inputs.
    pub trace: Hash,
    /// Whether the receipt stands.
    pub verdict: Verdict,
    /// Its digests, of an answer that was shown without.
    pub digests: Option<ExecutionDigests>,
}

/// A record that is to be executed, by where it comes from.
#[derive(Clone, Debug)]
pub enum Shown {
    /// From the provider: whole, with its signature.
    ByProvider(Record),
    /// From the ledger, where a provider showed request and transcript: without digests, of which the receipt has the root, and without the
    /// signature, for which its place under the posted root stands.
    OnLedger(Box<AnswerRecord>),
}

impl Shown {
    /// Its receipt.
    pub fn receipt(&self) -> &Receipt {
        match self {
            Shown::ByProvider(record) => &record.receipt().receipt,
            Shown::OnLedger(record) => &record.receipt.receipt,
        }
    }
}

/// What an execution says of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It stands: its digests and tokens, or vectors, are those of the execution.
    Stands,
    /// It does not, and a dispute ends with that.
    Wrong,
    /// It does not, and no contract can say so: a token that a guide left or not, an embedding.
    Undisputable,
    /// It names what the model does not have, so that nobody can execute it.
    NotExecutable,
    /// Its client lets nobody but the provider see the request: it was not executed.
    Withheld,
}

/// Why a record was not executed.
#[derive(Debug, thiserror::Error)]
pub enum ExecutionError {
    /// Its model is not here.
    #[error(transparent)]
    Model(#[from] LibraryError),
    /// Nobody can execute it.
    #[error("it cannot be executed: {0}")]
    Not(#[from] NotExecutable),
}

/// The models of this node.
pub struct Library {
    installed: Installed,
    kernel: Kernel,
    pool: Arc<Pool>,
    checked: Mutex<BTreeMap<ModelRoot, Slot>>,
}

/// One model, locked while it is hashed: who needs another one does not wait for that.
type Slot = Arc<Mutex<Option<Arc<Executable>>>>;

/// A model that was hashed.
pub struct Executable {
    artifact: Arc<Artifact>,
    tokenizer: Tokenizer,
    tree: ModelTree,
    kernel: Kernel,
    pool: Arc<Pool>,
}

impl Library {
    /// Models as `installed` says, executed by `kernel` on `pool`.
    pub fn new(installed: Installed, kernel: Kernel, pool: Arc<Pool>) -> Library {
        Library { installed, kernel, pool, checked: Mutex::default() }
    }

    /// Whether a model is installed here, as far as is known without hashing it.
    pub fn is_installed(&self, root: ModelRoot) -> bool {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&root);
        checked || (self.installed)(root).is_some()
    }

    /// A model. The first time it is hashed whole, which takes a while.
    pub fn model(&self, root: ModelRoot) -> Result<Arc<Executable>, LibraryError> {
        let slots = || self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::clone(slots().entry(root).or_default());
        let mut model = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = model.as_ref() {
            return Ok(Arc::clone(known));
        }
        match self.hashed(root) {
            Ok(hashed) => Ok(Arc::clone(model.insert(Arc::new(hashed)))),
            Err(e) => {
                // What is not here leaves no trace: roots come from strangers.
                slots().remove(&root);
                Err(e)
            }
        }
    }

    fn hashed(&self, root: ModelRoot) -> Result<Executable, LibraryError> {
        let artifact = (self.installed)(root).ok_or(LibraryError::Missing { root })?;
        let tree = ModelTree::new(artifact.as_ref(), artifact.text(), artifact.tokenizer_json());
        if tree.root() != root {
            return Err(LibraryError::Damaged { root, found: tree.root() });
        }
        let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json());
        let tokenizer = tokenizer.map_err(|source| LibraryError::Text { root, source })?;
        Ok(Executable { artifact, tokenizer, tree, kernel: self.kernel, pool: Arc::clone(&self.pool) })
    }

    /// Executes a record again.
    pub fn execute(&self, record: &Shown) -> Result<Executed, ExecutionError> {
        let model = self.model(record.receipt().model_root)?;
        match record {
            Shown::ByProvider(Record::Answer(record)) => Ok(model.answer(record)?),
            Shown::ByProvider(Record::Embedding(record)) => Ok(model.embedding(record)?),
            Shown::OnLedger(record) => Ok(model.shown(record)?),
        }
    }
}

impl Executable {
    /// Its hashes.
    pub fn tree(&self) -> &ModelTree {
        &self.tree
    }

    /// Its constants and program.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    fn executor(&self) -> Executor {
        Executor::new(self.artifact.shared(), self.kernel, Arc::clone(&self.pool))
    }

    fn model(&self) -> Model<'_> {
        Model {
            root: self.tree.root(),
            program: self.artifact.program().program(),
            text: self.artifact.text(),
            tokenizer: &self.tokenizer,
        }
    }

    /// The trace of an answer, in one prefill.
    pub fn trace(&self, record: &AnswerRecord) -> Result<Trace<'_>, NotExecutable> {
        let subject = Subject::of(record, &self.model())?;
        Ok(Trace::new(self.artifact.as_ref(), subject, &mut self.executor()))
    }

    /// A party of a dispute about an answer.
    pub fn player(&self, record: &AnswerRecord) -> Result<Player<'_>, NotExecutable> {
        Ok(Player::new(self.trace(record)?, Box::new(self.executor())))
    }

    fn answer(&self, record: &AnswerRecord) -> Result<Executed, NotExecutable> {
        let trace = self.trace(record)?;
        let verdict = if stands_by(&trace, record, &mut self.executor()) {
            Verdict::Stands
        } else if trace.digests() == record.digests && record.request.guide.is_some() {
            // A token is another one, and which tokens a guide leaves is no matter for a referee.
            Verdict::Undisputable
        } else {
            Verdict::Wrong
        };
        Ok(Executed { trace: trace.root(), verdict, digests: None })
    }

    /// An answer without digests. Where they alone are others, nobody can say of which block.
    fn shown(&self, record: &AnswerRecord) -> Result<Executed, NotExecutable> {
        let trace = self.trace(record)?;
        let digests = trace.digests();
        let same = digests.root() == record.receipt.receipt.digest_root;
        let chosen = AnswerRecord { digests: digests.clone(), ..record.clone() };
        let verdict = match stands_by(&trace, &chosen, &mut self.executor()) {
            true if same => Verdict::Stands,
            false if record.request.guide.is_none() => Verdict::Wrong,
            _ => Verdict::Undisputable,
        };
        Ok(Executed { trace: trace.root(), verdict, digests: Some(digests) })
    }

    /// Every input is a sequence of its own.
    fn embedding(&self, record: &EmbeddingRecord) -> Result<Executed, NotExecutable> {
        let program = self.artifact.program().program();
        if !matches!(program.head, Head::Vector { .. }) {
            return Err(NotExecutable::Empty);
        }
        let (context, vocabulary) = (program.context, program.vocabulary);
        for ids in &record.transcript.input_ids {
            if ids.is_empty() {
                return Err(NotExecutable::Empty);
            }
            if ids.len() > context as usize {
                return Err(NotExecutable::Window { got: ids.len(), context });
            }
            if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id >= vocabulary) {
                return Err(NotExecutable::Vocabulary { at, id: *id, vocabulary });
            }
        }
        let mut executor = self.executor();
        let verdict = check_embedding_by_reexecution(record, &self.model(), &mut executor);
        let choice = || Choice { sampling: Sampling::GREEDY, guided: false, seed: [0; 32] };
        let trace = |ids: &Vec<u32>| {
            let subject = Subject { tokens: ids.clone(), prompt: 0, choice: choice(), masks: vec![] };
            merkle::leaf(Trace::new(self.artifact.as_ref(), subject, &mut executor).root().as_bytes())
        };
        let roots: Vec<Hash> = record.transcript.input_ids.iter().map(trace).collect();
        let verdict = if verdict.holds { Verdict::Stands } else { Verdict::Undisputable };
        Ok(Executed { trace: merkle::root(roots), verdict, digests: None })
    }
}
