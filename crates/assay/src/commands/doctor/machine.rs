//! The machine and the models: does it compute what it should.

use anyhow::Result;
use assay_engine::artifact::Artifact;
use assay_engine::kernel::Kernel;

use super::Findings;
use crate::commands::vectors::gives_what_is_published;
use crate::home::{Home, built_in};
use crate::progress;

pub(super) fn examine(home: &Home, found: &mut Findings) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    found.ok("processor", "processor", format!("{threads} threads, kernels {:?}", Kernel::available()));
    match Kernel::from_environment() {
        Ok(kernel) => found.ok("kernel", "kernel", kernel.name()),
        Err(e) => found.wrong("kernel_unknown", "kernel", e.to_string(), "unset ASSAY_KERNEL"),
    }
    for kernel in Kernel::available() {
        let what = format!("vectors {}", kernel.name());
        match gives_what_is_published(Some(kernel)) {
            true => found.ok("vectors", what, "equals the published vectors"),
            false => found.wrong(
                "vectors_differ",
                what,
                "computes other numbers",
                "do not serve with it: set ASSAY_KERNEL to another one, and report this processor",
            ),
        }
    }
    match built_in() {
        Ok(artifact) => model(&artifact, "built-in model", found),
        Err(e) => found.wrong("model_damaged", "built-in model", e.to_string(), "install this program again"),
    }
    for path in home.installed()? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match Artifact::open(&path) {
            Ok(artifact) => model(&artifact, &name, found),
            Err(e) => {
                found.wrong("model_damaged", name, e.to_string(), "remove it and `assay pull` it again")
            }
        }
    }
    Ok(())
}

fn model(artifact: &Artifact, what: &str, found: &mut Findings) {
    match progress::check_root(artifact) {
        Ok(()) => found.ok("model", what, format!("{} {}", artifact.provenance().name, artifact.root())),
        Err(e) => found.wrong("model_damaged", what, e.to_string(), "remove it and `assay pull` it again"),
    }
}
