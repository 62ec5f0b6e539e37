//! A node as its users and its operator meet it: answers, receipts, full queues, lost clients, signals, kill -9.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Node, assay, chat, client, stderr, stdout};
use serde_json::{Value, json};

const STORY: &str = "Once upon a time there was a little dog";

#[tokio::test]
async fn an_answer_is_checked_by_its_id_and_by_its_record() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), false, &[]);
    let request =
        client().post(node.chat_url()).header("x-assay-receipt", "inline").json(&chat(STORY, 7, 40));
    let response = request.send().await.unwrap();
    let id = response.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 40);

    // By its id, from the running node, which the data directory knows.
    let checked = assay(home.path(), &["verify", &id]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let report = stdout(&checked);
    assert!(
        report.contains("The answer holds")
            && report.contains("Not checked:")
            && report.contains("ms to execute again")
    );

    // From a file: the record alone, and the whole answer.
    let file = home.path().join("answer.json");
    std::fs::write(&file, answer.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let by_reference = assay(home.path(), &["verify", file, "--reference", "--json"]);
    assert!(by_reference.status.success());
    let verdict: Value = serde_json::from_str(&stdout(&by_reference)).unwrap();
    assert_eq!(verdict["holds"], true);
    assert!(
        verdict["cost"]["verify_ns"].as_u64().unwrap() > 0
            && verdict["cost"]["generation_ns"].as_u64().unwrap() > 0
    );

    // The answer around the record changed, as someone who passes it on might: it is the part that people read.
    let mut retold = answer.clone();
    let text = retold["choices"][0]["message"]["content"].as_str().unwrap().replacen('a', "e", 1);
    retold["choices"][0]["message"]["content"] = Value::from(text);
    std::fs::write(file, retold.to_string()).unwrap();
    let caught = assay(home.path(), &["verify", file]);
    assert_eq!(caught.status.code(), Some(1));
    assert!(stdout(&caught).contains("the text around the record differs"));

    // One id changed: status 1 and the position.
    let mut altered = answer["assay_receipt"].clone();
    let ids = altered["transcript"]["output_ids"].as_array_mut().unwrap();
    ids[11] = Value::from(ids[11].as_u64().unwrap() ^ 1);
    std::fs::write(file, altered.to_string()).unwrap();
    let caught = assay(home.path(), &["verify", file]);
    assert_eq!(caught.status.code(), Some(1));
    assert!(
        stdout(&caught).contains("THE ANSWER DOES NOT HOLD") && stdout(&caught).contains("output token 11")
    );

    // Nothing to check: status 2.
    std::fs::write(file, "{}").unwrap();
    assert_eq!(assay(home.path(), &["verify", file]).status.code(), Some(2));
    assert_eq!(assay(home.path(), &["verify", "/nowhere.json"]).status.code(), Some(2));
    let unknown = assay(home.path(), &["verify", &format!("0x{}", "00".repeat(32))]);
    assert_eq!(unknown.status.code(), Some(2));
    drop(node);

    // From the stopped node's store.
    assert!(assay(home.path(), &["verify", &id]).status.success());
}

#[tokio::test]
async fn a_seed_fixes_the_answer_across_nodes() {
    let mut texts = Vec::new();
    for slow in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let node = Node::up(home.path(), slow, &[]);
        let send = |body: Value| client().post(node.chat_url()).json(&body).send();
        let answer: Value = send(chat(STORY, 7, 60)).await.unwrap().json().await.unwrap();
        texts.push(answer["choices"][0]["message"]["content"].clone());
        let other: Value = send(chat(STORY, 8, 60)).await.unwrap().json().await.unwrap();
        assert_ne!(texts[0], other["choices"][0]["message"]["content"]);
    }
    assert_eq!(texts[0], texts[1], "on another node, with another kernel and thread count");
}

/// What other routes say of tokens that were executed before: two streams of completions of a text, and a response to it.
async fn cached_elsewhere(node: &Node, text: &str) -> Vec<u64> {
    let send = async |path: &str, body: Value| {
        let request = client().post(format!("{}{path}", node.url)).json(&body);
        request.send().await.unwrap().text().await.unwrap()
    };
    let model = &chat("", 0, 1)["model"];
    let body = json!({"model": model, "prompt": text, "max_tokens": 2, "stream": true,
                      "stream_options": {"include_usage": true}});
    let mut cached = Vec::new();
    for _ in 0..2 {
        let chunks = send("/v1/completions", body.clone()).await;
        let data = chunks.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let usage = chunks.find_map(|chunk| chunk["usage"].as_object().cloned()).unwrap();
        cached.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    let body = json!({"model": model, "input": text, "max_output_tokens": 2});
    let response: Value = serde_json::from_str(&send("/v1/responses", body).await).unwrap();
    cached.push(response["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap());
    cached
}

/// A node that goes on after what others asked, and executes tokens ahead, signs what one signs that does neither.
#[tokio::test]
async fn what_a_node_is_spared_is_in_its_metrics_and_in_no_record() {
    let long = format!("{} and a dog and a dog and a dog.", [STORY; 9].join(". "));
    let mut records = Vec::new();
    for options in [&[][..], &["--prefix-mib", "0", "--draft-rows", "0"]] {
        let home = tempfile::tempdir().unwrap();
        let node = Node::up(home.path(), false, options);
        let (mut told, mut id, mut cached) = (Vec::new(), String::new(), Vec::new());
        for (seed, end) in [(1, "One day"), (2, "One night"), (1, "One day")] {
            let mut body = chat(&format!("{long} {end}"), seed, 40);
            body["temperature"] = if seed == 1 { 0 } else { 1 }.into();
            let request = client().post(node.chat_url()).header("x-assay-receipt", "inline").json(&body);
            let response = request.send().await.unwrap();
            id = response.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
            let answer: Value = response.json().await.unwrap();
            let record = &answer["assay_receipt"];
            assert!(record["digests"].as_array().unwrap().len() >= 3, "{answer}");
            told.push((record["transcript"].clone(), record["digests"].clone()));
            cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
        }
        records.push(told);
        cached.extend(cached_elsewhere(&node, &long).await);
        assert!(assay(home.path(), &["verify", &id]).status.success());
        let metrics =
            client().get(format!("{}/metrics", node.url)).send().await.unwrap().text().await.unwrap();
        let count = |name: &str| -> u64 {
            let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{")));
            line.unwrap_or_else(|| panic!("{name} in {metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
        };
        let spares = options.is_empty();
        assert_eq!(count("vllm:prefix_cache_hits_total") >= 128, spares);
        assert_eq!(count("assay_prefix_cache_bytes") > 0, spares);
        assert_eq!(count("vllm:spec_decode_num_draft_tokens_total") > 0, spares);
        assert!(count("vllm:prefix_cache_queries_total") > 3 * 64);
        // Each was told what it was spared: at least those that ask the same again on the same route.
        assert_eq!(cached.iter().sum::<u64>(), count("vllm:prefix_cache_hits_total"));
        assert!([1, 2, 4].iter().all(|i| (cached[*i] >= 64) == spares), "{cached:?}");
        let hits = cached.iter().filter(|tokens| **tokens > 0).count() as u64;
        assert_eq!(count("assay_prefix_cache_requests_total"), hits);
    }
    assert_eq!(records[0], records[1]);
    assert_eq!(records[0][0], records[0][2]);
}

/// A node whose model is drafted for signs what one signs that executes everything when it is chosen.
#[tokio::test]
async fn a_draft_model_is_in_the_metrics_and_in_no_record() {
    let home = tempfile::tempdir().unwrap();
    // The same weights under another root: right wherever nothing but the model decides.
    let mut bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stories-1.7m.assay")).unwrap();
    bytes[8] ^= 1;
    let twin = home.path().join("twin.assay");
    std::fs::write(&twin, &bytes).unwrap();
    let twin = twin.to_str().unwrap();
    let mut records = Vec::new();
    for options in [&["--draft", twin, "--prefix-mib", "0"][..], &["--draft-rows", "0", "--prefix-mib", "0"]]
    {
        let home = tempfile::tempdir().unwrap();
        let node = Node::up(home.path(), false, options);
        let mut told = Vec::new();
        for (seed, temperature) in [(1, 0), (2, 1), (3, 1)] {
            let mut body = chat(STORY, seed, 60);
            body["temperature"] = temperature.into();
            let request = client().post(node.chat_url()).header("x-assay-receipt", "inline").json(&body);
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            let record = &answer["assay_receipt"];
            told.push((record["transcript"].clone(), record["digests"].clone()));
        }
        assert!(told.iter().all(|(transcript, _)| transcript["output_ids"].is_array()));
        records.push(told);
        let metrics =
            client().get(format!("{}/metrics", node.url)).send().await.unwrap().text().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("assay_draft_model_accepted_tokens_total{"));
        let accepted: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(accepted > 30, options[0] == "--draft", "{accepted}");
    }
    assert_eq!(records[0], records[1]);
    // Nobody but itself to draft for, and other tokens.
    let alone = assay(home.path(), &["up", "--listen", "127.0.0.1:0", "--draft", harness::MODEL]);
    assert!(!alone.status.success() && stderr(&alone).contains("no other model"), "{}", stderr(&alone));
    let json = bytes.windows(9).position(|window| window == b"\"version\"").unwrap();
    bytes[json + 1] = b'V';
    let other = home.path().join("other.assay");
    std::fs::write(&other, &bytes).unwrap();
    let other = assay(home.path(), &["up", "--listen", "127.0.0.1:0", "--draft", other.to_str().unwrap()]);
    assert!(stderr(&other).contains("draft_other_tokenizer"), "{}", stderr(&other));
    assert!(!other.status.success());
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), true, &["--max-running", "1", "--max-waiting", "2"]);
    let client = client();
    let requests = (0..16).map(|i| client.post(node.chat_url()).json(&chat(STORY, i, 0)).send());
    let mut running = tokio::task::JoinSet::new();
    requests.for_each(|r| drop(running.spawn(r)));
    let (mut answered, mut refused) = (0, 0);
    while let Some(response) = running.join_next().await {
        let response = response.unwrap().unwrap();
        match response.status().as_u16() {
            200 => answered += 1,
            429 => {
                assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
                let body: Value = response.json().await.unwrap();
                assert_eq!(body["error"]["code"], "busy");
                refused += 1;
            }
            other => panic!("status {other}"),
        }
    }
    assert!(answered >= 2 && refused > 0, "{answered} answered, {refused} refused");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), true, &["--max-running", "1"]);
    let client = client();
    let mut body = chat(STORY, 1, 0);
    body["stream"] = Value::from(true);
    for _ in 0..3 {
        let mut response = client.post(node.chat_url()).json(&body).send().await.unwrap();
        response.chunk().await.unwrap().unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let health: Value =
            client.get(format!("{}/health", node.url)).send().await.unwrap().json().await.unwrap();
        if health["running"] == 0 && health["waiting"] == 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{health}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let metrics = client.get(format!("{}/metrics", node.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("finished_reason=\"abort\"}"), "{metrics}");
}

#[tokio::test]
async fn sigterm_finishes_running_answers() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), true, &[]);
    let mut body = chat(STORY, 1, 0);
    body["stream"] = Value::from(true);
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(client().post(node.chat_url()).json(&body).send().await.unwrap());
    }
    let (url, client) = (node.chat_url(), client());
    node.signal("TERM");
    for mut stream in streams {
        let mut text = String::new();
        while let Some(chunk) = stream.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(text.ends_with("data: [DONE]\n\n"));
    }
    assert!(node.exit().success());
    assert!(client.post(url).json(&body).send().await.is_err());
}

/// Every answer that a client saw to its end is on disk after kill -9, and no number is used twice.
#[tokio::test]
async fn kill_9_loses_no_receipt_that_a_client_saw() {
    let home = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    for round in 0..4u64 {
        let node = Node::up(home.path(), false, &[]);
        let mut clients = tokio::task::JoinSet::new();
        for c in 0..6u64 {
            let (url, seen) = (node.chat_url(), Arc::clone(&seen));
            clients.spawn(async move {
                for i in 0.. {
                    let body = chat(STORY, round * 1_000_000 + c * 1000 + i, 5 + (i as u32 % 20));
                    let Ok(response) = client().post(&url).json(&body).send().await else { return };
                    let id = response.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
                    if response.text().await.is_ok() {
                        seen.lock().unwrap().push(id);
                    }
                }
            });
        }
        // However slow the machine is, some answers have been seen, and others are on their way.
        while seen.lock().unwrap().len() < 13 * (round as usize + 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        node.signal("KILL");
        node.exit();
        clients.join_all().await;
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() > 50, "{} answers were seen", seen.len());
    let node = Node::up(home.path(), false, &[]);
    let client = client();
    let mut sequences = std::collections::BTreeSet::new();
    for id in &seen {
        let response = client.get(format!("{}/v1/receipts/{id}", node.url)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{id} was seen by a client");
        let record: Value = response.json().await.unwrap();
        assert!(sequences.insert(record["receipt"]["receipt"]["sequence"].as_u64().unwrap()));
    }
    for id in seen.iter().rev().take(3) {
        assert!(assay(home.path(), &["verify", id]).status.success());
    }
}

#[test]
fn two_nodes_do_not_share_a_directory() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), false, &[]);
    let second = assay(home.path(), &["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("another `assay up` uses"), "{}", stderr(&second));
    let port = node.url.strip_prefix("http://").unwrap().to_owned();
    let other = tempfile::tempdir().unwrap();
    let taken = assay(other.path(), &["up", "--listen", &port]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(stderr(&taken).contains("--listen"), "{}", stderr(&taken));
}
