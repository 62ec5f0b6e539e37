//! Without text (see the feature `native`) there is no [`Subject`], and nothing is replayed with it: what checks with one where
//! there is one compiles all the same.

use assay_core::answer::AnswerRecord;
use assay_core::id::ModelRoot;
use assay_engine::semantics::adjust::Mask;

use crate::report::Report;

/// Never: whoever has no text has no tokenizer.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// Holds the lifetime of what it would borrow.
    #[doc(hidden)]
    Never(std::convert::Infallible, std::marker::PhantomData<&'a ()>),
}

/// Never, likewise.
pub(crate) enum Guided {}

impl Subject<'_> {
    pub(crate) fn root(&self) -> ModelRoot {
        match *self {
            Subject::Never(never, _) => match never {},
        }
    }
}

impl Guided {
    pub(crate) fn push(&mut self, _: u32) {
        match *self {}
    }

    pub(crate) fn mask(&mut self) -> Mask {
        match *self {}
    }
}

impl Report {
    pub(crate) fn prompt(&mut self, _: &AnswerRecord, subject: &Subject<'_>) {
        subject.root();
    }

    pub(crate) fn text(&mut self, _: &AnswerRecord, subject: &Subject<'_>) {
        subject.root();
    }
}

pub(crate) fn guided(_: &AnswerRecord, subject: &Subject<'_>) -> Result<Option<Guided>, String> {
    subject.root();
    Ok(None)
}
