//! A model being served: its batcher on a thread of its own, spoken to through channels.
//!
//! A model may be served while it arrives: the thread waits within a pass for what comes next of it, and listens to commands
//! meanwhile. An encoder's thread waits for all of it, since nothing that it makes leaves before its receipt.
//!
//! Shutdown: 1. the handle drops its sender; 2. the thread finishes the pass it is in and drops all jobs, whose events end;
//! 3. it is joined.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use assay_core::text::TextOpening;
use assay_engine::artifact::Artifact;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::batch::{
    BatchLimits, Batcher, Draft, Event, Job, JobId, Load, Memory, Spared, Stepped, SubmitError,
};
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::presence::{Lack, Presence};
use assay_engine::program::Head;
use assay_engine::program::layers::Layers;
use assay_engine::replay::Execution;
use assay_engine::text::{TextError, Tokenizer};
use tokio::sync::{mpsc, oneshot, watch};

/// Time after which a thread that waits for bytes listens to commands.
const LISTEN_EVERY: Duration = Duration::from_millis(20);

/// What is known of a model's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is what its root says, as far as its installation or its arrival checked it.
    Whole,
    /// It arrives: its content was not compared with its root yet.
    Arriving,
    /// It did not arrive, or is not what its root says.
    Withdrawn(Arc<str>),
}

/// Why an answer has no receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Withdrawn {
    /// What happened to the model.
    pub reason: Arc<str>,
}

/// What is known of a model's content, and when that changes.
#[derive(Clone)]
pub struct Watched(watch::Receiver<Standing>);

impl Watched {
    /// Waits until the content of the model was compared with its root.
    pub async fn settled(&mut self) -> Result<(), Withdrawn> {
        let settled = self.0.wait_for(|standing| *standing != Standing::Arriving).await;
        match settled.as_deref() {
            Ok(Standing::Withdrawn(reason)) => Err(Withdrawn { reason: reason.clone() }),
            Ok(_) => Ok(()),
            Err(_) => Err(Withdrawn { reason: "the model is served no longer".into() }),
        }
    }

    /// Why the model was withdrawn, if it was.
    pub fn withdrawn(&self) -> Option<Withdrawn> {
        match &*self.0.borrow() {
            Standing::Withdrawn(reason) => Some(Withdrawn { reason: reason.clone() }),
            _ => None,
        }
    }
}

/// A model with its thread.
pub struct ServedModel {
    artifact: Arc<Artifact>,
    tokenizer: Arc<Tokenizer>,
    /// Unbounded, since whoever sends has been admitted by the batcher's own limits or waits for its verdict.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    load: Arc<Mutex<Load>>,
    spared: Arc<Mutex<Spared>>,
    next_job: AtomicU64,
    /// Requests for embeddings under way.
    encoding: AtomicUsize,
    kernel: Kernel,
    limits: BatchLimits,
    memory: Memory,
    standing: watch::Sender<Standing>,
    /// What its root says of text, once somebody has asked.
    shown: OnceLock<Option<TextOpening>>,
    /// The furthest operation that a pass has come to.
    reached: Arc<AtomicUsize>,
}

enum Command {
    Submit {
        job: Box<Job>,
        events: mpsc::Sender<Event>,
        admitted: oneshot::Sender<Result<(), SubmitError>>,
    },
    Cancel(JobId),
    Stop(JobId),
    Encode(Encoding),
    /// The model will not arrive.
    End,
}

/// Sequences to be read by an encoder.
struct Encoding {
    inputs: Vec<Vec<u32>>,
    pooled: oneshot::Sender<Vec<Vec<i32>>>,
}

/// A job under way. Dropping it cancels the work.
pub struct Running {
    id: JobId,
    commands: Sender<Command>,
    /// What happens.
    pub events: mpsc::Receiver<Event>,
}

impl Running {
    /// Ends the answer with the token that it is at. If it has not begun, the events end without one.
    pub fn stop(&self) {
        // A thread that has ended needs no word.
        let _ = self.commands.send(Command::Stop(self.id));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A finished job is unknown to the batcher, which ignores this.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

impl ServedModel {
    /// Starts serving `artifact`, sharing `pool` with other models; `draft` proposes tokens for it.
    pub fn start(
        artifact: Arc<Artifact>,
        kernel: Kernel,
        pool: Arc<Pool>,
        limits: BatchLimits,
        draft: Option<Draft>,
    ) -> Result<ServedModel, TextError> {
        let tokenizer = Arc::new(Tokenizer::new(artifact.text(), artifact.tokenizer_json())?);
        let load = Arc::new(Mutex::new(Load::default()));
        let spared = Arc::new(Mutex::new(Spared::default()));
        let reached = Arc::new(AtomicUsize::new(0));
        let (commands, inbox) = channel();
        let arriving = artifact.presence().is_some_and(|p| !p.is_settled());
        let standing = watch::Sender::new(if arriving { Standing::Arriving } else { Standing::Whole });
        let executor = Executor::new(artifact.shared(), kernel, Arc::clone(&pool));
        let draft = draft.map(|draft| draft.executor(kernel, pool));
        let memory = Memory::of(&limits, &executor, draft.as_ref());
        let thread = {
            let (artifact, tokenizer) = (Arc::clone(&artifact), Arc::clone(&tokenizer));
            let (load, spared, reached) = (Arc::clone(&load), Arc::clone(&spared), Arc::clone(&reached));
            std::thread::Builder::new()
                .name("assay-batcher".into())
                .spawn(move || {
                    if let Head::Vector { .. } = artifact.program().program().head {
                        return encode_all(executor, &inbox, artifact.presence(), &load);
                    }
                    let end_tokens = artifact.text().end_tokens.clone();
                    let mut batcher = Batcher::new(executor, &tokenizer, end_tokens, limits);
                    if let Some(draft) = draft {
                        batcher = batcher.drafting(draft);
                    }
                    run(batcher, &inbox, artifact.presence(), (&load, &spared), &reached);
                    // Jobs that were dropped are under way no longer.
                    *load.lock().unwrap_or_else(PoisonError::into_inner) = Load::default();
                })
                .expect("the system can start a thread for a model")
        };
        let (commands, thread) = (Some(commands), Some(thread));
        Ok(ServedModel {
            artifact,
            tokenizer,
            commands,
            thread,
            load,
            spared,
            next_job: AtomicU64::new(0),
            encoding: AtomicUsize::new(0),
            kernel,
            limits,
            memory,
            standing,
            shown: OnceLock::new(),
            reached,
        })
    }

    /// What the model's root says of text, with the way to it: hashes the whole model when it is asked first. Nothing while the model arrives.
    pub fn show_text(&self) -> Option<TextOpening> {
        if *self.standing.borrow() != Standing::Whole {
            return None;
        }
        let show = || {
            let (text, tokenizer) = (self.artifact.text(), self.artifact.tokenizer_json());
            ModelTree::new(&*self.artifact, text, tokenizer).open_text(text)
        };
        self.shown.get_or_init(show).clone()
    }

    /// What is known of its content.
    pub fn standing(&self) -> Watched {
        Watched(self.standing.subscribe())
    }

    /// Its content was compared with its root and equals it.
    pub fn settle(&self) {
        self.standing.send_if_modified(|standing| match standing {
            Standing::Arriving => {
                *standing = Standing::Whole;
                true
            }
            _ => false,
        });
    }

    /// It is not to be used: what is under way ends. A model that is whole stays.
    pub fn withdraw(&self, reason: &str) {
        self.standing.send_if_modified(|standing| match standing {
            Standing::Arriving => {
                *standing = Standing::Withdrawn(reason.into());
                true
            }
            _ => false,
        });
        let Some(presence) = self.artifact.presence().filter(|p| !p.is_settled()) else { return };
        presence.fail(reason);
        if let Some(commands) = &self.commands {
            // A thread that has ended needs no word.
            let _ = commands.send(Command::End);
        }
    }

    /// How many layers the furthest pass has executed, and how many there are.
    pub fn layers(&self) -> (usize, usize) {
        let layers = Layers::of(self.artifact.program());
        let reached = self.reached.load(Relaxed);
        (layers.all().iter().filter(|l| l.ops.end <= reached).count(), layers.all().len())
    }

    /// The artifact.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// What it takes on.
    pub fn limits(&self) -> BatchLimits {
        self.limits
    }

    /// What it takes of memory while it has most to do.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// What it is busy with.
    pub fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was spared since it is served.
    pub fn spared(&self) -> Spared {
        *self.spared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job made by `job` from its id.
    pub async fn submit(&self, job: impl FnOnce(JobId) -> Job) -> Result<Running, SubmitError> {
        let id = self.next_job.fetch_add(1, Relaxed);
        let job = job(id);
        let window = self.artifact_context();
        // Room for every event of the longest answer: the batcher never waits for a reader.
        let (sender, events) = mpsc::channel(window + 8);
        let (admitted, verdict) = oneshot::channel();
        let commands = self.commands.clone().expect("the sender lives as long as the handle");
        let stopped = SubmitError::QueueFull { waiting: 0 };
        if commands.send(Command::Submit { job: Box::new(job), events: sender, admitted }).is_err() {
            return Err(stopped);
        }
        let running = Running { id, commands, events };
        match verdict.await {
            Ok(Ok(())) => Ok(running),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(stopped),
        }
    }

    /// Whether the model is an encoder.
    pub fn is_encoder(&self) -> bool {
        matches!(self.artifact.program().program().head, Head::Vector { .. })
    }

    /// The pooled vectors of sequences, each of 1 to as many ids as the context has, all below the vocabulary; `None` for
    /// a model that is no encoder.
    pub async fn encode(&self, inputs: Vec<Vec<u32>>) -> Result<Option<Vec<Vec<i32>>>, SubmitError> {
        if !self.is_encoder() {
            return Ok(None);
        }
        let waiting = self.encoding.fetch_add(1, Relaxed);
        let counted = Counted(&self.encoding);
        if waiting >= self.limits.waiting_max + self.limits.running_max {
            return Err(SubmitError::QueueFull { waiting });
        }
        let (pooled, result) = oneshot::channel();
        let commands = self.commands.as_ref().expect("the sender lives as long as the handle");
        let sent = commands.send(Command::Encode(Encoding { inputs, pooled }));
        let made = match sent {
            Ok(()) => result.await.ok(),
            Err(_) => None,
        };
        drop(counted);
        made.map(Some).ok_or(SubmitError::QueueFull { waiting: 0 })
    }

    fn artifact_context(&self) -> usize {
        self.artifact.program().program().context as usize
    }
}

impl Drop for ServedModel {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the engine was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Takes one off a count when it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The thread of an encoder: reads what has come together, since longer passes are faster.
fn encode_all(
    mut executor: Executor,
    inbox: &Receiver<Command>,
    presence: Option<&Arc<Presence>>,
    load: &Mutex<Load>,
) {
    let mut early = Vec::new();
    while presence.is_some_and(|p| !p.is_settled()) {
        if presence.is_some_and(|p| matches!(p.lack(&[]), Some(Lack::Gone(_)))) {
            return;
        }
        match inbox.recv_timeout(LISTEN_EVERY) {
            Ok(command) => early.push(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
    loop {
        let first = match early.pop() {
            Some(first) => first,
            None => match inbox.recv() {
                Ok(first) => first,
                Err(_) => return,
            },
        };
        let waiting = std::iter::once(first).chain(early.drain(..)).chain(inbox.try_iter());
        let all: Vec<Encoding> = waiting
            .filter_map(|c| match c {
                Command::Encode(e) if !e.pooled.is_closed() => Some(e),
                _ => None,
            })
            .collect();
        *load.lock().unwrap_or_else(PoisonError::into_inner) = Load { running: all.len(), ..Load::default() };
        let inputs: Vec<&[u32]> = all.iter().flat_map(|e| e.inputs.iter().map(Vec::as_slice)).collect();
        let mut pooled = Execution::encode(&mut executor, &inputs).into_iter();
        let shares: Vec<Vec<Vec<i32>>> =
            all.iter().map(|e| pooled.by_ref().take(e.inputs.len()).collect()).collect();
        for (e, share) in all.into_iter().zip(shares) {
            // Whoever asked may be gone.
            let _ = e.pooled.send(share);
        }
        *load.lock().unwrap_or_else(PoisonError::into_inner) = Load::default();
    }
}

/// Hands an event to whoever reads the job's, for whom the last one is the end. False if nobody reads, who should.
fn pass_on(readers: &mut HashMap<JobId, mpsc::Sender<Event>>, id: JobId, event: Event) -> bool {
    let done = matches!(event, Event::Done(_));
    let sent = readers.get(&id).is_some_and(|r| r.try_send(event).is_ok());
    if done {
        readers.remove(&id);
    }
    sent || done
}

/// The thread of a decoder. It ends with the last sender, or when the model will not arrive.
fn run(
    mut batcher: Batcher<'_>,
    inbox: &Receiver<Command>,
    presence: Option<&Arc<Presence>>,
    (load, spared): (&Mutex<Load>, &Mutex<Spared>),
    reached: &AtomicUsize,
) {
    let operations = batcher.executor().constants().program().program().ops.len();
    let mut readers: HashMap<JobId, mpsc::Sender<Event>> = HashMap::new();
    loop {
        // Idle: wait. Busy: take what has come, then go on.
        loop {
            let command = if batcher.is_idle() {
                match inbox.recv() {
                    Ok(c) => c,
                    Err(_) => return,
                }
            } else {
                match inbox.try_recv() {
                    Ok(c) => c,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            };
            match command {
                Command::Submit { job, events, admitted } => {
                    let id = job.id;
                    let verdict = batcher.submit(*job);
                    if verdict.is_ok() {
                        readers.insert(id, events);
                    }
                    if admitted.send(verdict).is_err() {
                        batcher.cancel(id);
                        readers.remove(&id);
                    }
                }
                Command::Cancel(id) => {
                    batcher.cancel(id);
                    readers.remove(&id);
                }
                Command::Stop(id) => {
                    let mut report = |id, event| {
                        pass_on(&mut readers, id, event);
                    };
                    if !batcher.stop(id, &mut report) {
                        readers.remove(&id);
                    }
                }
                // A decoder's sender never makes one; dropping it tells whoever waits.
                Command::Encode(_) => {}
                Command::End => return,
            }
            *load.lock().unwrap_or_else(PoisonError::into_inner) = batcher.load();
        }
        let mut gone = Vec::new();
        let stepped = batcher.step(&mut |id, event| {
            if !pass_on(&mut readers, id, event) {
                gone.push(id);
            }
        });
        for id in gone {
            batcher.cancel(id);
            readers.remove(&id);
        }
        *load.lock().unwrap_or_else(PoisonError::into_inner) = batcher.load();
        *spared.lock().unwrap_or_else(PoisonError::into_inner) = batcher.spared();
        match (stepped, presence) {
            (Stepped::Lacks { op, lack: Lack::Bytes(missing) }, Some(presence)) => {
                reached.fetch_max(op, Relaxed);
                presence.wait(&missing, LISTEN_EVERY);
            }
            // All jobs end here; whoever reads their events knows of the withdrawal.
            (Stepped::Lacks { .. }, _) => return,
            (Stepped::Done, _) => drop(reached.fetch_max(operations, Relaxed)),
        }
    }
}
