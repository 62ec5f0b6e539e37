//! Files and batches over a real connection and a real folder.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod compat_mock;
#[path = "../../node/src/files.rs"]
mod folder;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use assay_api::{Class, FileOptions, FileStore as _, ServerOptions, serve_with_files};
use assay_core::consent::Consent;
use compat_mock::{Mock, RECEIPT, Served, SharedMock, hostile, listen};
use folder::FolderStore;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const CHAT: &str = "/v1/chat/completions";

struct Desk {
    url: String,
    mock: Arc<Mock>,
    client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Desk {
    async fn open(folder: &Path, options: FileOptions) -> Desk {
        let (listener, url) = listen().await;
        let mock = Arc::new(Mock::default());
        let store = Arc::new(FolderStore::open(folder).unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let inference = Arc::new(SharedMock(Arc::clone(&mock)));
        let serving = serve_with_files(
            listener,
            inference,
            ServerOptions::default(),
            store,
            options,
            axum::Router::new(),
            shutdown,
        );
        Desk { url, mock, client: client(), stop: Some(stop), task: tokio::spawn(serving) }
    }

    /// Ends it as kill -9 would: nothing is finished, nothing is said.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    async fn send(&self, form: Form) -> reqwest::Response {
        self.client.post(format!("{}/v1/files", self.url)).multipart(form).send().await.unwrap()
    }

    async fn upload(&self, text: impl Into<String>) -> String {
        let part = Part::bytes(text.into().into_bytes()).file_name("in.jsonl");
        let file: Value =
            self.send(Form::new().text("purpose", "batch").part("file", part)).await.json().await.unwrap();
        file["id"].as_str().unwrap_or_else(|| panic!("{file}")).to_owned()
    }

    async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    async fn start(&self, scripts: &[&str]) -> String {
        let input = self.upload(scripts.iter().map(|s| line(s, s)).collect::<String>()).await;
        let body = json!({"input_file_id": input, "endpoint": CHAT, "completion_window": "24h"});
        let batch: Value = self.post("/v1/batches", body).await.json().await.unwrap();
        assert_eq!(batch["status"], "validating", "{batch}");
        batch["id"].as_str().unwrap().to_owned()
    }

    async fn until(&self, id: &str, what: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..2000 {
            let batch = self.json(&format!("/v1/batches/{id}")).await;
            if what(&batch) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{}", self.json(&format!("/v1/batches/{id}")).await);
    }

    async fn ended(&self, id: &str) -> Value {
        self.until(id, |b| ["completed", "failed", "cancelled"].contains(&b["status"].as_str().unwrap()))
            .await
    }

    /// Lines of a file by `custom_id`.
    async fn lines(&self, id: &Value) -> BTreeMap<String, Value> {
        let text =
            self.get(&format!("/v1/files/{}/content", id.as_str().unwrap())).await.text().await.unwrap();
        let parsed = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        parsed.map(|l| (l["custom_id"].as_str().unwrap().to_owned(), l)).collect()
    }
}

fn line(custom_id: &str, content: &str) -> String {
    let body = json!({"model": "story", "messages": [{"role": "user", "content": content}]});
    format!("{}\n", json!({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}))
}

async fn error(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let mut body: Value = response.json().await.unwrap();
    (status, body["error"].take())
}

async fn desk(folder: &Path) -> Desk {
    Desk::open(folder, FileOptions::default()).await
}

#[tokio::test]
async fn files() {
    let folder = tempfile::tempdir().unwrap();
    let d = desk(folder.path()).await;
    let content = "a\r\nb".repeat(1_000_000);
    let form = Form::new()
        .text("purpose", "user_data")
        .text("other", "ignored")
        .part("file", Part::bytes(content.clone().into_bytes()).file_name("notes é.txt"));
    let file: Value = d.send(form).await.json().await.unwrap();
    let id = file["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("file-") && id.len() == 29, "{id}");
    assert_eq!(
        (&file["object"], &file["bytes"], &file["status"]),
        (&json!("file"), &json!(content.len()), &json!("processed"))
    );
    assert_eq!((&file["filename"], &file["purpose"]), (&json!("notes é.txt"), &json!("user_data")));
    assert_eq!(d.json(&format!("/v1/files/{id}")).await, file);
    let got = d.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(got.headers()["content-length"], content.len().to_string());
    assert!(got.text().await.unwrap() == content);

    let other = d.upload("x").await;
    let ids = |list: Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|f| f["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(d.json("/v1/files").await), [other.clone(), id.clone()], "the newest first");
    assert_eq!(ids(d.json("/v1/files?order=asc").await), [id.clone(), other.clone()]);
    assert_eq!(ids(d.json("/v1/files?purpose=batch").await), [other.as_str()]);
    let page = d.json("/v1/files?limit=1").await;
    assert_eq!(
        (&page["has_more"], &page["first_id"], &page["last_id"]),
        (&json!(true), &json!(other), &json!(other))
    );
    let page = d.json(&format!("/v1/files?limit=1&after={other}")).await;
    assert_eq!((ids(page.clone()), &page["has_more"]), (vec![id.clone()], &json!(false)));
    for (query, param) in
        [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=file-x", "after")]
    {
        let (status, e) = error(d.get(&format!("/v1/files?{query}")).await).await;
        assert_eq!((status, &e["param"]), (400, &json!(param)), "{query}");
    }

    // Everything survives the end of the process, and what is deleted stays so.
    let deleted = d.client.delete(format!("{}/v1/files/{other}", d.url)).send().await.unwrap();
    assert_eq!(
        deleted.json::<Value>().await.unwrap(),
        json!({"id": other, "object": "file", "deleted": true})
    );
    d.kill().await;
    let d = desk(folder.path()).await;
    assert_eq!(ids(d.json("/v1/files").await), [id.as_str()]);
    assert!(d.get(&format!("/v1/files/{id}/content")).await.text().await.unwrap() == content);
    for path in [
        format!("/v1/files/{other}"),
        format!("/v1/files/{other}/content"),
        "/v1/files/..%2f..%2fetc".to_owned(),
    ] {
        let (status, e) = error(d.get(&path).await).await;
        assert_eq!((status, &e["code"]), (404, &json!("file_not_found")), "{path}");
    }
}

#[tokio::test]
async fn uploads_that_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions { file_bytes_max: 1000, files_max: 2, ..FileOptions::default() };
    let d = Desk::open(folder.path(), options).await;
    let file = |bytes: usize| Part::bytes(vec![b'x'; bytes]).file_name("f");
    let check = async |form: Form, status: u16, code: &str, param: Value| {
        let (got, e) = error(d.send(form).await).await;
        assert_eq!((got, &e["code"], &e["param"]), (status, &json!(code), &param), "{e}");
    };
    let batch = || Form::new().text("purpose", "batch");
    check(Form::new().part("file", file(1)), 400, "missing_required_parameter", json!("purpose")).await;
    check(batch(), 400, "missing_required_parameter", json!("file")).await;
    check(batch().part("file", file(0)), 400, "invalid_value", json!("file")).await;
    for purpose in ["fine-tune", "vision", "batch_output", ""] {
        let form = Form::new().text("purpose", purpose).part("file", file(1));
        check(form, 400, "unsupported_value", json!("purpose")).await;
    }
    let expiring = batch().text("expires_after[anchor]", "created_at").part("file", file(1));
    check(expiring, 400, "unsupported_value", json!("expires_after")).await;
    check(batch().part("file", file(1001)), 413, "body_too_large", Value::Null).await;
    check(batch().part("file", file(1 << 20)), 413, "body_too_large", Value::Null).await;
    let raw = |kind: &'static str, body: &'static str| {
        let request = d.client.post(format!("{}/v1/files", d.url)).header("content-type", kind).body(body);
        async move { request.send().await.unwrap() }
    };
    for (kind, body) in [
        ("application/json", "{}"),
        ("multipart/form-data", "x"),
        ("multipart/form-data; boundary=b", "x"),
        ("multipart/form-data; boundary=b", "--b\r\nnonsense"),
        ("multipart/form-data; boundary=b", "--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nx"),
    ] {
        let (status, e) = error(raw(kind, body).await).await;
        assert_eq!((status, &e["code"]), (400, &json!("invalid_value")), "{kind} {body}: {e}");
    }
    assert!(d.json("/v1/files").await["data"].as_array().unwrap().is_empty());
    assert_eq!(d.send(batch().part("file", file(1000))).await.status(), 200, "at the limit");
    assert_eq!(d.send(batch().part("file", file(1))).await.status(), 200);
    check(batch().part("file", file(1)), 400, "invalid_value", json!("file")).await;
}

#[tokio::test]
async fn a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let d = desk(folder.path()).await;
    let scripts: Vec<String> = (0..100).map(|i| format!("hi {i}")).collect();
    let mut all: Vec<&str> = scripts.iter().map(String::as_str).collect();
    all.extend(["busy once", "fail before", "long"]);
    let id = d.start(&all).await;
    assert!(id.starts_with("batch_") && id.len() == 30, "{id}");
    let batch = d.ended(&id).await;
    assert_eq!(
        (&batch["status"], &batch["object"], &batch["endpoint"]),
        (&json!("completed"), &json!("batch"), &json!(CHAT))
    );
    assert_eq!(batch["request_counts"], json!({"total": 103, "completed": 101, "failed": 2}));
    for time in ["created_at", "in_progress_at", "finalizing_at", "completed_at"] {
        assert!(batch[time].as_u64().unwrap() > 1_700_000_000, "{time}");
    }
    for none in
        ["errors", "failed_at", "cancelled_at", "cancelling_at", "expired_at", "expires_at", "metadata"]
    {
        assert_eq!(batch[none], Value::Null, "{none}");
    }
    let most = d.mock.running_most.load(SeqCst);
    assert!((1..=8).contains(&most), "{most}");

    let output = d.lines(&batch["output_file_id"]).await;
    assert_eq!(output.len(), 101);
    let one = &output["hi 7"];
    assert!(one["id"].as_str().unwrap().starts_with("batch_req_") && one["error"].is_null());
    let response = &one["response"];
    assert_eq!(
        (&response["status_code"], &response["assay_receipt_id"]),
        (&json!(200), &json!(RECEIPT.to_string()))
    );
    assert!(response["request_id"].as_str().unwrap().starts_with("req-"));
    assert_eq!(response["body"]["choices"][0]["message"]["content"], "Hello");
    assert!(output.contains_key("busy once"), "a line refused as busy is asked again");
    let failed = d.lines(&batch["error_file_id"]).await;
    assert_eq!(failed.keys().collect::<Vec<_>>(), ["fail before", "long"]);
    assert_eq!(failed["long"]["response"]["status_code"], 400);
    assert_eq!(failed["long"]["response"]["body"]["error"]["code"], "context_length_exceeded");
    let file = d.json(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).await;
    assert_eq!(
        (&file["purpose"], &file["filename"]),
        (&json!("batch_output"), &json!(format!("{id}_output.jsonl")))
    );
    let chunks = folder.path().join(format!("documents/results-{id}"));
    for _ in 0..500 {
        if !chunks.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!chunks.exists(), "chunks are forgotten");

    let again = d.start(&["hi"]).await;
    let list = d.json("/v1/batches?limit=1").await;
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(again), &json!(true)));
    let list = d.json(&format!("/v1/batches?after={again}")).await;
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(id), &json!(false)));
    let batch = d.ended(&again).await;
    assert_eq!(batch["error_file_id"], Value::Null);
    let (status, e) = error(d.post(&format!("/v1/batches/{again}/cancel"), json!({})).await).await;
    assert_eq!((status, &e["code"]), (400, &json!("invalid_value")));
}

#[tokio::test]
async fn a_batch_of_a_class() {
    let folder = tempfile::tempdir().unwrap();
    let d = desk(folder.path()).await;
    let input = d.upload(line("a", "hi")).await;
    let body = json!({"input_file_id": input, "endpoint": CHAT, "completion_window": "24h"});
    let post = |class: &'static str| {
        let request = d.client.post(format!("{}/v1/batches", d.url)).header("x-assay-verification", class);
        request.json(&body).send()
    };
    let (status, e) = error(post("some").await.unwrap()).await;
    assert_eq!((status, &e["param"]), (400, &json!("x-assay-verification")));
    let batch: Value = post("none").await.unwrap().json().await.unwrap();
    assert_eq!(d.ended(batch["id"].as_str().unwrap()).await["status"], "completed");
    let order = d.mock.last.lock().unwrap().clone().unwrap();
    assert_eq!((order.request.audit, order.caller.class), (Consent::Withheld, Class::None));
    // Without a word it is the server's own.
    let id = d.start(&["hi"]).await;
    d.ended(&id).await;
    let order = d.mock.last.lock().unwrap().clone().unwrap();
    assert_eq!((order.request.audit, order.caller.class), (Consent::Given, Class::Sampled));
}

#[tokio::test]
async fn inputs_are_checked_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions { lines_max: 20, ..FileOptions::default() };
    let d = Desk::open(folder.path(), options).await;
    let good = |key: &str, value: Value| {
        let mut line: Value = serde_json::from_str(&line("a", "hi")).unwrap();
        line[key] = value;
        format!("{line}\n")
    };
    let all = [
        (line("same", "hi"), None),
        ("\n".to_owned(), None),
        (line("same", "hi"), Some(("duplicate_custom_id", json!("custom_id")))),
        ("{\n".to_owned(), Some(("invalid_json_line", Value::Null))),
        ("[]\n".to_owned(), Some(("invalid_json_line", Value::Null))),
        ("\u{fffd}\n".to_owned(), Some(("invalid_json_line", Value::Null))),
        (good("custom_id", Value::Null), Some(("missing_required_parameter", json!("custom_id")))),
        (good("custom_id", json!(7)), Some(("invalid_custom_id", json!("custom_id")))),
        (good("method", json!("GET")), Some(("invalid_method", json!("method")))),
        (good("url", json!("/v1/embeddings")), Some(("invalid_url", json!("url")))),
        (good("body", json!([])), Some(("invalid_body", json!("body")))),
        (good("body", json!({"stream": true})), Some(("invalid_body", json!("body.stream")))),
    ];
    let input: String = all.iter().map(|(text, _)| text.as_str()).collect();
    let begin = async |input: String| {
        let file = d.upload(input).await;
        let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", "metadata": {"k": "v"}});
        let batch: Value = d.post("/v1/batches", body).await.json().await.unwrap();
        d.ended(batch["id"].as_str().unwrap()).await
    };
    let batch = begin(input).await;
    assert_eq!((&batch["status"], &batch["metadata"]), (&json!("failed"), &json!({"k": "v"})));
    assert!(batch["failed_at"].is_u64() && batch["output_file_id"].is_null());
    let got: Vec<(u64, String, Value)> = batch["errors"]["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["line"].as_u64().unwrap(), e["code"].as_str().unwrap().to_owned(), e["param"].clone()))
        .collect();
    let expected: Vec<(u64, String, Value)> = all
        .iter()
        .zip(1u64..)
        .filter_map(|((_, e), line)| e.clone().map(|(code, param)| (line, code.to_owned(), param)))
        .collect();
    assert_eq!(got, expected);
    assert!(d.mock.taken.lock().unwrap().is_empty(), "nothing was asked");
    let batch = begin("\n\n".into()).await;
    assert_eq!(batch["errors"]["data"][0]["code"], "empty_file");
    let batch = begin((0..21).map(|i| line(&i.to_string(), "hi")).collect()).await;
    assert_eq!(batch["errors"]["data"][0]["code"], "too_many_requests");
    let batch = begin((0..20).map(|i| line(&i.to_string(), "hi")).collect()).await;
    assert_eq!(batch["status"], "completed", "at the limit");
}

#[tokio::test]
async fn a_batch_goes_on_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let d = desk(folder.path()).await;
    let id = d.start(&["hi 1", "hi 2", "fail before", "wait 1", "wait 2", "wait 3"]).await;
    let batch =
        d.until(&id, |b| b["request_counts"]["completed"] == 2 && b["request_counts"]["failed"] == 1).await;
    assert_eq!(batch["status"], "in_progress");
    let second = d.start(&["hi 3"]).await;
    d.kill().await;

    let d = desk(folder.path()).await;
    assert_eq!(
        d.json(&format!("/v1/batches/{id}")).await["request_counts"]["completed"],
        2,
        "what was told stays true"
    );
    d.mock.gate.send_replace(true);
    let batch = d.ended(&id).await;
    assert_eq!(
        (&batch["status"], &batch["request_counts"]),
        (&json!("completed"), &json!({"total": 6, "completed": 5, "failed": 1}))
    );
    assert_eq!(d.lines(&batch["output_file_id"]).await.len(), 5);
    assert_eq!(d.lines(&batch["error_file_id"]).await.len(), 1);
    assert_eq!(d.ended(&second).await["status"], "completed");
    let mut taken = d.mock.taken.lock().unwrap().clone();
    taken.sort();
    assert_eq!(taken, ["hi 3", "wait 1", "wait 2", "wait 3"], "what was counted is not asked again");
}

#[tokio::test]
async fn a_batch_whose_input_is_lost_does_not_hold_up_others() {
    let folder = tempfile::tempdir().unwrap();
    let d = desk(folder.path()).await;
    let lost = d.start(&["wait"]).await;
    let batch = d.until(&lost, |b| b["status"] == "in_progress").await;
    let other = d.start(&["hi"]).await;
    d.kill().await;
    std::fs::remove_file(folder.path().join("blobs").join(batch["input_file_id"].as_str().unwrap())).unwrap();
    let d = desk(folder.path()).await;
    assert_eq!(d.ended(&other).await["status"], "completed");
}

#[tokio::test]
async fn shutdown_leaves_a_batch_to_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut d = desk(folder.path()).await;
    let id = d.start(&["hi", "wait"]).await;
    d.until(&id, |b| b["request_counts"]["completed"] == 1).await;
    drop(d.stop.take());
    tokio::time::timeout(Duration::from_secs(20), &mut d.task).await.unwrap().unwrap().unwrap();
    let d = desk(folder.path()).await;
    d.mock.gate.send_replace(true);
    assert_eq!(d.ended(&id).await["request_counts"]["completed"], 2);
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let d = desk(folder.path()).await;
    let waiting: Vec<String> = (0..20).map(|i| format!("wait {i:02}")).collect();
    let mut all = vec!["hi"];
    all.extend(waiting.iter().map(String::as_str));
    let id = d.start(&all).await;
    let batch = d.until(&id, |b| b["request_counts"]["completed"] == 1).await;
    let input = batch["input_file_id"].as_str().unwrap().to_owned();
    let kept = d.client.delete(format!("{}/v1/files/{input}", d.url)).send().await.unwrap();
    assert_eq!(error(kept).await.0, 400, "an input in use is not deleted");
    let cancelling: Value =
        d.post(&format!("/v1/batches/{id}/cancel"), json!({})).await.json().await.unwrap();
    assert_eq!(cancelling["status"], "cancelling");
    let batch = d.ended(&id).await;
    assert_eq!(
        (&batch["status"], &batch["request_counts"]),
        (&json!("cancelled"), &json!({"total": 21, "completed": 1, "failed": 20}))
    );
    assert!(batch["cancelled_at"].is_u64() && batch["cancelling_at"].is_u64());
    assert_eq!(d.lines(&batch["output_file_id"]).await.len(), 1);
    let failed = d.lines(&batch["error_file_id"]).await;
    assert_eq!(
        (&failed["wait 19"]["error"]["code"], &failed["wait 19"]["response"]),
        (&json!("batch_cancelled"), &Value::Null)
    );
    for _ in 0..500 {
        if d.mock.cancelled.load(SeqCst) == 8 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(d.mock.cancelled.load(SeqCst), 8, "work in flight is cancelled");
    let freed = d.client.delete(format!("{}/v1/files/{input}", d.url)).send().await.unwrap();
    assert_eq!(freed.status(), 200);
}

#[tokio::test]
async fn batches_that_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions { open_batches_max: 1, ..FileOptions::default() };
    let d = Desk::open(folder.path(), options).await;
    let input = d.upload(line("a", "wait")).await;
    let form = Form::new().text("purpose", "user_data").part("file", Part::bytes(vec![1]).file_name("f"));
    let other: Value = d.send(form).await.json().await.unwrap();
    let good =
        json!({"input_file_id": input, "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    for (key, value, status) in [
        ("input_file_id", Value::Null, 400),
        ("input_file_id", json!("file-000000000000000000000000"), 404),
        ("input_file_id", json!("../files"), 404),
        ("input_file_id", other["id"].clone(), 400),
        ("endpoint", json!("/v1/messages"), 400),
        ("endpoint", json!("/metrics"), 400),
        ("completion_window", json!("1h"), 400),
        ("metadata", json!({"a": 1}), 400),
        ("metadata", json!({"a": "x".repeat(513)}), 400),
        (
            "metadata",
            json!((0..17).map(|i| (i.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>()),
            400,
        ),
        ("output_expires_after", json!({"anchor": "created_at", "seconds": 3600}), 400),
    ] {
        let (got, e) = error(d.post("/v1/batches", with(key, value)).await).await;
        assert_eq!(got, status, "{key}: {e}");
    }
    for body in hostile(&good) {
        let endless = json!({"input_file_id": 0});
        let mut body = if body == good { endless } else { body };
        if body["input_file_id"] == good["input_file_id"] {
            // Only its shape is looked at here: nothing is to begin.
            body["input_file_id"] = json!("file-x");
        }
        let status = d.post("/v1/batches", body.clone()).await.status().as_u16();
        assert!([400, 404].contains(&status), "{status}: {body}");
    }
    assert_eq!(d.post("/v1/batches", good.clone()).await.status(), 200);
    assert_eq!(
        error(d.post("/v1/batches", good).await).await.0,
        429,
        "one that is not finished is the limit here"
    );
    let (status, e) = error(d.get("/v1/batches/batch_x").await).await;
    assert_eq!((status, &e["code"]), (404, &json!("batch_not_found")));
    assert_eq!(error(d.post("/v1/batches/batch_x/cancel", json!({})).await).await.0, 404);
}

#[tokio::test]
async fn a_server_without_a_store_says_so() {
    let s = Served::new(ServerOptions::default()).await;
    for path in
        ["/v1/files", "/v1/files/file-x", "/v1/files/file-x/content", "/v1/batches", "/v1/batches/batch_x"]
    {
        let (status, e) = error(s.get(path).await).await;
        assert_eq!((status, &e["code"]), (400, &json!("unsupported_value")), "{path}");
    }
    for path in ["/v1/files", "/v1/batches"] {
        let (status, e) = error(s.post(path, json!({})).await).await;
        assert_eq!((status, &e["code"]), (400, &json!("unsupported_value")), "{path}");
    }
    let (status, e) = error(s.client.delete(format!("{}/v1/batches", s.url)).send().await.unwrap()).await;
    assert_eq!((status, &e["code"]), (405, &json!("method_not_allowed")));
}

#[test]
fn a_folder_keeps_to_itself() {
    let root = tempfile::tempdir().unwrap();
    let store = FolderStore::open(root.path()).unwrap();
    for name in ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "A", "a\0", &"x".repeat(81)] {
        assert!(store.put_blob(name, &mut std::iter::once(Ok(vec![1]))).is_err(), "{name:?}");
        assert!(store.read_blob(name, 0, 1).is_err(), "{name:?}");
        assert!(store.put(name, "k", b"x").is_err() && store.put("c", name, b"x").is_err(), "{name:?}");
        assert!(store.get("c", name).is_err() && store.keys(name).is_err(), "{name:?}");
    }
    let mut parts = [Ok(vec![1, 2]), Ok(vec![3])].into_iter();
    store.put_blob("b", &mut parts).unwrap();
    assert_eq!(store.read_blob("b", 0, 2), Ok(vec![1, 2]));
    assert_eq!(store.read_blob("b", 2, 2), Ok(vec![3]));
    assert_eq!(store.read_blob("b", 9, 2), Ok(vec![]));
    let broken = || Err(assay_api::StorageError { place: "here".into(), reason: "no".into() });
    assert!(store.put_blob("b", &mut [Ok(vec![9]), broken()].into_iter()).is_err());
    assert_eq!(store.read_blob("b", 0, 9), Ok(vec![1, 2, 3]), "what was there stays");
    assert_eq!(store.blobs(), Ok(vec!["b".to_owned()]));
    store.put("c", "2", b"two").unwrap();
    store.put("c", "1", b"one").unwrap();
    assert_eq!(store.keys("c"), Ok(vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(store.get("c", "1"), Ok(Some(b"one".to_vec())));
    assert_eq!(store.get("c", "3"), Ok(None));
    store.delete("c", "1").unwrap();
    store.delete("c", "1").unwrap();
    std::fs::write(root.path().join("documents/c/.tmp"), b"half").unwrap();
    std::fs::write(root.path().join("blobs/.tmp"), b"half").unwrap();
    let store = FolderStore::open(root.path()).unwrap();
    assert!(!root.path().join("blobs/.tmp").exists() && !root.path().join("documents/c/.tmp").exists());
    assert_eq!(store.keys("c"), Ok(vec!["2".to_owned()]));
    store.delete_blob("b").unwrap();
    store.delete_blob("b").unwrap();
    assert_eq!(store.blobs(), Ok(vec![]));
}

/// A client for HTTP. One that is built beside code that speaks TLS wants to know by which library, though it has no use for it.
fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
