//! What people call models: `name@version`, with the publisher's address in front where the name alone could mean several.
//!
//! A name belongs to the publisher whose key signs its releases; two publishers may use the same one. A version begins with a digit
//! and is one release for ever; a label begins with a letter and moves.

use std::fmt;
use std::str::FromStr;

use assay_core::id::NodeAddress;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

/// Most bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// Most bytes of a version or a label.
pub const VERSION_BYTES_MAX: usize = 32;
/// The label that a name without a version means.
pub const LATEST: &str = "latest";

/// Text that is no name, version or label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A model's name.
    #[error(
        "{got:?} is no name of a model: at most {NAME_BYTES_MAX} of a to z, 0 to 9, `.`, `_` and `-`, a letter or digit first"
    )]
    Name {
        /// What was given.
        got: String,
    },
    /// A version.
    #[error(
        "{got:?} is no version: at most {VERSION_BYTES_MAX} letters, digits, `.`, `+` and `-`, a digit first, as in 1.0.0"
    )]
    Version {
        /// What was given.
        got: String,
    },
    /// A label.
    #[error(
        "{got:?} is no label: at most {VERSION_BYTES_MAX} letters, digits, `.` and `-`, a letter first, as in latest"
    )]
    Label {
        /// What was given.
        got: String,
    },
    /// A publisher.
    #[error("{got:?} is no publisher: an address of 0x and 40 hex digits stands before the slash")]
    Publisher {
        /// What was given.
        got: String,
    },
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $error:ident, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<$name, NameError> {
                let ok: fn(&[u8]) -> bool = $ok;
                if ok(text.as_bytes()) {
                    Ok($name(text.to_owned()))
                } else {
                    Err(NameError::$error { got: shown(text) })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                <String as Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl BorshDeserialize for $name {
            fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<$name> {
                let text = String::deserialize_reader(reader)?;
                text.parse().map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
            }
        }
    };
}

text!(
    /// A model's name.
    ModelName, Name, |b| {
        b.len() <= NAME_BYTES_MAX
            && b.first().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(c))
    }
);
text!(
    /// A version: one release for ever.
    Version, Version, |b| {
        b.len() <= VERSION_BYTES_MAX
            && b.first().is_some_and(u8::is_ascii_digit)
            && b.iter().all(|c| c.is_ascii_alphanumeric() || b".+-".contains(c))
    }
);
text!(
    /// A label: a version's name that moves.
    Label, Label, |b| {
        b.len() <= VERSION_BYTES_MAX
            && b.first().is_some_and(u8::is_ascii_alphabetic)
            && b.iter().all(|c| c.is_ascii_alphanumeric() || b".-".contains(c))
    }
);

/// Which version is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// This one.
    Version(Version),
    /// The one that the label stands for now.
    Label(Label),
}

/// What a user writes to name a release: `[0xPUBLISHER/]NAME[@VERSION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Whose name it is; whoever's is the only one, if left out.
    pub publisher: Option<NodeAddress>,
    /// The name.
    pub name: ModelName,
    /// The version; `latest`, if left out.
    pub which: Which,
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Reference, NameError> {
        let (publisher, rest) = match text.split_once('/') {
            Some((publisher, rest)) => {
                let address = publisher.parse();
                let bad = || NameError::Publisher { got: shown(publisher) };
                (Some(address.map_err(|_| bad())?), rest)
            }
            None => (None, text),
        };
        let (name, which) = rest.split_once('@').unwrap_or((rest, LATEST));
        let which = if which.starts_with(|c: char| c.is_ascii_alphabetic()) {
            Which::Label(which.parse()?)
        } else {
            Which::Version(which.parse()?)
        };
        Ok(Reference { publisher, name: name.parse()?, which })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(publisher) = &self.publisher {
            write!(f, "{publisher}/")?;
        }
        match &self.which {
            Which::Version(version) => write!(f, "{}@{version}", self.name),
            Which::Label(label) => write!(f, "{}@{label}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_they_are_written() {
        let address = "0x00000000000000000000000000000000000000ff";
        for text in ["stories@1.0.0", "a@0", "llama-3.2_1b@2.0.0-rc1+int8", "stories@latest"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
            let full = format!("{address}/{text}");
            assert_eq!(full.parse::<Reference>().unwrap().to_string(), full);
        }
        assert_eq!("stories".parse::<Reference>().unwrap().to_string(), "stories@latest");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(NAME_BYTES_MAX);
        assert!(long.parse::<ModelName>().is_ok());
        let version = "1".repeat(VERSION_BYTES_MAX);
        assert!(version.parse::<Version>().is_ok() && version.parse::<Label>().is_err());
        let bad = [
            String::new(),
            "@1".into(),
            "a@".into(),
            "A@1".into(),
            "a b".into(),
            ".a".into(),
            "../a".into(),
            "x/a@1".into(),
            "a@1/2".into(),
            "a@1@2".into(),
            "ä".into(),
            "a\0".into(),
            long + "a",
            format!("a@{version}1"),
            "-a".into(),
            format!("a@l{version}"),
            "/a".into(),
        ];
        for text in bad {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn bytes_of_no_name_are_refused() {
        let bytes = borsh::to_vec("Not a name").unwrap();
        assert!(borsh::from_slice::<ModelName>(&bytes).is_err());
        assert!(borsh::from_slice::<ModelName>(&borsh::to_vec("name").unwrap()).is_ok());
        assert!(serde_json::from_str::<Version>("\"latest\"").is_err());
    }
}
