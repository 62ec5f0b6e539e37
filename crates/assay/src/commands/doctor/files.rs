//! The data directory: whether it can be written, has room, and keeps its secrets.

use std::path::Path;

use assay_core::id::NodeAddress;
use assay_node::key::NodeKey;

use super::Findings;
use crate::commands::ledger::connection::KeyArgs;
use crate::home::Home;

const GIB: u64 = 1 << 30;
/// Less room than this, and receipts will not be stored for long.
const ROOM_WRONG: u64 = GIB / 4;
/// Less room than this is worth a look.
const ROOM_LOW: u64 = 4 * GIB;

/// Looks at the data directory. Whose node it is, if that is known.
pub(super) fn examine(home: &Home, key: &KeyArgs, found: &mut Findings) -> Option<NodeAddress> {
    directory(home, found);
    let path = key.key.clone().unwrap_or_else(|| home.key());
    let address = match NodeKey::load(&path) {
        Ok(Some(key)) => {
            found.ok("key", "key", key.address().to_string());
            Some(key.address())
        }
        Ok(None) if key.key.is_some() => {
            found.wrong(
                "key_missing",
                "key",
                format!("there is no {}", path.display()),
                "name another file with --key",
            );
            None
        }
        Ok(None) => {
            found.ok("key", "key", "there is none yet; the first daemon or transaction makes one");
            None
        }
        Err(e) => {
            let next = "let this user read it, or restore it from a backup: another key is another node";
            found.wrong("key_unreadable", "key", e.to_string(), next);
            None
        }
    };
    for (what, path) in [("key's file", path), ("iroh's secret", home.iroh_secret())] {
        is_secret(what, &path, found);
    }
    address
}

fn directory(home: &Home, found: &mut Findings) {
    let what = "data directory";
    let Some(there) = home.path().ancestors().find(|path| path.exists()) else { return };
    let exists = there == home.path();
    if writable(there) {
        let detail = if exists { "" } else { " (made when it is needed)" };
        found.ok("data_directory", what, format!("{}{detail}", home.path().display()));
    } else {
        let detail = format!("{} cannot be written", there.display());
        found.wrong(
            "data_directory_read_only",
            what,
            detail,
            "let this user write there, or give --data-dir",
        );
    }
    let hub = home.hub();
    if hub.exists() && !writable(&hub) {
        let detail = format!("{} cannot be written", hub.display());
        found.wrong(
            "hub_read_only",
            "hub's store",
            detail,
            "let this user write there: blobs cannot be kept",
        );
    }
    let Some(free) = room(there) else { return };
    let detail = format!("{:.1} GiB free", free as f64 / GIB as f64);
    let next = "make room, or move the data directory: what cannot be stored is not acknowledged";
    match free {
        ..ROOM_WRONG => found.wrong("disk_full", "disk", detail, next),
        ROOM_WRONG..ROOM_LOW => found.warn("disk_low", "disk", detail, next),
        _ => found.ok("disk", "disk", detail),
    }
}

#[cfg(unix)]
fn writable(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

#[cfg(not(unix))]
fn writable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|known| !known.permissions().readonly())
}

/// Bytes that this user may still write beside `path`.
#[cfg(unix)]
fn room(path: &Path) -> Option<u64> {
    let known = rustix::fs::statvfs(path).ok()?;
    Some(known.f_bavail.saturating_mul(known.f_frsize))
}

#[cfg(not(unix))]
fn room(_: &Path) -> Option<u64> {
    None
}

/// Says if others may read a secret that is there.
#[cfg(unix)]
fn is_secret(what: &str, path: &Path, found: &mut Findings) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(known) = std::fs::metadata(path) else { return };
    let mode = known.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let detail = format!("{} has mode {mode:03o}: others may read it", path.display());
        let next = format!(
            "chmod 600 {}; if others were on this machine, the secret is no secret any more",
            path.display()
        );
        found.wrong("secret_permissions", what, detail, next);
    }
}

#[cfg(not(unix))]
fn is_secret(_: &str, _: &Path, _: &mut Findings) {}
