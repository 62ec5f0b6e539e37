//! What a host does, for whoever runs it: lines of the log, and on a terminal a bar for each model that arrives.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};

use assay_hub::blob::BlobHash;
use assay_node::host::{Event, Listener};
use indicatif::{HumanBytes, MultiProgress, ProgressBar};

use crate::progress;

/// Who hears of a host's events.
pub fn listener() -> Listener {
    if !std::io::stderr().is_terminal() {
        return Arc::new(log);
    }
    let bars = Bars::default();
    Arc::new(move |event| bars.hear(event))
}

/// A bar for each blob that arrives, below the lines.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    arriving: Mutex<HashMap<BlobHash, ProgressBar>>,
}

impl Bars {
    fn hear(&self, event: Event) {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::Arriving { blob, verified, size } = event {
            let bar = arriving.entry(blob).or_insert_with(|| {
                let bar = progress::bar("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
                bar.set_message(blob.to_string().chars().take(12).collect::<String>());
                self.screen.add(bar)
            });
            bar.set_length(size);
            bar.set_position(verified);
            return;
        }
        // A fetch ends with one of these; of several at once, those that go on show themselves again.
        if matches!(event, Event::Kept { .. } | Event::Failed { .. }) {
            arriving.drain().for_each(|(_, bar)| bar.finish_and_clear());
        }
        drop(arriving);
        self.screen.suspend(|| log(event));
    }
}

/// Events as lines of the log.
fn log(event: Event) {
    match event {
        Event::Taken { id, blob } => tracing::info!(%id, %blob, "taken in"),
        Event::Learnt { id } => tracing::info!(%id, "heard of a release"),
        Event::Silent { host, reason } => tracing::warn!(%host, %reason, "does not answer"),
        Event::Arriving { blob, verified, size } => tracing::debug!(%blob, verified, size, "arriving"),
        Event::Kept { blob, size } => tracing::info!(%blob, size = %HumanBytes(size), "kept"),
        Event::Dropped { blob, freed } => {
            tracing::info!(%blob, freed = %HumanBytes(freed), "let go: others keep it")
        }
        Event::Lost { blob } => tracing::warn!(%blob, "no known host keeps it"),
        Event::Pledged { blob } => tracing::info!(%blob, "pledged on the ledger"),
        Event::Answered { blob, epoch, chunk } => tracing::info!(%blob, epoch, chunk, "answered the beacon"),
        Event::Shown { host, epoch } => tracing::info!(%host, epoch, "showed that a host is silent"),
        Event::Counted { downloader, bytes } => {
            tracing::info!(%downloader, bytes = %HumanBytes(bytes), "a provider's fetches are counted")
        }
        Event::Failed { what, code, reason } => tracing::warn!(code, %reason, "{what} failed"),
    }
}
