//! Which bytes a request wants, by RFC 9110: one range or all. Several ranges, other units and what cannot be read are ignored,
//! as the standard says, and get all.

/// What is wanted of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything.
    All,
    /// These bytes, which exist.
    Part(std::ops::Range<u64>),
    /// Bytes that do not exist.
    Beyond,
}

pub(crate) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else { return Wanted::All };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::All };
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // A number beyond 64 bits is beyond every blob.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first, last) {
        ("", last) => match number(last) {
            None => Wanted::All,
            Some(0) => Wanted::Beyond,
            Some(_) if size == 0 => Wanted::Beyond,
            Some(count) => Wanted::Part(size.saturating_sub(count)..size),
        },
        (first, last) => {
            let Some(first) = number(first) else { return Wanted::All };
            let last = if last.is_empty() {
                u64::MAX
            } else if let Some(n) = number(last) {
                n
            } else {
                return Wanted::All;
            };
            if last < first {
                return Wanted::All;
            }
            if first >= size {
                return Wanted::Beyond;
            }
            Wanted::Part(first..last.saturating_add(1).min(size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let part = |a, b| Wanted::Part(a..b);
        for (header, size, expected) in [
            (None, 10, Wanted::All),
            (Some("bytes=0-0"), 10, part(0, 1)),
            (Some("bytes=2-5"), 10, part(2, 6)),
            (Some("bytes=2-"), 10, part(2, 10)),
            (Some("bytes=-3"), 10, part(7, 10)),
            (Some("bytes=-30"), 10, part(0, 10)),
            (Some("bytes=0-99"), 10, part(0, 10)),
            (Some("bytes=9-9"), 10, part(9, 10)),
            (Some("bytes=10-"), 10, Wanted::Beyond),
            (Some("bytes=-0"), 10, Wanted::Beyond),
            (Some("bytes=0-0"), 0, Wanted::Beyond),
            (Some("bytes=-1"), 0, Wanted::Beyond),
            (Some("bytes=0-18446744073709551615"), 10, part(0, 10)),
            (Some("bytes=99999999999999999999-"), 10, Wanted::Beyond),
            (Some("bytes=5-2"), 10, Wanted::All),
            (Some("bytes=0-1,4-5"), 10, Wanted::All),
            (Some("bytes=a-b"), 10, Wanted::All),
            (Some("bytes=+1-2"), 10, Wanted::All),
            (Some("tiles=0-1"), 10, Wanted::All),
            (Some("bytes="), 10, Wanted::All),
            (Some("bytes=-"), 10, Wanted::All),
        ] {
            assert_eq!(wanted(header, size), expected, "{header:?} of {size}");
        }
    }
}
