//! A disk that is full in the middle of a fetch. The limit is one on the size of files (RLIMIT_FSIZE), in a process of its own: a write
//! beyond it fails as one to a full disk does.

use std::process::Command;

use assay_hub::blob::BlobHash;
use assay_hub::fetch::FetchError;
use assay_hub::server::ServerOptions;
use assay_hub::store::{Collect, Fsck, Quota, Store};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::get;
use super::hosts::{content, host, store_with};

const SIZE: u64 = 24 << 20;
const LIMIT: u64 = 8 << 20;
/// Where the process with the limit finds the host, the blob and its own store.
const TASK: &str = "ASSAY_TEST_FULL_DISK";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_one_error_and_the_fetch_goes_on_when_there_is_room() {
    if let Ok(task) = std::env::var(TASK) {
        return limited(&task).await;
    }
    let (_a, store, hash) = store_with(&content(SIZE));
    let peer = host(store, ServerOptions::default()).await;
    let into = tempfile::tempdir().expect("a folder");
    let task = format!("{peer} {hash} {}", into.path().display());
    let name = "full::a_full_disk_is_one_error_and_the_fetch_goes_on_when_there_is_room";
    let program = std::env::current_exe().expect("this program");
    // The signal that the system sends with the error would end the process.
    let run = move || {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture"]).arg(program).arg(name);
        command.env(TASK, task).output()
    };
    let output = tokio::task::spawn_blocking(run).await.expect("it runs").expect("it runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn limited(task: &str) {
    let mut words = task.splitn(3, ' ');
    let mut word = || words.next().expect("three words");
    let peer = word().parse().expect("an address");
    let hash: BlobHash = word().parse().expect("a name");
    let store = Store::open(word().as_ref(), Quota::UNLIMITED).expect("a store");
    // The file is made as long as the blob before the limit holds: then writes fail and not its making.
    drop(store.arrive(hash, SIZE).expect("there is room"));
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(LIMIT), ..before }).expect("a limit");
    let failed = get(&store, hash, std::slice::from_ref(&peer)).await;
    let Err(FetchError::Store(e)) = &failed else { panic!("{failed:?}") };
    assert_eq!(e.code(), "disk_full", "{e}");
    assert!(e.to_string().contains(&hash.to_string()), "it names the file: {e}");
    // Nothing has a good name, and what there is is right.
    assert!(store.blob(hash).expect("it reads").is_none() && store.blobs().expect("it reads").is_empty());
    setrlimit(Resource::Fsize, before).expect("no limit");
    let checked = store.fsck(Fsck::Check, &mut |_, _| ()).expect("it reads");
    assert!(checked.problems.is_empty(), "{:?}", checked.problems);
    let fetched = get(&store, hash, &[peer]).await.expect("there is room again");
    super::assert_whole(&fetched, &content(SIZE));
    drop(fetched);
    store.gc(Collect::Delete, std::time::Duration::MAX).expect("it collects");
}
