//! A model from its publisher to those who use it, by way of hosts, with the binary alone.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use harness::{assay, command, stderr, stdout};
use serde_json::Value;

/// A running `assay host`; killed when it is dropped.
struct Host {
    child: Child,
    url: String,
    /// What it says after its first line.
    said: BufReader<ChildStdout>,
}

impl Host {
    fn start(home: &Path, args: &[&str]) -> Host {
        Host::at(home, "127.0.0.1:0", args)
    }

    fn at(home: &Path, listen: &str, args: &[&str]) -> Host {
        let mut command = command(home);
        command.args(["host", "--listen", listen, "--every", "1", "--disk", "0.1"]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
        Host { url: url.trim_end_matches(',').to_owned(), child, said }
    }

    /// Where it is reached over iroh.
    fn iroh(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.split_whitespace().find(|word| word.starts_with("iroh:")).unwrap().to_owned()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ok(home: &Path, args: &[&str]) -> Value {
    let output = assay(home, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn built_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay")
}

/// Asks hosts until their cards are as wanted, or are not within two minutes.
async fn until(hosts: &[&Host], wanted: impl Fn(&[Value]) -> bool) {
    let client = harness::client();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let mut cards = Vec::new();
    while std::time::Instant::now() < deadline {
        cards.clear();
        for host in hosts {
            let answer = client.get(format!("{}/v1/host", host.url)).send().await.unwrap();
            cards.push(answer.json().await.unwrap());
        }
        if wanted(&cards) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("not within two minutes: {cards:#?}");
}

/// Asks a host until it keeps a release.
async fn until_kept(host: &Host, id: &str) {
    until(&[host], |cards| cards[0]["keeps"].as_array().unwrap().iter().any(|kept| kept == id)).await;
}

/// Addresses that nobody listened on a moment ago.
fn free(count: usize) -> Vec<String> {
    let bound: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

#[tokio::test]
async fn a_model_comes_over_iroh_from_an_address_that_stays() {
    let homes: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let [publisher, second, user] = [0, 1, 2].map(|i| homes[i].path());
    let installed = ok(publisher, &["pull", built_in().to_str().unwrap(), "--json"]);
    let published =
        ok(publisher, &["publish", "assay-stories", "--version", "1.0.0", "--copies", "2", "--json"]);
    let mut first_host = Host::start(publisher, &["--iroh", "127.0.0.1:0"]);
    let first = first_host.iroh();
    let mut second_host = Host::start(second, &["--iroh", "127.0.0.1:0", "--peer", &first]);
    until_kept(&second_host, published["id"].as_str().unwrap()).await;
    first_host.kill();
    let from = second_host.iroh();
    let pulled = ok(user, &["pull", "assay-stories@latest", "--from", &from, "--json"]);
    assert_eq!(pulled["root"], installed["root"]);
    // The name stays; the port was chosen anew.
    let mut again = Host::start(publisher, &["--iroh", "127.0.0.1:0"]);
    let name = |address: &str| address.split('@').next().unwrap().to_owned();
    assert_eq!(name(&again.iroh()), name(&first));
    let wrong = assay(user, &["pull", "assay-stories@latest", "--from", "iroh:nobody"]);
    assert!(stderr(&wrong).contains("iroh:<node id>"), "{}", stderr(&wrong));
}

#[tokio::test]
async fn a_cold_model_is_restored_from_shards_of_hosts_none_of_which_has_it() {
    let homes: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
    let publisher = homes[0].path();
    let installed = ok(publisher, &["pull", built_in().to_str().unwrap(), "--json"]);
    let publish = ["publish", "assay-stories", "--version", "1.0.0", "--cold", "2of3", "--json"];
    let published = ok(publisher, &publish);
    let id = &published["id"];
    let at = free(4);
    let urls: Vec<String> = at.iter().map(|at| format!("http://{at}")).collect();
    let mut args = vec!["--dead-after", "20", "--patience", "20", "--leave-notice", "20"];
    urls.iter().for_each(|url| args.extend(["--peer", url.as_str()]));
    let mut hosts: Vec<Host> = (0..4).map(|i| Host::at(homes[i].path(), &at[i], &args)).collect();
    // Each of three hosts has a shard in the end, and nobody the whole.
    until(&hosts.iter().collect::<Vec<_>>(), |cards| {
        let whole = cards.iter().any(|card| card["keeps"].as_array().unwrap().contains(id));
        let shards = cards.iter().flat_map(|card| card["shards"].as_array().unwrap());
        let mut indices: Vec<_> = shards.map(|shard| shard[1].as_u64().unwrap()).collect();
        indices.sort_unstable();
        !whole && indices == [0, 1, 2]
    })
    .await;
    // One of them dies.
    let client = harness::client();
    let card: Value =
        client.get(format!("{}/v1/host", hosts[1].url)).send().await.unwrap().json().await.unwrap();
    let dying = if card["shards"].as_array().unwrap().is_empty() { 2 } else { 1 };
    hosts[dying].kill();
    let mut pull = vec!["pull", "assay-stories@latest", "--json"];
    urls.iter().for_each(|url| pull.extend(["--from", url.as_str()]));
    assert_eq!(ok(homes[4].path(), &pull)["root"], installed["root"]);
}

#[tokio::test]
async fn a_model_goes_from_its_publisher_over_hosts_to_its_users() {
    let homes: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
    let [publisher, second, user, late, other] = [0, 1, 2, 3, 4].map(|i| homes[i].path());
    let installed = ok(publisher, &["pull", built_in().to_str().unwrap(), "--json"]);
    let card = publisher.join("card.md");
    std::fs::write(&card, "# Stories").unwrap();
    let publish = ["publish", "assay-stories", "--version", "1.0.0", "--copies", "2", "--json"];
    let published = ok(publisher, &publish);
    assert_eq!((&published["root"], &published["in_store"]), (&installed["root"], &true.into()));
    // Publishing the same again changes nothing but the time, and so it is another release of a taken version.
    let changed = assay(
        publisher,
        &["publish", "assay-stories", "--version", "1.0.0", "--card", card.to_str().unwrap()],
    );
    assert!(
        !changed.status.success() && stderr(&changed).contains("under another version"),
        "{}",
        stderr(&changed)
    );

    // A host keeps it, and a second one takes a copy, since two were asked.
    let mut first_host = Host::start(publisher, &[]);
    let second_host = Host::start(second, &["--peer", &first_host.url]);
    let id = published["id"].as_str().unwrap();
    until_kept(&second_host, id).await;
    let from = ["--from", first_host.url.as_str(), "--from", second_host.url.as_str(), "--json"];
    let pulled = ok(user, &[["pull", "assay-stories@latest"].as_slice(), &from].concat());
    assert_eq!(pulled["root"], installed["root"]);
    let answer = assay(user, &["run", "assay-stories", "Once upon a time", "--max-tokens", "8"]);
    assert!(answer.status.success(), "{}", stderr(&answer));

    // The publisher's machine dies; the second host is enough, by the model's root too.
    first_host.kill();
    let root = installed["root"].as_str().unwrap();
    let pulled = ok(late, &["pull", root, "--from", &second_host.url, "--json"]);
    assert_eq!(pulled["root"], installed["root"]);
    let nobody = assay(other, &["pull", "assay-stories@2", "--from", &second_host.url]);
    assert!(stderr(&nobody).contains("has no version 2; there are 1.0.0"), "{}", stderr(&nobody));
    let nobody = assay(other, &["pull", "nothing@latest", "--from", &second_host.url]);
    assert!(stderr(&nobody).contains("no release of nothing@latest"), "{}", stderr(&nobody));
    let nobody = assay(other, &["pull", "assay-stories@latest"]);
    assert!(stderr(&nobody).contains("--from"), "{}", stderr(&nobody));

    // While a host has the store open, publishing leaves a parcel that the host takes in.
    ok(second, &["pull", built_in().to_str().unwrap(), "--json"]);
    let own = ok(second, &["publish", "assay-stories", "--version", "7", "--copies", "1", "--json"]);
    assert_eq!(own["in_store"], false);
    until_kept(&second_host, own["id"].as_str().unwrap()).await;
    // Two publishers use the name now: alone, it means neither.
    let ambiguous = assay(other, &["pull", "assay-stories@latest", "--from", &second_host.url]);
    assert!(stderr(&ambiguous).contains("say whose"), "{}", stderr(&ambiguous));
    let theirs = format!("{}/assay-stories@7", own["publisher"].as_str().unwrap());
    assert_eq!(
        ok(other, &["pull", &theirs, "--from", &second_host.url, "--json"])["root"],
        installed["root"]
    );
}

#[test]
fn what_is_kept_is_looked_after() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let added = ok(home, &["hub", "add", built_in().to_str().unwrap(), "--pin", "stories", "--json"]);
    let blob = added["blob"].as_str().unwrap();
    let listed = ok(home, &["hub", "list", "--json"]);
    assert_eq!(listed["blobs"][0]["blob"], blob);
    assert_eq!(listed["blobs"][0]["kept_by"][0], "pin/stories");
    let out = home.join("out.assay");
    assert!(assay(home, &["hub", "export", blob, out.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(built_in()).unwrap());
    assert_eq!(ok(home, &["hub", "fsck", "--json"])["problems"], Value::Array(vec![]));
    assert_eq!(ok(home, &["hub", "gc", "--json"])["freed"], 0);

    // One bit of the disk turns.
    std::fs::remove_file(&out).unwrap();
    let file = home.join("hub/store/data").join(format!("{blob}.blob"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let checked = assay(home, &["hub", "fsck", "--json"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(stdout(&checked).contains("1 damaged tiles"), "{}", stdout(&checked));
    assert_eq!(assay(home, &["hub", "fsck", "--repair"]).status.code(), Some(1));
    let listed = ok(home, &["hub", "list", "--json"]);
    assert_eq!(
        (listed["blobs"].as_array().unwrap().len(), &listed["arriving"][0]["blob"]),
        (0, &blob.into())
    );

    // The file again brings it back, and without its pin it is garbage.
    ok(home, &["hub", "add", built_in().to_str().unwrap(), "--pin", "stories", "--json"]);
    assert!(assay(home, &["hub", "fsck"]).status.success());
    assert!(assay(home, &["hub", "unpin", "stories"]).status.success());
    assert!(!assay(home, &["hub", "unpin", "stories"]).status.success());
    let would = ok(home, &["hub", "gc", "--dry-run", "--json"]);
    let did = ok(home, &["hub", "gc", "--json"]);
    assert!(did["freed"].as_u64().unwrap() > 2_000_000 && did["freed"] == would["freed"], "{did}");
    assert_eq!(ok(home, &["hub", "list", "--json"])["bytes"]["blobs"], 0);
}
