//! Members apart: each with a disk, a clock and a network of its own, so that one's disk can be full, its clock wrong and its network gone.
//!
//! Disks are small file systems in memory, networks are network namespaces that a bridge joins; both need rights that few users have. So the whole
//! devnet goes into a mount and a network namespace of its own first (unshare(1), in a user namespace where it is not root's), in which it has them:
//! nothing of this machine is changed, and whatever was made is gone with its last process. Clocks are made wrong by libfaketime (faketime(1)). What this machine
//! does not permit is not played, and said.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// In the environment of a devnet that is in namespaces of its own: what they are for.
const INSIDE: &str = "ASSAY_DEVNET_INSIDE";
const NETWORKS: &str = "networks";
const DISKS: &str = "disks";
/// How it gets there: as root, or as whoever may have a user namespace; and what must work there.
const WAYS: [(&str, &[&str], &[&str]); 4] = [
    (NETWORKS, &["--mount", "--net"], MAKES_A_BRIDGE),
    (NETWORKS, &["--user", "--map-root-user", "--mount", "--net"], MAKES_A_BRIDGE),
    (DISKS, &["--mount"], &["true"]),
    (DISKS, &["--user", "--map-root-user", "--mount"], &["true"]),
];
const MAKES_A_BRIDGE: &[&str] = &["ip", "link", "add", "members", "type", "bridge"];
/// Proxies of outside are not reached from inside.
const PROXIES: [&str; 6] =
    ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// Size of a member's disk.
const DISK: &str = "64m";
/// Addresses of members are in this network, this process's own among them.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The bridge's hardware address, one of those that anyone may choose.
const BRIDGE: &str = "02:00:00:00:00:01";
/// Where a member listens that has an address of its own.
const PORT: u16 = 11_700;
/// The file that fills a disk.
const BALLAST: &str = "ballast";

/// Starts this program again in namespaces of its own, if that is permitted and not done.
pub fn enter() -> Result<()> {
    #[cfg(unix)]
    if std::env::var_os(INSIDE).is_none() {
        use std::os::unix::process::CommandExt as _;
        let works =
            |(_, way, what): &(&str, &[&str], &[&str])| run("unshare", &[*way, *what].concat()).is_ok();
        if let Some((purpose, way, _)) = WAYS.into_iter().find(works) {
            let mut again = Command::new("unshare");
            again.args(way).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
            again.env(INSIDE, purpose);
            for proxy in PROXIES {
                again.env_remove(proxy);
            }
            return Err(again.exec()).context("unshare");
        }
    }
    Ok(())
}

/// Runs a program to its end. What it printed; or, as an error, why it failed.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("`{program}`: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("`{program} {}`: {said}", args.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What members can have of their own here; or why they cannot.
#[derive(Debug)]
pub struct Ground {
    folder: PathBuf,
    pub disks: Result<(), String>,
    pub networks: Result<(), String>,
    /// With the library that makes clocks wrong.
    pub clocks: Result<String, String>,
    members: u8,
}

impl Ground {
    /// One where nobody has anything of its own.
    pub fn common(folder: &Path) -> Ground {
        let no = || "nobody asked for it".to_owned();
        Ground {
            folder: folder.to_owned(),
            disks: Err(no()),
            networks: Err(no()),
            clocks: Err(no()),
            members: 0,
        }
    }

    /// What is possible here, tried out.
    pub fn find(folder: &Path) -> Ground {
        let purpose = std::env::var(INSIDE).unwrap_or_default();
        // Whoever is not in namespaces of its own changes nothing; why it is not is said again.
        let inside = |wanted: &str| match wanted == purpose || purpose == NETWORKS {
            true => Ok(()),
            false => {
                let of_users = WAYS.into_iter().rfind(|(purpose, ..)| *purpose == wanted);
                let why = of_users.and_then(|(_, way, what)| run("unshare", &[way, what].concat()).err());
                Err(why.unwrap_or_else(|| "this process is not in namespaces of its own".to_owned()))
            }
        };
        let disks = || {
            inside(DISKS)?;
            // What libfaketime leaves behind of killed processes goes with the namespace.
            run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", "/dev/shm"]).map(drop)
        };
        let networks = || {
            inside(NETWORKS)?;
            run("ip", &["link", "set", "lo", "up"])?;
            // Without an address of its own a bridge takes its ports', and changes it with them: whoever knows the earlier one talks to nobody.
            run("ip", &["link", "add", "members", "address", BRIDGE, "type", "bridge"])?;
            run("ip", &["addr", "add", &format!("{HERE}/16"), "dev", "members"])?;
            run("ip", &["link", "set", "members", "up"])?;
            Network::make(&folder.join("trial.net"), 0).map(drop)
        };
        let clocks = || {
            let library = run("faketime", &["-m", "-f", "+0", "printenv", "LD_PRELOAD"])?;
            Ok(library.trim().to_owned())
        };
        Ground {
            folder: folder.to_owned(),
            disks: disks(),
            networks: networks(),
            clocks: clocks(),
            members: 0,
        }
    }

    /// An address of this process that nobody listens on now.
    pub fn free(&self) -> Result<SocketAddr> {
        let at: IpAddr = match self.networks {
            Ok(()) => HERE.into(),
            Err(_) => Ipv4Addr::LOCALHOST.into(),
        };
        Ok(std::net::TcpListener::bind((at, 0))?.local_addr()?)
    }

    /// Makes a place for a member, and its folder.
    pub fn place(&mut self, name: &str) -> Result<Place> {
        self.members += 1;
        let home = self.folder.join(name);
        std::fs::create_dir_all(&home)?;
        let mut place = Place { home, ..Place::default() };
        if self.disks.is_ok() {
            let size = format!("size={DISK},mode=700");
            let home = place.home.display().to_string();
            run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &home]).map_err(anyhow::Error::msg)?;
            place.disk = true;
        }
        if self.networks.is_ok() {
            let network = Network::make(&self.folder.join(format!("{name}.net")), self.members);
            place.network = Some(network.map_err(anyhow::Error::msg)?);
        }
        if let Ok(library) = &self.clocks {
            let clock = Clock { library: library.clone(), file: self.folder.join(format!("{name}.clock")) };
            clock.set(0)?;
            place.clock = Some(clock);
        }
        Ok(place)
    }
}

/// A network namespace with one line into the bridge.
#[derive(Clone, Debug)]
struct Network {
    /// Names it, as a file does.
    file: PathBuf,
    /// The line's end at the bridge.
    link: String,
    at: Ipv4Addr,
}

impl Network {
    fn make(file: &Path, number: u8) -> Result<Network, String> {
        let name = file.display().to_string();
        std::fs::write(file, []).map_err(|e| format!("{name}: {e}"))?;
        let network = Network {
            file: file.to_owned(),
            link: format!("member{number}"),
            at: Ipv4Addr::new(10, 77, 1, number),
        };
        run("unshare", &[&format!("--net={name}"), "true"])?;
        run("ip", &["link", "add", &network.link, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        run("ip", &["link", "set", &network.link, "master", "members", "up"])?;
        for inside in [
            vec!["addr", "add", &format!("{}/16", network.at), "dev", "eth0"],
            vec!["link", "set", "eth0", "up"],
            vec!["link", "set", "lo", "up"],
        ] {
            run("nsenter", &[&[&*format!("--net={name}"), "ip"], &*inside].concat())?;
        }
        Ok(network)
    }
}

/// A clock that a file makes wrong.
#[derive(Clone, Debug)]
struct Clock {
    library: String,
    file: PathBuf,
}

impl Clock {
    fn set(&self, off_s: i64) -> Result<()> {
        // A process may read it at any moment: it is replaced whole.
        let part = self.file.with_extension("part");
        std::fs::write(&part, format!("{off_s:+}\n"))?;
        Ok(std::fs::rename(&part, &self.file)?)
    }
}

/// Where a member is: its folder, and what else is its own.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub home: PathBuf,
    disk: bool,
    network: Option<Network>,
    clock: Option<Clock>,
}

impl Place {
    /// A place that has only a folder.
    pub fn plain(home: PathBuf) -> Place {
        Place { home, ..Place::default() }
    }

    /// Its own address, if it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.network.as_ref().map(|network| SocketAddr::from((network.at, PORT)))
    }

    /// A command of this binary that runs there.
    pub fn command(&self) -> Result<tokio::process::Command> {
        let binary = std::env::current_exe()?;
        let mut command = match &self.network {
            Some(network) => {
                let mut command = tokio::process::Command::new("nsenter");
                command.arg(format!("--net={}", network.file.display())).arg(binary);
                command
            }
            None => tokio::process::Command::new(binary),
        };
        if let Some(clock) = &self.clock {
            // Only the time of day is wrong: not what waits and timeouts go by, nor the times of files.
            command.env("LD_PRELOAD", &clock.library);
            command.env("FAKETIME_TIMESTAMP_FILE", &clock.file).env("FAKETIME_CACHE_DURATION", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        }
        Ok(command)
    }

    /// Fills the disk: from now on nothing more can be written.
    pub fn fill(&self) -> Result<()> {
        if !self.disk {
            bail!("{} is not on a disk of its own", self.home.display());
        }
        let mut file = std::fs::File::create(self.home.join(BALLAST))?;
        // The last bytes one by one.
        for piece in [vec![0; 1 << 16], vec![0; 1]] {
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => return Err(e).context("a disk cannot be filled"),
                }
            }
        }
        Ok(())
    }

    /// Frees the disk.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.home.join(BALLAST))?)
    }

    /// Sets the clock so many seconds off.
    pub fn clock(&self, off_s: i64) -> Result<()> {
        self.clock.as_ref().context("there is no clock of its own")?.set(off_s)
    }

    /// Cuts the line into its network, or joins it again.
    pub fn joined(&self, joined: bool) -> Result<()> {
        let network = self.network.as_ref().context("there is no network of its own")?;
        let state = if joined { "up" } else { "down" };
        run("ip", &["link", "set", &network.link, state]).map(drop).map_err(anyhow::Error::msg)
    }
}
