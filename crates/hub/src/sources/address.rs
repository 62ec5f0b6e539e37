//! Addresses on the web: which are asked at all, and which redirects are followed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

use super::digest::{Digest, DigestKind};
use super::error::{SourceError, shown};

/// Most bytes of an address.
const ADDRESS_BYTES_MAX: usize = 4096;
/// Endings of files that a pull from the web takes.
const ENDINGS: [&str; 3] = [".gguf", ".assay", ".whl"];

/// Whether servers are asked without encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Only on this machine.
    #[default]
    Loopback,
    /// Anywhere: whoever sits between can read and alter everything.
    Anywhere,
}

/// A file on the web, and what is known of its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) url: Url,
    pub(super) digest: Option<Digest>,
}

impl Address {
    /// The file's name: the last part of the path, with `-` for what a name should not have.
    pub fn file_name(&self) -> String {
        file_name(&self.url)
    }
}

impl FromStr for Address {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Address, SourceError> {
        // The text is not repeated: it may hold a password.
        let invalid =
            |url: &str, reason: String| SourceError::Invalid { source_text: url.to_owned(), reason };
        if text.len() > ADDRESS_BYTES_MAX {
            let reason = format!("an address has at most {ADDRESS_BYTES_MAX} bytes, not {}", text.len());
            return Err(invalid("https://…", reason));
        }
        let mut url = Url::parse(text).map_err(|e| invalid("https://…", format!("no address: {e}")))?;
        let at = said(&url);
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                &at,
                "an address with a password in it would end up in logs; leave it out".into(),
            ));
        }
        let digest = match url.fragment() {
            None => None,
            Some(fragment) => {
                let digest = fragment.split_once('=').and_then(|(kind, hex)| match kind {
                    "sha256" => Digest::from_hex(DigestKind::Sha256, hex),
                    "blake3" => Digest::from_hex(DigestKind::Blake3, hex),
                    _ => None,
                });
                Some(digest.ok_or_else(|| {
                    let got = shown(fragment);
                    invalid(
                        &at,
                        format!("after the # stands sha256= or blake3= and 64 hex digits, not `{got}`"),
                    )
                })?)
            }
        };
        url.set_fragment(None);
        let name = file_name(&url);
        if !ENDINGS.iter().any(|e| name.ends_with(e) && name.len() > e.len()) {
            let reason = format!("its name must end with {}, to say what it is", ENDINGS.join(", "));
            return Err(invalid(&at, reason));
        }
        Ok(Address { url, digest })
    }
}

/// Without the query, which may be a secret.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&said(&self.url))?;
        self.digest.as_ref().map_or(Ok(()), |d| write!(f, "#{d}"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// An address as messages show it: without query, fragment and password.
pub(super) fn said(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail only for addresses that cannot have any.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    shown(url.as_str())
}

/// Refuses what is neither https nor http on this machine.
pub(super) fn permit(url: &Url, plain: PlainHttp) -> Result<(), SourceError> {
    match url.scheme() {
        "https" => Ok(()),
        "http" if plain == PlainHttp::Anywhere || is_loopback(url) => Ok(()),
        "http" => Err(SourceError::PlainHttp { url: said(url) }),
        _ => Err(SourceError::unknown(&said(url))),
    }
}

/// Where a redirect leads, if it is followed.
pub(super) fn follow(from: &Url, location: &str, plain: PlainHttp) -> Result<Url, SourceError> {
    let refuse = |to: &str, reason: &str| SourceError::Redirect {
        from: said(from),
        to: to.to_owned(),
        reason: reason.to_owned(),
    };
    if location.len() > 4 * ADDRESS_BYTES_MAX {
        return Err(refuse("…", "the address is too long"));
    }
    let mut to = from.join(location).map_err(|_| refuse("…", "that is no address"))?;
    to.set_fragment(None);
    let at = said(&to);
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err(refuse(&at, "from https to anything else is not followed"));
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Err(refuse(&at, "an address with a password is not followed"));
    }
    permit(&to, plain).map_err(|_| refuse(&at, "that is neither https nor http on this machine"))?;
    Ok(to)
}

/// Whether the host is this machine, by its name or number alone: no resolver is asked.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let number = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || number.is_ok_and(|ip| ip.is_loopback())
}

fn file_name(url: &Url) -> String {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    last.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let hex = "ab".repeat(32);
        let a: Address = format!("https://example.org/x/M%20a.gguf?secret=1#sha256={hex}").parse().unwrap();
        assert_eq!(a.to_string(), format!("https://example.org/x/M%20a.gguf#sha256={hex}"));
        assert_eq!(a.file_name(), "M-20a.gguf");
        assert!(format!("https://example.org/m.assay#blake3={hex}").parse::<Address>().is_ok());
        let long = format!("https://example.org/{}.gguf", "a".repeat(ADDRESS_BYTES_MAX));
        let fits = &long[..ADDRESS_BYTES_MAX - 5];
        assert!(format!("{fits}.gguf").parse::<Address>().is_ok());
        for wrong in [
            "https://user:secret@example.org/m.gguf",
            "https://secret@example.org/m.gguf",
            "https://example.org/m.gguf#sha256=abcd",
            "https://example.org/m.gguf#md5=00",
            "https://example.org/m.gguf#",
            "https://example.org/secret.tar",
            "https://example.org/.gguf",
            "https://example.org/",
            "https://",
            &format!("{fits}a.gguf"),
        ] {
            let error = wrong.parse::<Address>().unwrap_err();
            assert_eq!(error.code(), "source_invalid", "{wrong}");
            assert!(!error.to_string().contains("secret@"), "{error}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        let permitted = |url: &str, plain| permit(&url.parse().unwrap(), plain).is_ok();
        for here in
            ["http://127.0.0.1:1/x", "http://localhost/x", "http://[::1]:9/x", "https://example.org/x"]
        {
            assert!(permitted(here, PlainHttp::Loopback), "{here}");
        }
        for away in ["http://example.org/x", "http://10.0.0.1/x", "http://localhost.example.org/x"] {
            assert!(!permitted(away, PlainHttp::Loopback) && permitted(away, PlainHttp::Anywhere), "{away}");
        }
        assert!(!permitted("file:///etc/passwd", PlainHttp::Anywhere));
    }

    #[test]
    fn redirects_never_lose_encryption() {
        let from = |from: &str, to: &str| follow(&from.parse().unwrap(), to, PlainHttp::Loopback);
        assert_eq!(from("https://a/x/y", "../z?q").unwrap().as_str(), "https://a/z?q");
        assert_eq!(from("http://127.0.0.1/x", "https://b/z#f").unwrap().as_str(), "https://b/z");
        for (start, to) in [
            ("https://a/x", "http://127.0.0.1/x"),
            ("https://a/x", "http://a/x"),
            ("https://a/x", "file:///etc/passwd"),
            ("http://127.0.0.1/x", "http://example.org/x"),
            ("https://a/x", "https://u:p@b/x"),
            ("https://a/x", "https://"),
        ] {
            assert_eq!(from(start, to).unwrap_err().code(), "source_redirect", "{start} {to}");
        }
    }
}
