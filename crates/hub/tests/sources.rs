//! Fetching from the Hugging Face Hub and from the web, against a server on this machine that is told to misbehave.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod hugging_face;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use assay_hub::sources::{Client, Fetched, Hub, Limits, Pace, PlainHttp, Progress, SourceError};
use hugging_face::{Access, Detail, Fault, Server, TOKEN};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX: &str =
    r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

/// Bytes without a pattern.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What a test needs: the server, a folder, and what was reported.
struct World {
    server: Server,
    folder: TempDir,
    reports: Mutex<Vec<Progress>>,
    limits: Limits,
}

impl World {
    fn new() -> World {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
        World { server, folder, reports: Mutex::default(), limits: Limits::default() }
    }

    /// A server with a repository `org/small` of some files, one of which takes several pieces.
    fn small() -> (World, Vec<u8>) {
        let world = World::new();
        let weights = noise(1, 3 * MIB + 5);
        world.server.commit(
            "org/small",
            &[
                ("config.json", b"{}"),
                ("tokenizer.json", b"[1]"),
                ("README.md", b"#"),
                ("model.safetensors", &weights),
            ],
        );
        (world, weights)
    }

    fn pulls(&self) -> PathBuf {
        self.folder.path().join("pulls")
    }

    fn hub(&self, token: Option<&str>) -> Hub {
        let (url, token) = (self.server.url.clone(), token.map(OsString::from));
        Hub::from_environment(&move |name| match name {
            "HF_ENDPOINT" => Some(url.clone().into()),
            "HF_TOKEN" => token.clone(),
            _ => None,
        })
        .unwrap()
    }

    fn client(&self) -> Client {
        let pace = Pace { attempts_max: 3, backoff: Duration::from_millis(1), ..Pace::default() };
        Client::new(&self.pulls(), PlainHttp::Loopback, self.limits.clone(), pace)
    }

    fn pull(&self, source: &str) -> Result<Fetched, SourceError> {
        self.pull_by(&self.client(), source, None)
    }

    fn pull_by(&self, client: &Client, source: &str, token: Option<&str>) -> Result<Fetched, SourceError> {
        let hub = self.hub(token);
        let report = |p: Progress| self.reports.lock().unwrap().push(p);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match source.strip_prefix("hf:") {
                Some(repository) => client.fetch_repository(&hub, &repository.parse()?, &report).await,
                None => client.fetch_address(&source.parse()?, &report).await,
            }
        })
    }

    /// The code of a pull that fails, after which nothing lies under a file's name that is not right.
    fn refused(&self, source: &str) -> &'static str {
        self.pull(source).err().unwrap().code()
    }

    /// Ranges that were asked for, of paths that end so.
    fn ranges(&self, ending: &str) -> Vec<(Option<String>, Option<String>)> {
        let seen = self.server.seen().into_iter().filter(|s| s.path.ends_with(ending) && s.cdn);
        seen.map(|s| (s.range, s.if_range)).collect()
    }
}

/// The Hub's own client, as it is published, reads from the server of these tests what is fetched here: so the server speaks the
/// Hub's protocol. It is installed below the build directory; `ASSAY_SKIP_CLIENTS=1` leaves the test out.
#[test]
fn the_hubs_own_client_gets_the_same() {
    if std::env::var_os("ASSAY_SKIP_CLIENTS").is_some_and(|v| v == "1") {
        // Not by `eprintln`: the test runner would keep it to itself.
        writeln!(std::io::stderr(), "SKIPPED the Hub's own client: ASSAY_SKIP_CLIENTS=1").unwrap();
        return;
    }
    let (world, _) = World::small();
    world.server.access("org/small", Access::Private);
    let fetched = world.pull_by(&world.client(), "hf:org/small", Some(TOKEN)).unwrap();
    world.server.forget();
    let to = world.folder.path().join("snapshot");
    let script = "import sys, huggingface_hub as h\n\
        info = h.HfApi().model_info('org/small', files_metadata=True)\n\
        h.snapshot_download('org/small', local_dir=sys.argv[1], ignore_patterns='README.md')\n\
        print(info.sha)";
    let said = ran(Command::new(python()).args(["-c", script]).arg(&to).envs([
        ("HF_ENDPOINT", world.server.url.as_str()),
        ("HF_TOKEN", TOKEN),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HOME", world.folder.path().join("home").to_str().unwrap()),
    ]));
    assert_eq!(said.lines().last().map(str::to_owned), fetched.commit);
    let mut theirs = files(&to);
    theirs.retain(|name, _| !name.starts_with(".cache"));
    assert!(theirs == files(&fetched.path), "{:?}", theirs.keys());
    assert!(world.server.seen().iter().any(|s| s.cdn));
}

/// A Python with the Hub's client.
fn python() -> PathBuf {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hub-python");
    let (python, done) = (venv.join("bin/python"), venv.join("installed"));
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hugging_face/requirements.txt");
    let wanted = std::fs::read(&list).unwrap();
    if std::fs::read(&done).is_ok_and(|held| held == wanted) {
        return python;
    }
    ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    ran(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(&list));
    std::fs::write(done, wanted).unwrap();
    python
}

/// What a command prints. It must succeed; the server is on this machine, whatever proxy stands before others.
fn ran(command: &mut Command) -> String {
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let needed =
        "this test needs python3 with venv and the Python registry; ASSAY_SKIP_CLIENTS=1 leaves it out";
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; {needed}"));
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}\n{needed}", output.status);
    said
}

/// The files below a folder, with their bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).unwrap().map(|e| e.unwrap()) {
            let path = entry.path();
            // Clients link what they keep elsewhere.
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                all.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_checkpoint_is_fetched_and_pinned() {
    let (world, weights) = World::small();
    let first = world.pull("hf:org/small").unwrap();
    let commit = first.commit.clone().unwrap();
    assert_eq!(first.source, format!("hf:org/small@{commit}"));
    assert_eq!(first.name.as_deref(), Some("org/small"));
    let got = files(&first.path);
    assert_eq!(got.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(got["model.safetensors"] == weights);
    let last = world.reports.lock().unwrap().last().copied().unwrap();
    assert_eq!(last, Progress { done: 5 + weights.len() as u64, total: Some(5 + weights.len() as u64) });
    // What is there is not fetched again, but is hashed again.
    drop(first);
    world.server.forget();
    let again = world.pull("hf:org/small").unwrap();
    assert_eq!(world.server.seen().len(), 1, "only the revision is asked for");
    std::fs::write(again.path.join("model.safetensors"), "damaged").unwrap();
    drop(again);
    let again = world.pull("hf:org/small").unwrap();
    assert!(files(&again.path)["model.safetensors"] == weights);
    // The branch moves; a tag and a commit do not.
    world.server.commit("org/small", &[("config.json", b"{1}"), ("model.safetensors", b"new")]);
    let old = format!("hf:org/small@{commit}");
    assert_eq!(world.pull(&old).err().unwrap().code(), "source_locked", "the same files are still held");
    again.discard().unwrap();
    assert!(files(&world.pull(&old).unwrap().path)["model.safetensors"] == weights);
    let moved = world.pull("hf:org/small@main").unwrap();
    assert_eq!(files(&moved.path)["model.safetensors"], b"new");
    world
        .server
        .contents()
        .repositories
        .get_mut("org/small")
        .unwrap()
        .references
        .insert("refs/pr/1".into(), commit.clone());
    assert_eq!(world.pull("hf:org/small@refs/pr/1").unwrap().commit, Some(commit));
    moved.discard().unwrap();
}

#[test]
fn shards_are_those_of_the_index() {
    let world = World::new();
    let (one, two) = (noise(1, 40_000), noise(2, 50_000));
    let files_of = [("config.json", &b"{}"[..]), ("model.safetensors.index.json", INDEX.as_bytes())];
    let shards = [(SHARDS[0], &one[..]), (SHARDS[1], &two[..]), ("other.safetensors", b"other")];
    world.server.commit("org/sharded", &[&files_of[..], &shards[..]].concat());
    let fetched = world.pull("hf:org/sharded").unwrap();
    let got = files(&fetched.path);
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        ["config.json", SHARDS[0], SHARDS[1], "model.safetensors.index.json"]
    );
    assert!(got[SHARDS[0]] == one && got[SHARDS[1]] == two);
    // A shard is missing, or is elsewhere.
    world.server.commit("org/short", &[&files_of[..], &shards[..1]].concat());
    assert_eq!(world.refused("hf:org/short"), "hub_nothing_to_import");
    let climbing = INDEX.replace(SHARDS[1], "../../evil.safetensors");
    world
        .server
        .commit("org/evil", &[files_of[0], ("model.safetensors.index.json", climbing.as_bytes()), shards[0]]);
    assert_eq!(world.refused("hf:org/evil"), "source_unsafe_name");
}

#[test]
fn one_file_that_is_a_model() {
    let world = World::new();
    world.server.commit("org/one-GGUF", &[("x-Q8_0.gguf", b"x"), ("README.md", b"#")]);
    world.server.commit("org/two-GGUF", &[("x-Q8_0.gguf", b"x"), ("sub/y.gguf", b"y")]);
    world.server.commit("org/pickle", &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    let one = world.pull("hf:org/one-GGUF").unwrap();
    assert_eq!(
        (one.name.as_deref(), std::fs::read(&one.path).unwrap()),
        (Some("org/one-GGUF"), b"x".to_vec())
    );
    let named = world.pull("hf:org/two-GGUF/sub/y.gguf").unwrap();
    assert_eq!((named.name.as_deref(), std::fs::read(&named.path).unwrap()), (Some("y"), b"y".to_vec()));
    assert_eq!(named.source, format!("hf:org/two-GGUF/sub/y.gguf@{}", named.commit.as_ref().unwrap()));
    let error = world.pull("hf:org/two-GGUF").err().unwrap();
    assert_eq!(error.code(), "hub_ambiguous");
    assert!(error.to_string().contains("hf:org/two-GGUF/sub/y.gguf"), "{error}");
    let error = world.pull("hf:org/two-GGUF/z.gguf").err().unwrap();
    assert_eq!(error.code(), "hub_file_not_found");
    assert!(error.to_string().contains("sub/y.gguf"), "{error}");
    assert_eq!(world.refused("hf:org/pickle"), "hub_nothing_to_import");
}

#[test]
fn a_broken_connection_goes_on_where_it_ended() {
    let (world, weights) = World::small();
    let first = 2 * MIB - 100;
    world
        .server
        .fault("cdn:model.safetensors", [Fault::Status(503, None), Fault::Break(first), Fault::Break(0)]);
    world.server.fault("hub:config.json", [Fault::Status(500, None), Fault::Status(429, Some("0"))]);
    world.server.fault("api", [Fault::Status(502, None)]);
    // Three failures would be too many for three attempts, had nothing come in between.
    let fetched = world.pull("hf:org/small").unwrap();
    assert!(files(&fetched.path)["model.safetensors"] == weights);
    let ranges = world.ranges("model.safetensors");
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[..2], [(None, None), (None, None)]);
    for (range, if_range) in &ranges[2..] {
        let from: usize = range
            .as_ref()
            .unwrap()
            .strip_prefix("bytes=")
            .unwrap()
            .strip_suffix('-')
            .unwrap()
            .parse()
            .unwrap();
        assert!(0 < from && from <= first, "{from}");
        assert!(if_range.as_ref().unwrap().starts_with('"'));
    }
}

#[test]
fn a_pull_that_was_given_up_goes_on_later() {
    let (world, weights) = World::small();
    let after = MIB + 7 * 1000;
    world.server.fault(
        "cdn:model.safetensors",
        [Fault::Break(after), Fault::Break(0), Fault::Break(0), Fault::Break(0)],
    );
    let error = world.pull("hf:org/small").err().unwrap();
    assert_eq!((error.code(), error.is_transient()), ("source_unreachable", true), "{error}");
    world.server.forget();
    let fetched = world.pull("hf:org/small").unwrap();
    assert!(files(&fetched.path)["model.safetensors"] == weights);
    let ranges = world.ranges("model.safetensors");
    assert_eq!(ranges.len(), 1);
    let from: usize = ranges[0]
        .0
        .as_ref()
        .unwrap()
        .strip_prefix("bytes=")
        .unwrap()
        .strip_suffix('-')
        .unwrap()
        .parse()
        .unwrap();
    assert!(0 < from && from <= after, "{from}");
    let pulls = fetched.path.parent().unwrap().to_owned();
    assert_eq!(files(&pulls.join("parts")).len(), 0, "parts of what is whole are gone");
    fetched.discard().unwrap();
    assert_eq!(std::fs::read_dir(world.pulls()).unwrap().count(), 0);
}

/// A server that answers ranges wrongly costs time, never a wrong file.
#[test]
fn ranges_that_go_wrong() {
    for fault in [
        Fault::Whole,
        Fault::OtherRange,
        Fault::OtherTag,
        Fault::NotSatisfiable,
        // The bytes before the break were right, those after it are not.
        Fault::Flip(10),
    ] {
        let (world, weights) = World::small();
        world.server.fault("cdn:model.safetensors", [Fault::Break(2 * MIB), fault]);
        let fetched = world.pull("hf:org/small").unwrap();
        assert!(files(&fetched.path)["model.safetensors"] == weights);
    }
    let (world, _) = World::small();
    world.server.fault("cdn:model.safetensors", [Fault::Break(2 * MIB), Fault::NoRange]);
    assert_eq!(world.refused("hf:org/small"), "source_answer");
}

#[test]
fn a_damaged_part_is_noticed() {
    let (world, weights) = World::small();
    world.server.fault(
        "cdn:model.safetensors",
        [Fault::Break(2 * MIB), Fault::Break(0), Fault::Break(0), Fault::Break(0)],
    );
    world.pull("hf:org/small").err().unwrap();
    let pull =
        std::fs::read_dir(world.pulls()).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let parts = std::fs::read_dir(pull.join("parts")).unwrap().map(|e| e.unwrap().path());
    let part = parts
        .filter(|p| p.extension().is_some_and(|e| e == "part"))
        .find(|p| p.metadata().unwrap().len() > 100)
        .unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    world.server.forget();
    let fetched = world.pull("hf:org/small").unwrap();
    assert!(files(&fetched.path)["model.safetensors"] == weights);
    assert_eq!(world.ranges("model.safetensors").len(), 2, "the rest, and then all of it");
}

/// What is not the promised file never gets its name, and is not kept.
#[test]
fn wrong_bytes_and_lengths() {
    let whole = 3 * MIB + 5;
    for (place, fault, code) in [
        ("cdn:model.safetensors", Fault::Flip(MIB + 1), "source_wrong_content"),
        ("hub:config.json", Fault::Flip(0), "source_wrong_content"),
        ("cdn:model.safetensors", Fault::Length(whole - 1), "source_wrong_length"),
        ("cdn:model.safetensors", Fault::Length(whole + 1), "source_wrong_length"),
        ("hub:config.json", Fault::Length(3), "source_wrong_length"),
        ("cdn:model.safetensors", Fault::Endless, "source_wrong_length"),
        ("hub:config.json", Fault::Endless, "source_wrong_length"),
        ("cdn:model.safetensors", Fault::Compressed, "source_answer"),
        ("hub:model.safetensors", Fault::OtherCommit, "hub_commit_moved"),
        ("hub:config.json", Fault::OtherCommit, "hub_commit_moved"),
        ("hub:model.safetensors", Fault::OtherLink, "source_wrong_content"),
        ("cdn:model.safetensors", Fault::Status(404, None), "source_status"),
        ("hub:config.json", Fault::Status(418, None), "source_status"),
    ] {
        let (world, weights) = World::small();
        world.server.fault(place, [fault]);
        let error = world.pull("hf:org/small").err().unwrap();
        assert_eq!(error.code(), code, "{place}: {error}");
        let wrong = place.split(':').nth(1).unwrap();
        let pull = std::fs::read_dir(world.pulls())
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.is_dir())
            .unwrap();
        assert!(!pull.join("files").join(wrong).exists());
        // The next pull is not hindered by it.
        let fetched = world.pull("hf:org/small").unwrap();
        assert!(files(&fetched.path)["model.safetensors"] == weights);
    }
}

#[test]
fn a_server_that_asks_for_patience() {
    let (world, _) = World::small();
    world.server.fault("hub:config.json", [Fault::Status(429, Some("121"))]);
    let error = world.pull("hf:org/small").err().unwrap();
    assert_eq!((error.code(), error.is_transient()), ("source_busy", true));
    assert!(error.to_string().contains("wait 121 s"), "{error}");
    world.server.fault("api", vec![Fault::Status(503, None); 3]);
    assert_eq!(world.refused("hf:org/small"), "source_busy");
    assert!(world.pull("hf:org/small").is_ok(), "three attempts are made, no fourth");
}

#[test]
fn a_connection_that_is_silent_is_given_up() {
    let (world, _) = World::small();
    world.server.fault("cdn:model.safetensors", vec![Fault::Silence; 2]);
    let silence_max = Duration::from_millis(300);
    let pace = Pace { attempts_max: 2, backoff: Duration::from_millis(1), silence_max, ..Pace::default() };
    let client = Client::new(&world.pulls(), PlainHttp::Loopback, Limits::default(), pace);
    assert_eq!(world.pull_by(&client, "hf:org/small", None).err().unwrap().code(), "source_unreachable");
}

#[test]
fn who_may_read() {
    let (world, _) = World::small();
    let pull = |source: &str, token| {
        world.pull_by(&world.client(), source, token).map(|f| f.name).map_err(|e| {
            assert!(!e.to_string().contains("hf_"), "{e}");
            assert!(!e.to_string().contains("Signature"), "{e}");
            e.code()
        })
    };
    let small = Ok(Some("org/small".to_owned()));
    assert_eq!(pull("hf:org/none", None), Err("hub_repository_not_found"));
    assert_eq!(pull("hf:org/none", Some(TOKEN)), Err("hub_repository_not_found"));
    assert_eq!(pull("hf:org/small@v9", None), Err("hub_revision_not_found"));
    assert_eq!(pull("hf:org/small", Some("hf_wrong")), Err("hub_token_refused"));
    world.server.access("org/small", Access::Gated);
    let gated = world.pull("hf:org/small").err().unwrap();
    assert_eq!(gated.code(), "hub_gated");
    assert!(gated.to_string().contains(&format!("{}/org/small", world.server.url)), "{gated}");
    assert_eq!(pull("hf:org/small", Some(TOKEN)), small);
    world.server.access("org/small", Access::Private);
    assert_eq!(pull("hf:org/small", None), Err("hub_repository_not_found"));
    assert_eq!(pull("hf:org/small", Some(TOKEN)), small);
}

/// The token goes to the Hub, and to nobody that it redirects to: not even back to itself.
#[test]
fn the_token_stays_with_the_hub() {
    let (world, _) = World::small();
    world.server.access("org/small", Access::Private);
    world.server.contents().renamed.insert("org/old".into(), "org/small".into());
    let fetched = world.pull_by(&world.client(), "hf:org/old", Some(TOKEN)).unwrap();
    assert_eq!(fetched.name.as_deref(), Some("org/old"));
    let seen = world.server.seen();
    assert!(seen.iter().any(|s| s.cdn) && seen.iter().filter(|s| !s.cdn).count() > 4);
    for s in &seen {
        assert_eq!(s.authorization.is_some(), !s.cdn, "{s:?}");
    }
    world.server.forget();
    let (hub, cdn) = (world.server.url.clone(), world.server.cdn.clone());
    world.server.contents().files.insert("/hop".into(), b"x".to_vec());
    world.server.contents().files.insert("/trap".into(), b"{}".to_vec());
    world.server.fault("hub:config.json", [Fault::Redirect(format!("{cdn}/hop"))]);
    world.server.fault("/hop", [Fault::Redirect(format!("{hub}/trap"))]);
    let commit = world.server.commit("org/small", &[("config.json", b"{}"), ("model.safetensors", b"y")]);
    assert_eq!(world.pull_by(&world.client(), "hf:org/small", Some(TOKEN)).unwrap().commit, Some(commit));
    let trap: Vec<_> = world.server.seen().into_iter().filter(|s| s.path == "/trap").collect();
    assert_eq!(trap.len(), 1);
    assert_eq!((trap[0].cdn, &trap[0].authorization), (false, &None));
}

#[test]
fn redirects_end() {
    let (world, _) = World::small();
    let loops = |times: usize| {
        world.server.forget();
        world.server.fault("hub:config.json", vec![Fault::Redirect("config.json".into()); times]);
        world.pull("hf:org/small").map(|_| ()).map_err(|e| e.code())
    };
    let most = Limits::default().redirects_max;
    assert_eq!(loops(most + 1), Err("source_redirect"));
    assert_eq!(loops(most), Ok(()));
    world.server.commit("org/small", &[("config.json", b"{2}"), ("model.safetensors", b"y")]);
    for to in ["http://example.org/x", "file:///etc/passwd", "https://user:secret@example.org/"] {
        world.server.fault("hub:config.json", [Fault::Redirect(to.into())]);
        let error = world.pull("hf:org/small").err().unwrap();
        assert_eq!(error.code(), "source_redirect", "{to}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

/// A Hub that lists names only says in its headers what each file is.
#[test]
fn digests_from_headers() {
    let (world, weights) = World::small();
    world.server.contents().repositories.get_mut("org/small").unwrap().detail = Detail::Names;
    let fetched = world.pull("hf:org/small").unwrap();
    assert!(files(&fetched.path)["model.safetensors"] == weights);
    fetched.discard().unwrap();
    world.server.fault("cdn:model.safetensors", [Fault::Status(200, None), Fault::Flip(3)]);
    assert_ne!(world.refused("hf:org/small"), "");
    world.server.forget();
    // No digest in the headers: nobody could tell.
    world.server.fault("hub:config.json", [Fault::OtherTag]);
    assert_eq!(world.refused("hf:org/small"), "source_unverifiable");
}

#[test]
fn names_that_climb_are_refused() {
    for name in [
        "../model.safetensors",
        "/etc/model.safetensors",
        "..\\model.safetensors",
        "a/../../x.json",
        "a\0.safetensors",
    ] {
        let (world, _) = World::small();
        world.server.commit("org/evil", &[("config.json", b"{}"), ("model.safetensors", b"x"), (name, b"x")]);
        assert_eq!(world.refused("hf:org/evil"), "source_unsafe_name", "{name:?}");
        assert!(!world.pulls().exists(), "nothing was written");
    }
}

#[test]
fn lists_that_are_none() {
    let (mut world, _) = World::small();
    let sha = "a".repeat(40);
    for list in [
        String::new(),
        "[]".into(),
        "{}".into(),
        r#"{"sha":"../../x","siblings":[]}"#.into(),
        format!(r#"{{"sha":"{}","siblings":[]}}"#, "A".repeat(40)),
        format!(r#"{{"sha":"{sha}","siblings":[{{}}]}}"#),
        "[".repeat(100_000),
    ] {
        world.server.contents().list = Some(list.clone());
        assert_eq!(world.refused("hf:org/small"), "source_answer", "{}", &list[..list.len().min(80)]);
    }
    let list = format!(r#"{{"sha":"{sha}","siblings":[]}}"#);
    world.server.contents().list = Some(list.clone());
    assert_eq!(world.refused("hf:org/small"), "hub_nothing_to_import");
    // Whoever names a commit gets no other.
    let commit = world.server.contents().repositories["org/small"].references["main"].clone();
    assert_eq!(world.refused(&format!("hf:org/small@{commit}")), "source_answer");
    world.limits.list_bytes_max = list.len() as u64;
    assert_eq!(world.refused("hf:org/small"), "hub_nothing_to_import");
    world.limits.list_bytes_max -= 1;
    assert_eq!(world.refused("hf:org/small"), "source_too_large");
}

#[test]
fn a_file_has_so_many_bytes() {
    let (mut world, weights) = World::small();
    world.limits.file_bytes_max = weights.len() as u64 - 1;
    assert_eq!(world.refused("hf:org/small"), "source_too_large");
    world.limits.file_bytes_max += 1;
    assert!(world.pull("hf:org/small").is_ok());
    world.server.contents().files.insert("/m.gguf".into(), noise(7, 100_000));
    let url = format!("{}/m.gguf", world.server.url);
    world.limits.file_bytes_max = 99_999;
    assert_eq!(world.refused(&url), "source_too_large");
    world.server.fault("/m.gguf", [Fault::Endless]);
    assert_eq!(world.refused(&url), "source_too_large");
    world.limits.file_bytes_max = 100_000;
    assert!(world.pull(&url).is_ok());
}

#[test]
fn a_file_on_the_web() {
    let world = World::new();
    let bytes = noise(3, 2 * MIB);
    world.server.contents().files.insert("/d/M.gguf".into(), bytes.clone());
    let url = format!("{}/d/M.gguf?secret=1", world.server.url);
    let fetched = world.pull(&url).unwrap();
    assert_eq!((fetched.name.as_deref(), fetched.source.contains("secret")), (Some("M"), false));
    assert!(std::fs::read(&fetched.path).unwrap() == bytes);
    assert_eq!(fetched.path.file_name().unwrap(), "M.gguf");
    fetched.discard().unwrap();

    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    let right = format!("{url}#blake3={blake3}");
    assert!(std::fs::read(&world.pull(&right).unwrap().path).unwrap() == bytes);
    let wrong = format!("{url}#sha256={blake3}");
    assert_eq!(world.refused(&wrong), "source_wrong_content");
    assert_eq!(world.refused(&format!("{}/d/none.gguf", world.server.url)), "source_status");
    // Through a redirect to another server.
    world.server.fault("/d/M.gguf", [Fault::Redirect(format!("{}/d/M.gguf", world.server.cdn))]);
    assert!(world.pull(&url).is_ok());
    assert!(world.server.seen().iter().any(|s| s.cdn));
    assert_eq!(world.refused("http://example.org/x.gguf"), "source_plain_http");
}

/// Without a digest, a tag says whether the rest belongs to what came before.
#[test]
fn a_file_on_the_web_that_changes() {
    let world = World::new();
    let (old, new) = (noise(3, 2 * MIB), noise(4, 2 * MIB));
    let set = |bytes: &[u8]| world.server.contents().files.insert("/m.gguf".into(), bytes.to_vec());
    let url = format!("{}/m.gguf", world.server.url);
    set(&old);
    world
        .server
        .fault("/m.gguf", [Fault::Break(MIB + 100), Fault::Break(0), Fault::Break(0), Fault::Break(0)]);
    assert_eq!(world.refused(&url), "source_unreachable");
    world.server.forget();
    set(&new);
    let fetched = world.pull(&url).unwrap();
    assert!(std::fs::read(&fetched.path).unwrap() == new);
    let seen = world.server.seen();
    assert!(seen.len() == 1 && seen[0].range.is_some() && seen[0].if_range.is_some(), "{seen:?}");
}
