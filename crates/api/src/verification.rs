//! Verification classes: what a client asks to be done about an answer beyond its own `verify`, by the header `x-assay-verification`, and what is
//! said of it in the answer (`docs/api.md`).
//!
//! Invariant: the class of an answer is never a higher one than what holds for it: an answer whose receipt enters nobody's lottery is of
//! [`Class::None`], whatever was asked for.

use std::fmt;
use std::str::FromStr;

use assay_core::consent::Consent;
use assay_core::receipt::{Domain, SignedReceipt};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::Refusal;
use crate::inference::Source;

/// In requests the class that is asked for, in answers the one that holds.
pub(crate) const CLASS_HEADER: HeaderName = HeaderName::from_static("x-assay-verification");
/// The second execution of an answer of [`Class::Full`]: receipt, provider and price.
const SECOND_HEADER: HeaderName = HeaderName::from_static("x-assay-second");

/// Who checks an answer besides its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Nobody: the client withholds its consent to audits, or the provider settles on no ledger.
    None,
    /// Auditors, if the beacon draws its receipt.
    #[default]
    Sampled,
    /// A second provider, which executes the same request before the answer ends; and auditors as above.
    Full,
}

/// Text that is no class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a verification class is `none`, `sampled` or `full`; got {got:?}")]
pub struct ClassError {
    got: String,
}

impl FromStr for Class {
    type Err = ClassError;

    fn from_str(text: &str) -> Result<Class, ClassError> {
        match text {
            "none" => Ok(Class::None),
            "sampled" => Ok(Class::Sampled),
            "full" => Ok(Class::Full),
            other => Err(ClassError { got: other.chars().take(40).collect() }),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Class::None => "none",
            Class::Sampled => "sampled",
            Class::Full => "full",
        })
    }
}

impl Class {
    /// What a client of this class agrees to: whoever wants others to check an answer lets them see what was asked.
    pub fn consent(self) -> Consent {
        match self {
            Class::None => Consent::Withheld,
            Class::Sampled | Class::Full => Consent::Given,
        }
    }

    /// What holds of one provider's answer to a request with this consent.
    pub fn held(consent: Consent, settles: bool) -> Class {
        if settles && consent == Consent::Given { Class::Sampled } else { Class::None }
    }

    /// What holds of an answer with this receipt: one without a ledger enters no lottery.
    pub fn of(consent: Consent, receipt: &SignedReceipt) -> Class {
        Class::held(consent, receipt.domain.contract != Domain::DEVELOPMENT.contract)
    }

    /// The class that a request asks for, if it has the header.
    pub(crate) fn asked(headers: &HeaderMap) -> Result<Option<Class>, Refusal> {
        let Some(value) = headers.get(CLASS_HEADER) else { return Ok(None) };
        let text = String::from_utf8_lossy(value.as_bytes());
        let class = text.trim().parse().map_err(|e: ClassError| Refusal::Invalid {
            param: CLASS_HEADER.as_str().into(),
            message: e.to_string(),
        });
        class.map(Some)
    }
}

/// Names the class of answers, in order of their choices, and the second executions of those that have one.
pub(crate) fn with_classes(mut response: Response, sources: &[Source]) -> Response {
    let classes: Vec<String> = sources.iter().map(|source| source.class.to_string()).collect();
    let second = |source: &Source| {
        let second = source.second?;
        let price = second.price.map_or_else(|| "0.00/0.00".to_owned(), |price| price.to_string());
        Some(format!("{} {} {price}", second.receipt, second.provider))
    };
    let seconds: Vec<String> = sources.iter().filter_map(second).collect();
    for (name, values) in [(CLASS_HEADER, classes), (SECOND_HEADER, seconds)] {
        if !values.is_empty()
            && let Ok(value) = HeaderValue::from_str(&values.join(", "))
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Names the class of vectors.
pub(crate) fn with_class(mut response: Response, class: Class) -> Response {
    if let Ok(value) = HeaderValue::from_str(&class.to_string()) {
        response.headers_mut().insert(CLASS_HEADER, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_and_shown() {
        for (text, class) in [("none", Class::None), ("sampled", Class::Sampled), ("full", Class::Full)] {
            assert_eq!((text.parse(), class.to_string().as_str()), (Ok(class), text));
            let headers = HeaderMap::from_iter([(CLASS_HEADER, HeaderValue::from_static(text))]);
            assert_eq!(Class::asked(&headers), Ok(Some(class)));
        }
        assert_eq!(Class::asked(&HeaderMap::new()), Ok(None));
        for text in ["", "None", "all", "sampled, full", "ful\u{7f}"] {
            let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { continue };
            let headers = HeaderMap::from_iter([(CLASS_HEADER, value)]);
            let refusal = Class::asked(&headers).unwrap_err();
            assert_eq!((refusal.code(), refusal.status().as_u16()), ("invalid_value", 400), "{text}");
        }
    }

    #[test]
    fn no_answer_is_of_a_higher_class_than_what_holds() {
        assert_eq!(Class::held(Consent::Given, true), Class::Sampled);
        assert_eq!(Class::held(Consent::Given, false), Class::None);
        assert_eq!(Class::held(Consent::Withheld, true), Class::None);
        assert_eq!(Class::None.consent(), Consent::Withheld);
        assert_eq!([Class::Sampled, Class::Full].map(Class::consent), [Consent::Given; 2]);
    }
}
