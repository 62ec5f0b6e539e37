//! The configuration file: what options are where the command line and the environment do not say.
//!
//! `assay.toml` in the data directory, or the file that ASSAY_CONFIG names, has a table for each command, with its long options as keys:
//!
//! ```toml
//! [up]
//! price = "0.10/0.40"
//! settle = true
//!
//! [gateway]
//! provider = ["http://10.0.0.5:11711", "http://10.0.0.6:11711"]
//! ```
//!
//! It is read into the command line, before what stands there. So there is one place that knows options, their forms and their errors; and an
//! option that does not exist is an error here too.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::home::Home;

/// The file's name in the data directory.
pub const FILE: &str = "assay.toml";

/// The command line with what the configuration file adds.
pub fn with_file(cli: &Command, line: Vec<OsString>) -> Result<Vec<OsString>> {
    // Without a data directory there is no file; the command says what is missing.
    let home = Home::open(data_dir(&line).as_deref()).ok();
    let Some((path, table)) = read(home.as_ref())? else { return Ok(line) };
    merged(cli, &table, line, &|name| std::env::var_os(name).is_some())
        .with_context(|| path.display().to_string())
}

/// The file's path and what is in it, if there is one.
fn read(home: Option<&Home>) -> Result<Option<(PathBuf, Table)>> {
    let named = std::env::var_os("ASSAY_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let is_named = named.is_some();
    let Some(path) = named.or_else(|| home.map(|home| home.path().join(FILE))) else { return Ok(None) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(None),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let table = text.parse().with_context(|| path.display().to_string())?;
    Ok(Some((path, table)))
}

/// What daemons would be started with, as far as environment and file say it: for who looks at them from outside.
pub struct Settings(Table);

impl Settings {
    pub fn read(home: &Home) -> Result<Settings> {
        Ok(Settings(read(Some(home))?.map(|(_, table)| table).unwrap_or_default()))
    }

    /// Whether there is a table of a command.
    pub fn has(&self, command: &str) -> bool {
        self.0.contains_key(command)
    }

    /// An option's value: of the environment's variable, if it has one and that is set, else of the file.
    pub fn text(&self, command: &str, key: &str, variable: Option<&str>) -> Option<String> {
        let set = variable.and_then(|name| std::env::var(name).ok()).filter(|value| !value.is_empty());
        let said = || self.0.get(command)?.get(key)?.as_str().map(str::to_owned);
        set.or_else(said)
    }

    /// Whether a switch is on.
    pub fn is_on(&self, command: &str, key: &str) -> bool {
        let value = self.0.get(command).and_then(|table| table.get(key));
        value.and_then(Value::as_bool).unwrap_or_default()
    }
}

/// The data directory that the command line names.
fn data_dir(line: &[OsString]) -> Option<PathBuf> {
    let mut words = line.iter();
    while let Some(word) = words.next() {
        let Some(word) = word.to_str() else { continue };
        if word == "--data-dir" {
            return words.next().map(PathBuf::from);
        }
        if let Some(value) = word.strip_prefix("--data-dir=") {
            return Some(PathBuf::from(value));
        }
    }
    std::env::var_os("ASSAY_HOME").map(PathBuf::from)
}

/// Adds the options of the command that is given, right behind its name.
fn merged(
    cli: &Command,
    table: &Table,
    mut line: Vec<OsString>,
    is_set: &dyn Fn(&std::ffi::OsStr) -> bool,
) -> Result<Vec<OsString>> {
    check(cli, table, "")?;
    let (mut command, mut table, mut at) = (cli, Some(table), 0);
    let mut words = line.iter().enumerate().skip(1);
    while let Some((i, word)) = words.next() {
        let Some(next) = word.to_str().and_then(|word| command.find_subcommand(word)) else {
            // Behind a command's name stands its own business.
            if at > 0 {
                break;
            }
            // Before it, global options and their values.
            let global = word.to_str().and_then(|word| option(cli, word.strip_prefix("--")?));
            if global.is_some_and(|arg| arg.get_action().takes_values()) {
                words.next();
            }
            continue;
        };
        (command, at) = (next, i);
        table = table.and_then(|t| t.get(next.get_name())).and_then(Value::as_table);
    }
    let mut added: Vec<OsString> = Vec::new();
    for (key, value) in table.into_iter().flatten().filter(|_| at > 0) {
        let Some(option) = option(command, key) else { continue };
        let given =
            |word: &OsString| word.to_str().is_some_and(|w| w.split('=').next() == Some(&format!("--{key}")));
        if line.iter().skip(at).any(given) || option.get_env().is_some_and(is_set) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            match value {
                Value::Boolean(true) if matches!(option.get_action(), ArgAction::SetTrue) => {
                    added.push(format!("--{key}").into());
                }
                Value::Boolean(false) if matches!(option.get_action(), ArgAction::SetTrue) => {}
                Value::String(text) => added.push(format!("--{key}={text}").into()),
                Value::Integer(number) => added.push(format!("--{key}={number}").into()),
                Value::Float(number) => added.push(format!("--{key}={number}").into()),
                other => bail!("`{key}` cannot be a {}", other.type_str()),
            }
        }
    }
    line.splice(at + 1..at + 1, added);
    Ok(line)
}

fn option<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(key))
}

/// Refuses what is no command and no option.
fn check(command: &Command, table: &Table, path: &str) -> Result<()> {
    for (key, value) in table {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Some(sub) = command.find_subcommand(key) {
            let Value::Table(inner) = value else {
                bail!("`{full}` is a command, and has a table: [{full}]")
            };
            check(sub, inner, &full)?;
        } else if path.is_empty() {
            bail!("there is no command `{key}`; `assay --help` lists them");
        } else if option(command, key).is_none() {
            let words = path.replace('.', " ");
            bail!("[{path}] has no option `{key}`; `assay {words} --help` lists them");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Parser, Subcommand};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[arg(long, global = true)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: Commands,
    }

    #[derive(Subcommand)]
    enum Commands {
        Up {
            #[arg(long, env = "UP_PRICE")]
            price: Option<String>,
            #[arg(long)]
            settle: bool,
            #[arg(long)]
            peer: Vec<String>,
            #[arg(long, default_value_t = 1)]
            threads: u32,
            release: Option<String>,
        },
        Keys {
            #[command(subcommand)]
            what: Keys,
        },
    }

    #[derive(Subcommand)]
    enum Keys {
        Create {
            name: String,
            #[arg(long)]
            credit: Option<u32>,
        },
    }

    fn merge(file: &str, line: &str, set: &str) -> Result<String> {
        use clap::CommandFactory as _;
        let line = line.split(' ').map(OsString::from).collect();
        let merged = merged(&Cli::command(), &file.parse().unwrap(), line, &|name| name == set)?;
        let words: Vec<String> = merged.into_iter().map(|w| w.into_string().unwrap()).collect();
        let joined = words.join(" ");
        Cli::try_parse_from(words)?;
        Ok(joined)
    }

    const FILE: &str =
        "[up]\nprice = '1/2'\nsettle = true\npeer = ['a', 'b']\nthreads = 3\n[keys.create]\ncredit = 5\n";

    #[test]
    fn options_of_the_command_are_added_where_nobody_gave_them() {
        let all = "assay up --peer=a --peer=b --price=1/2 --settle --threads=3";
        assert_eq!(merge(FILE, "assay up", "").unwrap(), all);
        let some = "assay up --peer=a --peer=b --settle --threads=3 x --price 7/8";
        assert_eq!(merge(FILE, "assay up x --price 7/8", "").unwrap(), some);
        let environment = "assay --data-dir up up --peer=a --peer=b --settle --threads=4";
        assert_eq!(merge(FILE, "assay --data-dir up up --threads=4", "UP_PRICE").unwrap(), environment);
        assert_eq!(merge(FILE, "assay keys create up", "").unwrap(), "assay keys create --credit=5 up");
        assert_eq!(merge("[up]\nsettle = false\n", "assay up", "").unwrap(), "assay up");
    }

    #[test]
    fn what_does_not_exist_is_said() {
        for (file, said) in [
            ("[down]\n", "there is no command `down`"),
            ("[up]\nprise = '1'\n", "[up] has no option `prise`; `assay up --help`"),
            ("[keys.create]\nx = 1\n", "[keys.create] has no option `x`"),
            ("up = 1\n", "`up` is a command"),
            ("[up]\npeer = [[1]]\n", "`peer` cannot be a array"),
        ] {
            let error = merge(file, "assay up", "").unwrap_err().to_string();
            assert!(error.contains(said), "{file}: {error}");
        }
    }
}
