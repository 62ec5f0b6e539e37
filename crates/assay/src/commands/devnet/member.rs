//! One member of the network: a data directory and a process.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::apart::Place;

/// How long a process may take until it listens.
const READY: Duration = Duration::from_secs(60);

/// Commands of this binary for one data directory.
#[derive(Clone, Debug)]
pub struct Machine {
    pub place: Place,
    pub rpc: String,
}

impl Machine {
    fn command(&self, args: &[String]) -> Result<Command> {
        let mut command = self.place.command()?;
        command
            .env("ASSAY_HOME", &self.place.home)
            .env("ASSAY_RPC", &self.rpc)
            .env_remove("ASSAY_LISTEN")
            .env_remove("ASSAY_LEDGER")
            .env_remove("ASSAY_ACCOUNTS")
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs a command to its end. What it printed.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
        let output = self.command(&args)?.output().await?;
        if !output.status.success() {
            bail!("`assay {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A process that goes on, and can be started again.
pub struct Process {
    machine: Machine,
    args: Vec<String>,
    /// Where it listens, if it does.
    listens: Option<SocketAddr>,
    child: Child,
    /// Processor time of those that were killed.
    before: Duration,
}

impl Process {
    /// Starts it, and waits until it listens.
    pub async fn start(machine: Machine, args: &[&str], listens: Option<SocketAddr>) -> Result<Process> {
        let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
        let child = spawn(&machine, &args)?;
        let mut process = Process { machine, args, listens, child, before: Duration::ZERO };
        process.ready().await?;
        Ok(process)
    }

    /// Waits until it listens.
    pub async fn ready(&mut self) -> Result<()> {
        let Some(at) = self.listens else { return Ok(()) };
        let listening = async {
            while TcpStream::connect(at).await.is_err() {
                if let Some(status) = self.child.try_wait()? {
                    bail!("it ended with {status}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let listening = tokio::time::timeout(READY, listening).await.context("it does not listen");
        let said =
            || format!("`assay {}`; see {}", self.args.join(" "), log(&self.machine.place.home).display());
        listening.and_then(|l| l).with_context(said)
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.before += self.now();
        // It may have ended already.
        let _ = self.child.kill().await;
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.machine.place
    }

    /// Processor time that it has used, in all its lives; nothing where the system does not say so as Linux does.
    pub fn used(&self) -> Duration {
        self.before + self.now()
    }

    fn now(&self) -> Duration {
        self.child.id().and_then(used).unwrap_or_default()
    }

    /// Sends it a signal, which the system's own `kill` does.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let Some(process) = self.child.id() else { return Ok(()) };
        let sent = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status().await;
        sent.context("`kill` is not there")?;
        Ok(())
    }

    /// Starts it again and does not wait for it.
    pub fn revive(&mut self) -> Result<()> {
        self.child = spawn(&self.machine, &self.args)?;
        Ok(())
    }

    /// Starts it again as it was started first.
    pub async fn again(&mut self) -> Result<()> {
        self.revive()?;
        self.ready().await
    }
}

/// The 14th and 15th field of a process's `stat` are hundredths of a second in user and in kernel mode (proc_pid_stat(5)); the second one, the name, may
/// have spaces and ends with the last parenthesis.
fn used(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().ok());
    Some(Duration::from_millis(ticks.sum::<Option<u64>>()? * 10))
}

/// Where a process says what it does: beside its data directory, which may be a disk that goes with the network.
pub fn log(home: &Path) -> PathBuf {
    home.with_extension("log")
}

fn spawn(machine: &Machine, args: &[String]) -> Result<Child> {
    std::fs::create_dir_all(&machine.place.home)?;
    let log = File::options().create(true).append(true).open(log(&machine.place.home))?;
    let mut command = machine.command(args)?;
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().context("this binary cannot be started again")
}
