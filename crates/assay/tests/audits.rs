//! Traces, disputes, keys and audits, as someone meets them who has an answer of the built-in model.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::path::{Path, PathBuf};
use std::process::Output;

use assay_core::id::Hash;
use assay_core::keccak::keccak256;
use assay_core::merkle;
use harness::{MODEL, Node, assay, chat, stderr, stdout};
use serde_json::Value;

/// A data directory with an answer of 60 tokens: three blocks.
struct Case {
    home: tempfile::TempDir,
    record: Value,
    file: PathBuf,
}

impl Case {
    fn new() -> Case {
        let home = tempfile::tempdir().unwrap();
        let prompt = "Once upon a time there was a dog";
        let run = assay(home.path(), &["run", MODEL, prompt, "--max-tokens", "60", "--seed", "7", "--json"]);
        let record: Value = serde_json::from_str(&stdout(&run)).unwrap();
        let case = Case { file: home.path().join("record.json"), home, record };
        case.write(&case.record);
        case
    }

    fn write(&self, record: &Value) {
        std::fs::write(&self.file, record.to_string()).unwrap();
    }

    /// `assay WORDS… RECEIPT OPTIONS…`
    fn call(&self, command: &[&str], options: &[&str]) -> Output {
        let file = [self.file.to_str().unwrap()];
        assay(self.home.path(), &[command, &file, options].concat())
    }

    fn trace(&self, options: &[&str]) -> Value {
        let output = self.call(&["trace", "show", "--json"], options);
        assert!(output.status.success(), "{options:?}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    /// Plays, and gives the exit status with what was printed.
    fn dispute(&self, options: &[&str]) -> (Option<i32>, Value) {
        let output = self.call(&["dispute", "simulate", "--json"], options);
        let json = serde_json::from_str(&stdout(&output));
        (output.status.code(), json.unwrap_or_else(|_| panic!("{options:?}: {}", stderr(&output))))
    }
}

fn hash(v: &Value) -> Hash {
    v.as_str().unwrap().parse().unwrap()
}

fn hashes(all: &Value, key: &str) -> Vec<Hash> {
    all.as_array().unwrap().iter().map(|v| hash(&v[key])).collect()
}

fn says(output: &Output, what: &str) {
    let all = stdout(output) + &stderr(output);
    assert!(all.contains(what), "`{what}` in: {all}");
}

#[test]
fn a_trace_is_shown_from_its_root_to_its_numbers() {
    let case = Case::new();
    let trace = case.trace(&[]);
    assert_eq!(trace["digests_hold"], true);
    let blocks = trace["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 3);
    assert!(blocks.iter().all(|b| b["digest_is_receipted"] == true));
    assert_eq!(hashes(&trace["blocks"], "digest"), {
        let digests = case.record["digests"].as_array().unwrap();
        digests.iter().map(hash).collect::<Vec<_>>()
    });
    assert_eq!(merkle::root(hashes(&trace["blocks"], "carry")), hash(&trace["trace_root"]));

    // A block's carry is over the commitments of the steps that it carries.
    let block = &case.trace(&["--block", "1"])["block"];
    let steps = block["steps"].as_array().unwrap();
    let carried: Vec<Hash> =
        steps.iter().filter(|s| s["carried"] == true).map(|s| hash(&s["commitment"])).collect();
    assert_eq!(merkle::root(carried), hash(&blocks[1]["carry"]));
    assert_eq!(block["carry"], blocks[1]["carry"]);

    // A step's commitment is over the roots of its parts.
    let step = &case.trace(&["--block", "1", "--step", "hidden"])["block"]["step"];
    let roots = hashes(&step["parts"], "root");
    let bytes: Vec<&[u8]> = roots.iter().map(|h| h.as_bytes().as_slice()).collect();
    assert_eq!(keccak256(&bytes), hash(&step["commitment"]));

    // The last number of all is the token that was answered.
    let first = case.record["transcript"]["prompt_ids"].as_array().unwrap().len() - 1;
    for row in [0, 5] {
        let options = ["--block", "0", "--step", "choose", "--part", "chosen", "--row", &row.to_string()];
        let shown = &case.trace(&options)["block"]["step"]["row"];
        assert_eq!(shown["position"], first + row);
        assert_eq!(shown["numbers"][0], case.record["transcript"]["output_ids"][row]);
    }
}

#[test]
fn a_trace_is_shown_to_people() {
    let case = Case::new();
    let show = |options: &[&str]| case.call(&["trace", "show"], options);
    says(&show(&[]), "The execution digests are the receipt's.");
    says(&show(&["--block", "2"]), "matmul layers.3.mlp.down");
    says(&show(&["--block", "2", "--step", "choose"]), "fold of 4 runs from 0");
    says(&show(&["--block", "2", "--step", "logits", "--part", "0"]), "960 more, all of them with --json");
    for (options, message) in [
        (&["--block", "3"][..], "the answer has 3"),
        (&["--block", "0", "--step", "sample"], "adjust and choose"),
        (&["--block", "0", "--step", "choose", "--part", "mask"], "likelihoods"),
        (&["--block", "0", "--step", "choose", "--part", "chosen", "--row", "31"], "there is no row 31"),
        (&["--step", "1"], "--block"),
        (&["--model", "no-such-model"], "assay import"),
        (&["--choice", "1"], "the file holds 1"),
    ] {
        let output = show(options);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        says(&output, message);
    }
}

#[test]
fn a_trace_of_another_execution_says_so() {
    let case = Case::new();
    let mut altered = case.record.clone();
    let id = altered["transcript"]["output_ids"][40].as_u64().unwrap();
    altered["transcript"]["output_ids"][40] = Value::from(id ^ 1);
    case.write(&altered);
    let shown = case.call(&["trace", "show"], &[]);
    assert_eq!(shown.status.code(), Some(1));
    says(&shown, "THE EXECUTION DIGESTS ARE NOT THE RECEIPT'S");
    let trace = case.call(&["trace", "show"], &["--json"]);
    let blocks: Value = serde_json::from_str(&stdout(&trace)).unwrap();
    let equal: Vec<bool> =
        blocks["blocks"].as_array().unwrap().iter().map(|b| b["digest_is_receipted"] == true).collect();
    assert_eq!(equal, [true, false, false], "the block in which it was read, and those after it");

    // What cannot be executed at all is no verdict.
    altered["transcript"]["output_ids"][40] = Value::from(99_999);
    case.write(&altered);
    let shown = case.call(&["trace", "show"], &[]);
    assert_eq!(shown.status.code(), Some(2));
    says(&shown, "99999");
}

#[tokio::test]
async fn guided_answers_are_traced_with_their_masks_and_disputed() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), false, &[]);
    let mut body = chat("Once upon a time", 7, 20);
    body["n"] = Value::from(2);
    body["response_format"] = serde_json::json!({"type": "json_object"});
    let request = harness::client().post(node.chat_url()).header("x-assay-receipt", "inline").json(&body);
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    let file = home.path().join("answer.json");
    std::fs::write(&file, answer.to_string()).unwrap();
    let call = |words: &[&str], options: &[&str]| {
        assay(home.path(), &[words, &[file.to_str().unwrap()], options].concat())
    };
    let mask = ["--choice", "1", "--block", "0", "--step", "adjust", "--part", "mask", "--json"];
    let shown = call(&["trace", "show"], &mask);
    assert!(shown.status.success(), "{}", stderr(&shown));
    let shown: Value = serde_json::from_str(&stdout(&shown)).unwrap();
    let row = shown["block"]["step"]["row"]["numbers"].as_array().unwrap();
    let left = row.iter().filter(|v| **v == 1).count();
    assert!((1..row.len()).contains(&left), "{left} of {} tokens are left", row.len());
    let played = call(&["dispute", "simulate"], &["--choice", "1"]);
    assert_eq!(played.status.code(), Some(0), "{}", stderr(&played));
    says(&played, "the challenger found nothing to dispute");
    // Which tokens a guide leaves is nothing for a referee: such a token costs a fee, and nobody disputes it.
    let played = call(&["dispute", "simulate"], &["--choice", "0", "--cheat", "token"]);
    says(&played, "the challenger found nothing to dispute");
    let played = call(&["dispute", "simulate"], &["--choice", "0", "--cheat", "weights"]);
    assert_eq!(played.status.code(), Some(1), "{}", stderr(&played));
}

#[test]
fn every_cheat_loses_against_an_honest_challenger() {
    let case = Case::new();
    let cheats = [
        ("weights", "step_fails"),
        ("layers", "step_fails"),
        ("prompt", "step_fails"),
        ("token", "step_fails"),
        ("digest", "digest_fails"),
        ("number", "step_fails"),
        ("cache", "step_fails"),
        ("silent", "timeout"),
        ("garbage", "malformed"),
    ];
    for (cheat, reason) in cheats {
        for seed in ["1", "9"] {
            let (status, played) = case.dispute(&["--cheat", cheat, "--seed", seed]);
            assert_eq!(status, Some(1), "{cheat}");
            let outcome = &played["outcome"];
            assert_eq!(
                (&outcome["winner"], &outcome["reason"]),
                (&"challenger".into(), &reason.into()),
                "{cheat}"
            );
            assert!(played["rounds"].as_u64().unwrap() <= 6);
            assert_eq!(played["settled_by"].is_object(), reason == "step_fails", "{cheat}");
            let sent: u64 =
                played["messages"].as_array().unwrap().iter().map(|m| m["bytes"].as_u64().unwrap()).sum();
            let by_party = ["defender", "challenger"].map(|p| played["bytes"][p].as_u64().unwrap());
            assert_eq!(sent, by_party.iter().sum::<u64>());
        }
    }
    let (_, token) = case.dispute(&["--cheat", "token"]);
    assert_ne!(token["settled_by"]["transcript"], token["settled_by"]["honest"]);
    let (_, cache) = case.dispute(&["--cheat", "cache"]);
    assert_eq!(cache["settled_by"]["part_name"], "scores");
    assert_eq!(case.dispute(&["--cheat", "cache"]), case.dispute(&["--cheat", "cache", "--seed", "1"]));
}

#[test]
fn an_honest_defender_stands() {
    let case = Case::new();
    let (status, played) = case.dispute(&[]);
    assert_eq!((status, &played["outcome"]["reason"]), (Some(0), &"timeout".into()));
    for kind in ["false", "wild"] {
        for seed in 0..8 {
            let (status, played) = case.dispute(&["--challenger", kind, "--seed", &seed.to_string()]);
            assert_eq!(status, Some(0), "{played}");
            assert_eq!(played["outcome"]["winner"], "defender");
        }
    }
    let told = case.call(&["dispute", "simulate"], &["--cheat", "weights"]);
    says(&told, "THE RECEIPT FALLS (step_fails)");
    says(&told, "rounded to 4 bits");
}

#[test]
fn what_was_not_signed_is_not_disputed() {
    let case = Case::new();
    let mut altered = case.record.clone();
    altered["request"]["sampling"]["seed"] = Value::from(8);
    case.write(&altered);
    let played = case.call(&["dispute", "simulate"], &[]);
    assert_eq!(played.status.code(), Some(2));
    says(&played, "only what a provider signed can be disputed");
    let help = stdout(&assay(Path::new("/nowhere"), &["dispute", "simulate", "--help"]));
    assert!(help.contains("An honest party cannot lose"), "{help}");
}

#[test]
fn a_key_is_made_once_kept_private_checked_and_revealed() {
    let home = tempfile::tempdir().unwrap();
    let call = |args: &[&str]| assay(home.path(), args);
    let make = ["key", "make", MODEL, "--epoch", "3", "--positions", "128"];
    let made = call(&[&make[..], &["--json"]].concat());
    assert!(made.status.success(), "{}", stderr(&made));
    let described: Value = serde_json::from_str(&stdout(&made)).unwrap();
    let path = described["path"].as_str().unwrap();
    assert!(path.ends_with("keys/assay-stories-3.key"), "{path}");
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, described["bytes"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = call(&make);
    assert_eq!(again.status.code(), Some(1));
    says(&again, "is not replaced");
    assert_eq!(std::fs::read(path).unwrap(), bytes);

    let checked = call(&["key", "check", path, "--model", MODEL]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    let revealed = call(&["key", "reveal", path, "--json"]);
    let seed: Value = serde_json::from_str(&stdout(&revealed)).unwrap();
    assert_eq!((&seed["commitment"], &seed["epoch"]), (&described["commitment"], &3.into()));
    let seed = seed["seed"].as_str().unwrap().trim_start_matches("0x").to_owned();
    for output in [&made, &again, &checked] {
        assert!(!(stdout(output) + &stderr(output)).contains(&seed), "only `key reveal` tells the seed");
    }

    // Whoever has the revealed seed makes the same key.
    let same = home.path().join("same.key");
    let same = same.to_str().unwrap();
    let out = ["key", "make", MODEL, "--epoch", "3", "--positions", "128", "--seed", &seed, "-o", same];
    assert!(call(&out).status.success());
    assert_eq!(std::fs::read(same).unwrap(), bytes);

    // One of another content is found out; what is no key is no verdict.
    let mut altered = bytes.clone();
    // Sums of weights are most of it.
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    std::fs::write(same, &altered).unwrap();
    assert_eq!(call(&["key", "check", same]).status.code(), Some(1));
    std::fs::write(same, &altered[..middle]).unwrap();
    let damaged = call(&["key", "check", same]);
    assert_eq!(damaged.status.code(), Some(2));
    says(&damaged, "is no key of a light audit");
    assert_eq!(call(&["key", "check", "/nowhere.key"]).status.code(), Some(2));
    let typed = call(&["key", "make", MODEL, "--seed", "5ec2e7", "-o", same]);
    assert_eq!(typed.status.code(), Some(1));
    assert!(!stderr(&typed).contains("5ec2e7"), "what may be a secret is not repeated");
}

/// Audits a case, and gives the exit status with what was printed.
fn audit(case: &Case, options: &[&str]) -> (Option<i32>, Value) {
    let output = case.call(&["audit"], &[options, &["--json"]].concat());
    let json = serde_json::from_str(&stdout(&output));
    (output.status.code(), json.unwrap_or_else(|_| panic!("{options:?}: {}", stderr(&output))))
}

const TIERS: [&[&str]; 5] = [
    &["--tier", "reexec"],
    &["--tier", "shard"],
    &["--tier", "shard", "--layer", "2"],
    &["--tier", "light"],
    &["--tier", "batch"],
];

#[test]
fn an_answer_holds_in_every_audit() {
    let case = Case::new();
    for options in TIERS {
        let (status, verdict) = audit(&case, options);
        assert_eq!((status, &verdict["holds"]), (Some(0), &true.into()), "{verdict}");
        let bits = &verdict["soundness_bits"];
        match options[1] {
            "light" => assert!((50..60).contains(&bits.as_u64().unwrap()), "{bits}"),
            "batch" => assert!((170..180).contains(&bits.as_u64().unwrap()), "{bits}"),
            _ => assert!(bits.is_null()),
        }
        let cost = verdict["cost"].as_array().unwrap();
        assert!(cost.iter().any(|s| s["side"] == "auditor" && s["ns"].as_u64() > Some(0)), "{verdict}");
        let provider = cost.iter().any(|s| s["side"] == "provider" && s["bytes"].as_u64() > Some(0));
        assert_eq!(provider, options[1] != "reexec");
        let held = match options {
            [_, "light"] => "What 8 of 68 positions show of the answer holds",
            [.., "2"] => "Layer 2 holds",
            _ => "The answer holds",
        };
        says(&case.call(&["audit"], options), held);
    }
    let layers = audit(&case, TIERS[1]).1["checks"].to_string();
    assert!(layers.contains("layer 0") && layers.contains("execution digests"), "{layers}");
}

#[test]
fn an_altered_answer_holds_in_none() {
    let case = Case::new();
    for (at, id) in [(30, Value::from(7)), (59, Value::from(99_999))] {
        let mut altered = case.record.clone();
        altered["transcript"]["output_ids"][at] = id;
        case.write(&altered);
        for options in TIERS {
            let (status, verdict) = audit(&case, options);
            assert_eq!((status, &verdict["holds"]), (Some(1), &false.into()), "{options:?}: {verdict}");
            assert!(verdict["failure"].is_object());
        }
    }
    let mut altered = case.record.clone();
    altered["digests"][0] = altered["digests"][1].clone();
    case.write(&altered);
    for options in TIERS {
        assert_eq!(audit(&case, options).0, Some(1), "{options:?}");
    }
}

#[test]
fn a_light_audit_with_a_key_and_a_beacon() {
    let case = Case::new();
    let key = case.home.path().join("audit.key");
    let key = key.to_str().unwrap();
    assert!(assay(case.home.path(), &["key", "make", MODEL, "-o", key]).status.success());
    let beacon = "ab".repeat(32);
    let options = ["--tier", "light", "--key", key, "--tokens", "5", "--beacon", &beacon];
    let (status, verdict) = audit(&case, &options);
    assert_eq!(status, Some(0), "{verdict}");
    let drawn = &verdict["challenge"]["positions"];
    assert_eq!(drawn.as_array().unwrap().len(), 5);
    assert_eq!(&audit(&case, &options).1["challenge"]["positions"], drawn, "the beacon draws them");

    let short = case.home.path().join("short.key");
    let short = short.to_str().unwrap();
    let made = assay(case.home.path(), &["key", "make", MODEL, "--positions", "32", "-o", short]);
    assert!(made.status.success());
    for (options, message) in [
        (&["--tier", "light", "--key", short][..], "make a longer key"),
        (&["--tier", "light", "--key", "/nowhere.key"], "/nowhere.key"),
        (&["--tier", "light", "--tokens", "65"], "65"),
        (&["--tier", "batch", "--key", key], "--key is for --tier light"),
        (&["--tier", "light", "--layer", "1"], "--layer is for --tier shard"),
        (&["--tier", "shard", "--layer", "99"], "the model's are 0 to"),
        (&["--tier", "guess"], "reexec"),
    ] {
        let output = case.call(&["audit"], options);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        says(&output, message);
    }
}

#[test]
fn an_audit_compares_the_answer_around_the_record() {
    let case = Case::new();
    let t = &case.record["transcript"];
    let usage = |key: &str| t[key].as_array().unwrap().len();
    let mut answer = serde_json::json!({
        "choices": [{"message": {"content": t["text"]}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": usage("prompt_ids"), "completion_tokens": usage("output_ids")},
        "assay_receipt": case.record,
    });
    case.write(&answer);
    assert_eq!(audit(&case, TIERS[3]).0, Some(0));
    answer["choices"][0]["message"]["content"] = Value::from("another story");
    case.write(&answer);
    let (status, verdict) = audit(&case, TIERS[3]);
    assert_eq!((status, &verdict["failure"]["code"]), (Some(1), &"text".into()));
}
