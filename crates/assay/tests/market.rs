//! The hub with a ledger, with the binary alone: a model is listed, hosts pledge to keep it, whoever knows the ledger finds both, and a provider's
//! downloads are counted.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use harness::{Node, assay, command, stderr, stdout};
use serde_json::{Value, json};

/// A process that says on its first line where it listens; killed when it is dropped.
struct Running {
    child: Child,
    url: String,
}

impl Running {
    fn start(home: &Path, rpc: Option<&str>, args: &[&str]) -> Running {
        let mut command = command(home);
        if let Some(rpc) = rpc {
            command.env("ASSAY_RPC", rpc);
        }
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it says where it listens").unwrap();
        let url = first.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
        let url = url.trim_end_matches(',').to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Running { url, child }
    }

    fn kill(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A machine that uses the chain.
struct Machine<'a> {
    home: tempfile::TempDir,
    chain: &'a Running,
}

impl<'a> Machine<'a> {
    fn new(chain: &'a Running, directory: Option<&str>) -> Machine<'a> {
        let machine = Machine { home: tempfile::tempdir().unwrap(), chain };
        if let Some(directory) = directory {
            machine.fine(&["ledger", "use", directory]);
        }
        machine
    }

    fn path(&self) -> &Path {
        self.home.path()
    }

    fn run(&self, args: &[&str]) -> Output {
        command(self.path()).env("ASSAY_RPC", &self.chain.url).args(args).output().unwrap()
    }

    fn fine(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        output
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&stdout(&self.fine(&[args, &["--json"]].concat()))).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stdout(&output));
        stderr(&output)
    }

    /// Enrols the node with money behind it.
    fn enrol(&self, role: &str, dollars: &str, endpoint: &str) {
        self.fine(&["ledger", "faucet", "--amount", "100"]);
        self.fine(&["deposit", "90"]);
        self.fine(&["stake", dollars, "--role", role, "--endpoint", endpoint]);
    }
}

fn built_in() -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    path.to_str().unwrap().to_owned()
}

/// An address that nobody listens on now.
fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Asks until it is so, or is not within two minutes.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !so() {
        assert!(Instant::now() < deadline, "{what}: not within two minutes");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_model_is_found_on_the_ledger_pulled_from_its_hosts_and_counted() {
    let chain_home = tempfile::tempdir().unwrap();
    let chain = Running::start(chain_home.path(), None, &["chain", "--listen", "127.0.0.1:0", "--in-memory"]);
    let publisher = Machine::new(&chain, None);
    // Without any ledger or host there is nothing to search, and that is said.
    assert!(publisher.refused(&["search"]).contains("assay ledger use DIRECTORY"));
    let deployed = publisher.json(&["ledger", "deploy"]);
    let directory = deployed["directory"].as_str().unwrap();
    let installed = publisher.json(&["pull", &built_in()]);
    publisher.fine(&["ledger", "faucet", "--amount", "10"]);

    let (first_at, second_at, provider_at) = (free(), free(), free());
    let (first, second) = (Machine::new(&chain, Some(directory)), Machine::new(&chain, Some(directory)));
    for (host, at) in [(&first, &first_at), (&second, &second_at)] {
        host.enrol("host", "60", &format!("http://{at}"));
    }
    let user = Machine::new(&chain, Some(directory));
    let unpublished = user.refused(&["pull", "assay-stories@latest"]);
    assert!(unpublished.contains("no release of assay-stories@latest is known"), "{unpublished}");

    let publish =
        ["publish", "assay-stories", "--version", "1.0.0", "--copies", "2", "--royalty", "1.5", "--list"];
    let published = publisher.json(&publish);
    // The hosts get the bytes from the publisher's own host, which the ledger does not know.
    let own = ["host", "--listen", "127.0.0.1:0", "--every", "1", "--disk", "0.1"];
    let mut own = Running::start(publisher.path(), None, &own);
    let serve = |machine: &Machine<'_>, at: &str| {
        let args = [
            "host",
            "--listen",
            at,
            "--every",
            "1",
            "--disk",
            "0.1",
            "--pledge",
            "--post-fetches",
            "0",
            "--peer",
            &own.url,
        ];
        Running::start(machine.path(), Some(&chain.url), &args)
    };
    let mut hosts = [serve(&first, &first_at), serve(&second, &second_at)];
    let model = |found: &Value| found["models"][0].clone();
    until("both hosts keep it", || {
        let found = model(&user.json(&["search"]));
        (&found["hosts"], &found["pledges"]) == (&json!(2), &json!(2))
    });

    // A provider of it says its price.
    let provider = Machine::new(&chain, Some(directory));
    provider.enrol("provider", "10", &format!("http://{provider_at}"));
    own.kill();
    let root = installed["root"].as_str().unwrap();
    let pulled = provider.json(&["pull", "assay-stories@latest"]);
    assert_eq!(pulled["root"], installed["root"]);
    // A host that has not read yet that this is a provider takes its receipt with a later pull.
    until("the hosts have it counted", || {
        provider.fine(&["pull", "assay-stories@latest"]);
        let found = model(&user.json(&["search"]));
        found["fetched_bytes"] == found["bytes"]
    });
    let listed = user.json(&["search", "stories", "--sort", "price"]);
    assert_eq!(listed["asked"]["providers"], 1);
    // Nobody answers at the provider's address yet.
    assert_eq!(listed["silent"][0]["url"], format!("http://{provider_at}"));
    assert_eq!((&model(&listed)["offers"], &model(&listed)["price"]), (&json!([]), &Value::Null));
    let mut up = command(provider.path());
    up.args(["up", "--price", "0.10/0.40", "--price-private", "0.30/1.20"]);
    let _node = Node::at(up, &provider_at);
    let found = model(&user.json(&["search", "STORIES"]));
    assert_eq!(found["price"], json!({"input": 100_000, "output": 400_000}));
    assert_eq!(found["price_private"], json!({"input": 300_000, "output": 1_200_000}));
    assert_eq!(found["offers"].as_array().unwrap().len(), 1);
    assert_eq!(
        [
            &found["root"],
            &found["id"],
            &found["copies"],
            &found["royalty_ppm"],
            &found["labels"],
            &found["listed"]
        ],
        [&json!(root), &published["id"], &json!(2), &json!(15_000), &json!(["latest"]), &json!(true)]
    );
    // No epoch is over yet: nothing is known of demand, which is not the same as none.
    assert_eq!(found["demand"], Value::Null);
    let shown = stdout(&user.fine(&["search"]));
    assert!(
        shown.contains("assay-stories@1.0.0 (latest)")
            && shown.contains("0.10/0.40")
            && shown.contains("2/2"),
        "{shown}"
    );
    assert_eq!(user.json(&["search", "nothing has this"])["models"], json!([]));
    assert!(stdout(&user.fine(&["search", "nothing has this"])).contains("No model has"));

    // By its root too, with one host dead, which is said.
    hosts[1].kill();
    let pulled = user.fine(&["pull", root, "--json"]);
    assert!(stderr(&pulled).contains(&second_at), "{}", stderr(&pulled));
    assert_eq!(serde_json::from_str::<Value>(&stdout(&pulled)).unwrap()["root"], installed["root"]);
    // Who is no provider signs nothing.
    assert!(!user.path().join("ledger/fetched").exists());

    // A release of the same version that the publisher's listing does not name is refused: this host was told another one.
    let liar_home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(liar_home.path().join("node")).unwrap();
    std::fs::copy(publisher.path().join("node/key"), liar_home.path().join("node/key")).unwrap();
    assert!(assay(liar_home.path(), &["pull", &built_in()]).status.success());
    let twin = ["publish", "assay-stories", "--version", "1.0.0", "--copies", "1", "--licence", "another"];
    assert!(assay(liar_home.path(), &twin).status.success());
    let liar = Running::start(liar_home.path(), None, &["host", "--listen", "127.0.0.1:0", "--disk", "0.1"]);
    let victim = Machine::new(&chain, Some(directory));
    let refused = victim.refused(&["pull", "assay-stories@1.0.0", "--from", &liar.url]);
    assert!(refused.contains("(listed_release_unknown)"), "{refused}");
    let both = ["pull", "assay-stories@1.0.0", "--from", &liar.url, "--from", &hosts[0].url];
    let refused = victim.refused(&both);
    assert!(refused.contains("(release_not_as_listed)"), "{refused}");
    // Whoever asks the ledger's hosts first is not misled.
    let careful = Machine::new(&chain, Some(directory));
    assert_eq!(careful.json(&["pull", "assay-stories@1.0.0"])["root"], installed["root"]);
}
