//! What a gateway adds, without a model's time in it: a provider that answers at once, and clients that ask as fast as they are answered, or at an even
//! pace.
//!
//!     wire provider                                      prints its URL; OpenAI's routes and the relay's
//!     wire ask URL KEY CONNECTIONS SECONDS [PER_SECOND]  prints one JSON object
//!
//! Clients speak HTTP/1.1 over connections that stay, each one request at a time. At a pace, all connections together ask that often, and the time of a
//! request whose connection was still busy when it was due counts from when it was due.
#![allow(clippy::unwrap_used, reason = "a measurement that fails ends")]

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "../tests/providers/mod.rs"]
mod providers;

use providers::{Manner, Provider};

/// Bytes of the longest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["provider"] => {
            let provider = Provider::start(Manner::Honest, Some("0.10/0.40")).await;
            println!("{}", provider.url);
            std::future::pending::<()>().await;
        }
        ["ask", url, key, connections, seconds, ref pace @ ..] => {
            let (connections, seconds) = (connections.parse().unwrap(), seconds.parse().unwrap());
            let per_second = pace.first().map(|pace| pace.parse().unwrap());
            ask(url, key, connections, Duration::from_secs_f64(seconds), per_second).await;
        }
        _ => panic!("wire provider | wire ask URL KEY CONNECTIONS SECONDS [PER_SECOND]"),
    }
}

async fn ask(url: &str, key: &str, connections: usize, time: Duration, per_second: Option<f64>) {
    let host = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let start = Instant::now();
    let until = start + time;
    let clients: Vec<_> = (0..connections)
        .map(|client| {
            let (host, key) = (host.clone(), key.to_owned());
            tokio::spawn(async move {
                let mut stream = connect(&host).await;
                let (mut took, mut failed) = (Vec::new(), 0u64);
                for number in 0u64.. {
                    let due = per_second.map(|per_second| {
                        let place = number as f64 * connections as f64 + client as f64;
                        start + Duration::from_secs_f64(place / per_second)
                    });
                    // A request that has to wait for its connection waits from when it was due; a timer's own delay is not counted.
                    let late = due.filter(|due| *due <= Instant::now());
                    if let Some(due) = due.filter(|due| *due < until) {
                        tokio::time::sleep_until(due.into()).await;
                    }
                    if due.unwrap_or_else(Instant::now) >= until {
                        break;
                    }
                    let body = json!({
                        "model": "org/model", "max_tokens": 16, "seed": number * connections as u64 + client as u64,
                        "messages": [{"role": "user", "content": "Hello"}],
                    });
                    let body = body.to_string();
                    let request = format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\
                         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let begun = late.filter(|_| number > 0).unwrap_or_else(Instant::now);
                    match one(&mut stream, &request).await {
                        Some(true) => took.push(begun.elapsed().as_micros() as u64),
                        Some(false) => failed += 1,
                        None => {
                            failed += 1;
                            stream = connect(&host).await;
                        }
                    }
                }
                (took, failed)
            })
        })
        .collect();
    let (mut took, mut failed) = (Vec::new(), 0);
    for client in clients {
        let (of_client, failures) = client.await.unwrap();
        took.extend(of_client);
        failed += failures;
    }
    took.sort_unstable();
    let at = |share: f64| took.get(((took.len() as f64 - 1.0) * share) as usize).copied().unwrap_or_default();
    let result = json!({
        "connections": connections, "requests": took.len(), "failed": failed,
        "per_second": took.len() as f64 / time.as_secs_f64(),
        "p50_us": at(0.5), "p95_us": at(0.95), "p99_us": at(0.99),
    });
    println!("{result}");
}

async fn connect(host: &str) -> TcpStream {
    let stream = TcpStream::connect(host).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Whether a request was answered with status 200; nothing if the connection ended.
async fn one(stream: &mut TcpStream, request: &str) -> Option<bool> {
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut answer).await.ok()? == 0 || answer.len() > ANSWER_BYTES_MAX {
            return None;
        }
        let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let whole = match length {
            Some(length) => answer.len() >= head + 4 + length,
            None => answer.ends_with(b"0\r\n\r\n"),
        };
        if whole {
            let fine = text.starts_with("http/1.1 200");
            return Some(fine && answer.windows(9).any(|w| w == b"\"choices\""));
        }
    }
}
