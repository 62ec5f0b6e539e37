//! Progress of long work, on standard error, if that is a terminal.

use assay_engine::artifact::{Artifact, ArtifactError};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar; `template` as in indicatif.
pub fn bar(template: &str) -> ProgressBar {
    // Templates are literals of this binary.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// Recomputes an artifact's root from its content.
pub fn check_root(artifact: &Artifact) -> Result<(), ArtifactError> {
    let bar = bar("hashing {msg} {bar:30} {percent} % {eta}");
    bar.set_length(artifact.parameters());
    bar.set_message(artifact.provenance().name.clone());
    let checked = artifact.check_root(&|weights| bar.inc(weights));
    bar.finish_and_clear();
    checked
}

/// A sign that something of unknown length is being done.
pub fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner
}
