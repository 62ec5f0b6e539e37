//! Runs the binary as a user would.
#![allow(dead_code)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub const MODEL: &str = "assay-stories";

/// `assay ARGS` with this data directory.
pub fn assay(home: &Path, args: &[&str]) -> Output {
    command(home).args(args).output().unwrap()
}

pub fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay"));
    command
        .env("ASSAY_HOME", home)
        .env_remove("ASSAY_KERNEL")
        .env_remove("ASSAY_THREADS")
        .env_remove("ASSAY_LISTEN")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .env_remove("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running node.
pub struct Node {
    pub url: String,
    pub child: Child,
}

impl Node {
    /// `assay up` on a free port, by the slow scalar kernel if `slow`, so that there is time to disturb it.
    pub fn up(home: &Path, slow: bool, args: &[&str]) -> Node {
        let mut command = command(home);
        if slow {
            command.env("ASSAY_KERNEL", "scalar").env("ASSAY_THREADS", "1");
        }
        command.arg("up").args(args);
        Node::start(command)
    }

    /// `assay serve` with these models on a free port.
    pub fn serve(home: &Path, models: &[&str]) -> Node {
        let mut command = command(home);
        command.arg("serve").args(models);
        Node::start(command)
    }

    /// A command that serves, at this address.
    pub fn at(command: Command, address: &str) -> Node {
        Node::listen(command, address)
    }

    fn start(command: Command) -> Node {
        Node::listen(command, "127.0.0.1:0")
    }

    fn listen(mut command: Command, address: &str) -> Node {
        #[expect(clippy::zombie_processes, reason = "whoever holds the node waits: `exit` or drop")]
        let mut child =
            command.args(["--listen", address]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Reads to the end, so that the node never waits for a full pipe.
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|l| drop(sender.send(l))));
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = lines.recv_timeout(left).expect("the node says where it listens");
            if let Some(at) = line.find("http://") {
                let url = line[at..].split("/v1").next().unwrap().to_owned();
                return Node { url, child };
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end of the process.
    pub fn exit(mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the node does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn chat_url(&self) -> String {
        format!("{}/v1/chat/completions", self.url)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request; `max_tokens` 0 for as many as fit.
pub fn chat(content: &str, seed: u64, max_tokens: u32) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "seed": seed});
    if max_tokens > 0 {
        body["max_tokens"] = json!(max_tokens);
    }
    body
}

/// A client for HTTP. One that is built beside code that speaks TLS wants to know by which library, though it has no use for it.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// A running `assay chain`, killed when it is dropped.
pub struct Chain {
    pub child: Child,
    pub url: String,
}

impl Chain {
    /// On a free port.
    pub fn start(home: &Path, args: &[&str]) -> Chain {
        let mut command = command(home);
        command.args(["chain", "--listen", "127.0.0.1:0"]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it says where it listens").unwrap();
        let url = first.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Chain { child, url }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command that succeeds has said.
pub fn fine(home: &Path, args: &[&str]) -> Output {
    let output = assay(home, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}
