//! Which Hub, and who asks: what the Hub's own clients read from the environment.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::sources::address::said;
use crate::sources::error::SourceError;

/// The Hub, unless the environment names another.
const ENDPOINT: &str = "https://huggingface.co";
/// Most bytes of a token.
const TOKEN_BYTES_MAX: usize = 4096;

/// Proves to a Hub who asks. It is never shown.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl Token {
    /// From its text, with blanks around it removed; `None` if nothing is left.
    fn new(text: &str) -> Result<Option<Token>, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let value =
            Some(text).filter(|t| t.len() <= TOKEN_BYTES_MAX && t.bytes().all(|b| b.is_ascii_graphic()));
        let value = value.and_then(|t| HeaderValue::from_str(&format!("Bearer {t}")).ok());
        let mut value = value.ok_or("that is no token of a Hub")?;
        value.set_sensitive(true);
        Ok(Some(Token(value)))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A server that speaks the Hub's protocol, and what it is shown.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: Url,
    token: Option<Token>,
}

impl Hub {
    /// The Hub that the environment names: `HF_ENDPOINT`; `HF_TOKEN`, or else a token in the file `HF_TOKEN_PATH`, by default `token`
    /// in `HF_HOME`, by default `huggingface` in `XDG_CACHE_HOME` or `~/.cache`.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Hub, SourceError> {
        let text =
            |name: &str| variable(name).and_then(|v| v.into_string().ok()).filter(|v| !v.trim().is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let invalid = |source_text: &str, reason: String| SourceError::Invalid {
            source_text: source_text.to_owned(),
            reason,
        };
        let url = Url::parse(endpoint.trim()).ok().filter(|u| matches!(u.scheme(), "http" | "https"));
        let url = url.filter(|u| u.username().is_empty() && u.password().is_none());
        let mut url = url.ok_or_else(|| {
            invalid(
                "HF_ENDPOINT",
                "that is no address of a Hub; write https://HOST, without a password".into(),
            )
        })?;
        url.set_query(None);
        url.set_fragment(None);
        let token = match text("HF_TOKEN") {
            Some(token) => Token::new(&token).map_err(|e| invalid("HF_TOKEN", e.into()))?,
            None => match token_file(variable) {
                Some(path) => read_token(&path)?,
                None => None,
            },
        };
        Ok(Hub { endpoint: url, token })
    }

    /// Its address.
    pub(super) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Its address, for messages.
    pub(super) fn said(&self) -> String {
        said(&self.endpoint).trim_end_matches('/').to_owned()
    }

    pub(super) fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref().map(|t| &t.0)
    }

    /// An address below its own. What a part should not have is escaped, slashes too.
    pub(super) fn url<'a>(&self, parts: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("http addresses have paths").pop_if_empty().extend(parts);
        url
    }
}

fn token_file(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || {
        let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        Some(cache?.join("huggingface"))
    };
    path("HF_TOKEN_PATH").or_else(|| Some(path("HF_HOME").or_else(home)?.join("token")))
}

/// The token in a file; none if there is no such file.
fn read_token(path: &Path) -> Result<Option<Token>, SourceError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(SourceError::io(path)(e)),
    };
    let mut text = String::new();
    file.take(TOKEN_BYTES_MAX as u64 + 2).read_to_string(&mut text).map_err(SourceError::io(path))?;
    Token::new(&text)
        .map_err(|e| SourceError::Invalid { source_text: path.display().to_string(), reason: e.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<Hub, SourceError> {
        let variables: Vec<(String, OsString)> =
            variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Hub::from_environment(&|name| variables.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    fn token(variables: &[(&str, &str)]) -> Option<String> {
        hub(variables).unwrap().token().map(|t| t.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_environment_of_the_hubs_clients() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path).to_str().unwrap().to_owned();
        for (path, text) in
            [("home/token", "in-hf-home\n"), ("cache/huggingface/token", "in-cache"), ("x", " by-path ")]
        {
            std::fs::create_dir_all(Path::new(&at(path)).parent().unwrap()).unwrap();
            std::fs::write(at(path), text).unwrap();
        }
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("HOME", &at("nowhere"))]), None);
        let all = [
            ("HF_TOKEN", "hf_a"),
            ("HF_TOKEN_PATH", &at("x")),
            ("HF_HOME", &at("home")),
            ("XDG_CACHE_HOME", &at("cache")),
        ];
        for (from, expected) in ["hf_a", "by-path", "in-hf-home", "in-cache"].iter().enumerate() {
            assert_eq!(token(&all[from..]), Some(format!("Bearer {expected}")));
        }
        assert_eq!(token(&[("HF_TOKEN", " "), ("HF_HOME", &at("home"))]).unwrap(), "Bearer in-hf-home");
        for (name, value) in [
            ("HF_TOKEN", "a b"),
            ("HF_TOKEN", "é"),
            ("HF_ENDPOINT", "ftp://x"),
            ("HF_ENDPOINT", "https://u:p@x"),
        ] {
            let error = hub(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name) && !error.to_string().contains(value), "{error}");
        }
        std::fs::write(at("x"), "t".repeat(TOKEN_BYTES_MAX)).unwrap();
        assert!(hub(&all[1..]).is_ok());
        std::fs::write(at("x"), "t".repeat(TOKEN_BYTES_MAX + 1)).unwrap();
        assert_eq!(hub(&all[1..]).unwrap_err().code(), "source_invalid");
    }

    #[test]
    fn a_token_is_never_shown() {
        let hub = hub(&[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{hub:?} {:?}", hub.token()).contains("secret"));
    }

    #[test]
    fn addresses_below_the_hubs() {
        let hub = hub(&[("HF_ENDPOINT", "https://mirror.example/hf/")]).unwrap();
        let url = hub.url(["api", "refs/pr/1", "a b?#%"].into_iter());
        assert_eq!(url.as_str(), "https://mirror.example/hf/api/refs%2Fpr%2F1/a%20b%3F%23%25");
        assert_eq!(hub.said(), "https://mirror.example/hf");
    }
}
