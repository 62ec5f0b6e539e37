//! The audit of layers: each by an auditor who holds one of them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use assay_core::canonical::Canonical as _;
use assay_core::verdict::{Check, Failure, FailureCode, Outcome, Verdict};
use assay_engine::artifact::layer::{LayerModel, extract};
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants as _;
use assay_engine::program::layers::Layers;
use assay_verify::reexecution::check_record;
use assay_verify::shard::{Boundary, Evidence, Shard, ShardVerdict, boundaries, check_shard, join};

use super::tiers::{Audited, BOTH, Side, timed};
use crate::commands::record::Answer;
use crate::commands::steps::plural;

/// Whoever checks layers: with what was found so far.
struct Auditors<'a> {
    answer: &'a Answer,
    tree: ModelTree,
    verdicts: Vec<ShardVerdict>,
    sides: Vec<Side>,
}

impl Auditors<'_> {
    /// Checks layer `index` by the states before and after it.
    fn check(&mut self, index: usize, input: Option<&Boundary>, output: Option<&Boundary>) -> Result<()> {
        let (answer, root) = (self.answer, self.tree.root());
        let bytes = extract(answer.artifact.as_ref(), &self.tree, index)
            .with_context(|| format!("layer {index} is larger than one auditor may hold"))?;
        let held = bytes.len();
        let (model, reading) = timed(|| LayerModel::read(&bytes, root));
        drop(bytes);
        let model = Arc::new(model?);
        let mut executor = answer.executor_of(model.clone());
        let subject = answer.model();
        let evidence = Evidence { input, output, record: Some(&answer.record), subject: Some(&subject) };
        let (verdict, checking) = timed(|| check_shard(&Shard::of(&model), &evidence, &mut executor));
        self.verdicts.push(verdict?);
        let states = [input, output].into_iter().flatten().map(written).sum();
        self.sides.push(Side::auditor(
            format!("holds layer {index}; proves it, once"),
            Some(reading),
            Some(held),
        ));
        self.sides.push(Side::auditor(
            format!("executes layer {index} for all tokens"),
            Some(checking),
            Some(states),
        ));
        Ok(())
    }
}

/// Bytes of a state as it is sent.
fn written(state: &Boundary) -> usize {
    state.to_canonical_bytes().len()
}

/// All layers and their verdicts joined, or one of them.
pub fn shard(answer: &Answer, tokens: &[u32], only: Option<usize>) -> Result<Audited> {
    let (artifact, record) = (&answer.artifact, &answer.record);
    let program = artifact.program();
    let last = Layers::of(program).all().len().saturating_sub(1);
    if let Some(layer) = only.filter(|l| *l > last) {
        bail!("there is no layer {layer}: the model's are 0 to {last}");
    }
    let tree = ModelTree::new(artifact.as_ref(), artifact.text(), artifact.tokenizer_json());
    if tree.root() != artifact.root() {
        bail!(
            "{}: its content has the root {}, not {}",
            artifact.path().display(),
            tree.root(),
            artifact.root()
        );
    }
    let mut auditors = Auditors { answer, tree, verdicts: vec![], sides: vec![] };
    let (mut telling, mut sent, mut told) = (Duration::ZERO, 0, 0);
    let mut before: Option<Boundary> = None;
    let mut checked = Ok(());
    let mut mark = Instant::now();
    boundaries(program, &mut answer.executor(), tokens, &mut |i, state| {
        telling += mark.elapsed();
        if only.is_none_or(|l| l == i || l == i + 1) {
            (sent, told) = (sent + written(state), told + 1);
        }
        if only.is_none_or(|l| l == i) {
            checked = auditors.check(i, before.as_ref(), Some(state));
        }
        before = Some(state.clone());
        mark = Instant::now();
        if checked.is_err() || only == Some(i) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    checked?;
    if only.is_none_or(|l| l == last) {
        auditors.check(last, before.as_ref(), None)?;
    }
    let what =
        format!("executes again and tells the states at {}", plural(told, "boundary").replace("ys", "ies"));
    let mut sides = vec![Side::provider(what, Some(telling), Some(sent))];
    sides.append(&mut auditors.sides);
    let mut verdict = match (only, auditors.verdicts.pop()) {
        (Some(_), Some(one)) => alone(answer, one),
        (_, popped) => {
            auditors.verdicts.extend(popped);
            join(record, &answer.model(), program, &auditors.verdicts)
        }
    };
    verdict.unchecked.insert(0, BOTH.into());
    let sure = match only {
        Some(layer) => format!("certain for layer {layer}: it makes these numbers of those, or it does not."),
        None => "certain: layers that meet and all hold are one execution of the whole model.".into(),
    };
    let held = only.map_or("The answer".into(), |layer| format!("Layer {layer}"));
    Ok(Audited { sides, held, ..Audited::of(verdict, sure, None) })
}

/// The verdict on one layer, with what needs no model.
fn alone(answer: &Answer, of_layer: ShardVerdict) -> Verdict {
    let mut all = check_record(&answer.record);
    all.checks.retain(|c| c.outcome != Outcome::NotRun);
    let receipted = answer.record.receipt.receipt.model_root;
    if of_layer.model != receipted {
        let message = format!("the receipt is for model {receipted}, not {}", of_layer.model);
        all.holds = false;
        all.checks.push(Check { name: "model".into(), outcome: Outcome::Failed, detail: message.clone() });
        all.failure.get_or_insert(Failure { code: FailureCode::ModelRoot, position: None, message });
    }
    let Verdict { holds, checks, unchecked, failure } = of_layer.verdict;
    all.checks.extend(checks);
    // A line for each of eighty layers says no more than one for all.
    let others = "the other layers, and that their states are these: all of them, joined, are one execution";
    let own = unchecked.into_iter().filter(|u| !u.starts_with("layer "));
    let texts = ["prompt, text and end of the answer".to_owned(), others.to_owned()];
    all.unchecked.splice(0..0, own.chain(texts));
    Verdict { holds: all.holds && holds, failure: all.failure.or(failure), ..all }
}
