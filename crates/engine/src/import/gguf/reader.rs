//! GGUF as a container: metadata and where the tensors lie, versions 2 and 3, little-endian.
//!
//! Layout as in ggml's `docs/gguf.md`: magic, version, number of tensors, number of metadata entries; the entries (name, type,
//! value); the tensors (name, dimensions, type, offset); zeros up to the alignment; the data. Nothing is believed before the
//! bytes are there: a count only sizes anything after it was divided by the least that an item takes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::super::ImportError;
use super::super::source::Format;

const MAGIC: &[u8; 4] = b"GGUF";
/// Deepest nesting of arrays.
const DEPTH_MAX: u32 = 4;
/// Most bytes of a name; the specification allows 65 535 for metadata and 64 for tensors.
const NAME_MAX: usize = 65_535;
/// Most metadata entries and most tensors; files have dozens of the first and thousands of the second at most.
const ENTRIES_MAX: usize = 1 << 16;
/// Most strings in an array that is read: a vocabulary's tokens or merges.
const STRINGS_MAX: usize = 1 << 22;
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;
/// Largest alignment.
const ALIGNMENT_MAX: u64 = 1 << 20;
/// Least bytes of a metadata entry: name length, type, one byte of value.
const ENTRY_MIN: u64 = 13;
/// Least bytes of a tensor's entry: name length, number of dimensions, one dimension, type, offset.
const TENSOR_MIN: u64 = 32;

/// Types of metadata values.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// Numbers of tensor types that can be read, with their names.
const TYPES: [(u32, &str, Format); 7] = [
    (0, "F32", Format::F32),
    (1, "F16", Format::F16),
    (2, "Q4_0", Format::Q4_0),
    (8, "Q8_0", Format::Q8_0),
    (12, "Q4_K", Format::Q4K),
    (14, "Q6_K", Format::Q6K),
    (30, "BF16", Format::Bf16),
];

/// Names of the types that cannot, for messages.
const OTHER_TYPES: [(u32, &str); 25] = [
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// A metadata value. Strings and arrays stay in the file.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::import) enum Value {
    /// A number that is whole and not negative.
    Unsigned(u64),
    /// A negative number.
    Negative(i64),
    /// A number with a fraction: of a binary32 the shortest decimal that names it, so that 1e-5 is 1e-5.
    Real(f64),
    /// A truth value.
    Bool(bool),
    /// A string's bytes.
    Text(Range<usize>),
    /// An array: its items' type, their number and their bytes.
    Array(u32, usize, Range<usize>),
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(in crate::import) struct Place {
    /// Number format.
    pub(in crate::import) format: Format,
    /// Rows, or 1 for a vector.
    pub(in crate::import) rows: usize,
    /// Columns: GGUF's first dimension.
    pub(in crate::import) cols: usize,
    /// Bytes in the file.
    pub(in crate::import) bytes: Range<usize>,
}

/// What a file says about itself.
#[derive(Debug)]
pub(in crate::import) struct Header {
    /// Metadata by name.
    pub(in crate::import) metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub(in crate::import) tensors: BTreeMap<String, Place>,
}

/// Bytes and how far they are read.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it is cut off at byte {}", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(*self.take(N)?.first_chunk().expect("as many bytes as taken"))
    }

    fn u32(&mut self) -> Read<u32> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.number().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: u64, things: &str) -> Read<usize> {
        let n = self.u64()?;
        let left = (self.bytes.len() - self.at) as u64;
        if n > left / least {
            return Err(format!(
                "it announces {n} {things}, for which its {left} remaining bytes do not suffice"
            ));
        }
        Ok(n as usize)
    }

    fn text(&mut self) -> Read<Range<usize>> {
        let n = self.count(1, "bytes of text")?;
        let from = self.at;
        self.take(n)?;
        Ok(from..from + n)
    }

    fn name(&mut self) -> Read<String> {
        let range = self.text()?;
        if range.is_empty() || range.len() > NAME_MAX {
            return Err(format!("a name has {} bytes", range.len()));
        }
        let name = std::str::from_utf8(&self.bytes[range]);
        name.map(str::to_owned).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32, depth: u32) -> Read<Value> {
        let signed = |v: i64| u64::try_from(v).map_or(Value::Negative(v), Value::Unsigned);
        Ok(match kind {
            kind::U8 => Value::Unsigned(u64::from(self.number::<1>()?[0])),
            kind::I8 => signed(i64::from(i8::from_le_bytes(self.number()?))),
            kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(self.number()?))),
            kind::I16 => signed(i64::from(i16::from_le_bytes(self.number()?))),
            kind::U32 => Value::Unsigned(u64::from(self.u32()?)),
            kind::I32 => signed(i64::from(i32::from_le_bytes(self.number()?))),
            kind::U64 => Value::Unsigned(self.u64()?),
            kind::I64 => signed(i64::from_le_bytes(self.number()?)),
            kind::F32 => Value::Real(decimal(f32::from_le_bytes(self.number()?))),
            kind::F64 => Value::Real(f64::from_le_bytes(self.number()?)),
            kind::BOOL => match self.number::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [b] => return Err(format!("a truth value is {b}")),
            },
            kind::TEXT => Value::Text(self.text()?),
            kind::ARRAY => self.array(depth)?,
            other => return Err(format!("a metadata value has the unknown type {other}")),
        })
    }

    fn array(&mut self, depth: u32) -> Read<Value> {
        if depth >= DEPTH_MAX {
            return Err(format!("arrays are nested more than {DEPTH_MAX} deep"));
        }
        let kind = self.u32()?;
        let width = match kind {
            kind::U8 | kind::I8 | kind::BOOL => 1,
            kind::U16 | kind::I16 => 2,
            kind::U32 | kind::I32 | kind::F32 => 4,
            kind::U64 | kind::I64 | kind::F64 | kind::TEXT => 8,
            kind::ARRAY => 12,
            other => return Err(format!("an array has items of the unknown type {other}")),
        };
        let n = self.count(width, "array items")?;
        let from = self.at;
        match kind {
            kind::TEXT => (0..n).try_for_each(|_| self.text().map(drop))?,
            kind::ARRAY => (0..n).try_for_each(|_| self.array(depth + 1).map(drop))?,
            _ => drop(self.take(n * width as usize)?),
        }
        Ok(Value::Array(kind, n, from..self.at))
    }
}

/// The shortest decimal that names a binary32, as the nearest binary64.
fn decimal(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::NAN)
}

impl Header {
    /// Reads a whole file's header.
    pub(in crate::import) fn read(path: &Path, bytes: &[u8]) -> Result<Header, ImportError> {
        let malformed = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
        let unsupported = |field: &str, got: String, reason: String| ImportError::Unsupported {
            path: path.to_owned(),
            field: field.to_owned(),
            got,
            reason,
        };
        let mut cursor = Cursor { bytes, at: 0 };
        let start = |c: &mut Cursor<'_>| Ok((c.number::<4>()?, c.u32()?));
        let (magic, version) = start(&mut cursor).map_err(malformed)?;
        if magic != *MAGIC {
            return Err(malformed("it does not begin with GGUF".into()));
        }
        if !matches!(version, 2 | 3) {
            let got = if version.swap_bytes() <= 3 { "big-endian".into() } else { version.to_string() };
            let reason = "versions 2 and 3, little-endian, are; convert the model again".to_owned();
            return Err(unsupported("version", got, reason));
        }
        let (metadata, infos) = entries(&mut cursor).map_err(malformed)?;
        let data = data_start(&metadata, cursor.at, infos.is_empty(), bytes.len()).map_err(malformed)?;
        let mut tensors = BTreeMap::new();
        for info in infos {
            let Some((_, _, format)) = TYPES.iter().find(|t| t.0 == info.kind) else {
                let known = OTHER_TYPES.iter().find(|t| t.0 == info.kind);
                let got = known.map_or(format!("number {}", info.kind), |t| t.1.to_owned());
                let names: Vec<&str> = TYPES.iter().map(|t| t.1).collect();
                let reason = format!("{} are; convert the model to one of them", names.join(", "));
                return Err(unsupported(&format!("type of tensor `{}`", info.name), got, reason));
            };
            let place = info.place(*format, &data, bytes.len()).map_err(malformed)?;
            if tensors.insert(info.name.clone(), place).is_some() {
                return Err(malformed(format!("tensor `{}` is there twice", info.name)));
            }
        }
        disjoint(&tensors).map_err(malformed)?;
        Ok(Header { metadata, tensors })
    }
}

/// A tensor's entry as it is written.
struct Info {
    name: String,
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn entries(cursor: &mut Cursor<'_>) -> Read<(BTreeMap<String, Value>, Vec<Info>)> {
    let tensors = cursor.count(TENSOR_MIN, "tensors")?;
    let entries = cursor.count(ENTRY_MIN, "metadata entries")?;
    if tensors.max(entries) > ENTRIES_MAX {
        return Err(format!(
            "it has {tensors} tensors and {entries} metadata entries; {ENTRIES_MAX} are allowed"
        ));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let name = cursor.name()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0).map_err(|e| format!("{name}: {e}"))?;
        if metadata.contains_key(&name) {
            return Err(format!("{name} is there twice"));
        }
        metadata.insert(name, value);
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = cursor.name()?;
        let n = cursor.u32()?;
        if !(1..=DIMENSIONS_MAX).contains(&n) {
            return Err(format!("tensor `{name}` has {n} dimensions"));
        }
        let dimensions = (0..n).map(|_| cursor.u64()).collect::<Read<_>>()?;
        infos.push(Info { name, dimensions, kind: cursor.u32()?, offset: cursor.u64()? });
    }
    Ok((metadata, infos))
}

/// Where the tensors' data begins, and the alignment. A file without tensors may end with its header.
fn data_start(metadata: &BTreeMap<String, Value>, at: usize, empty: bool, len: usize) -> Read<(usize, u64)> {
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(a)) if a.is_power_of_two() && *a <= ALIGNMENT_MAX => *a,
        Some(other) => {
            return Err(format!("general.alignment is {other:?}, no power of two up to {ALIGNMENT_MAX}"));
        }
    };
    let start = at.next_multiple_of(alignment as usize);
    if start > len && !empty {
        return Err(format!("it is cut off at byte {len}"));
    }
    Ok((start, alignment))
}

impl Info {
    fn place(&self, format: Format, (start, alignment): &(usize, u64), len: usize) -> Read<Place> {
        let fail = |what: String| format!("tensor `{}` {what}", self.name);
        let too_large = || fail("is larger than any file".into());
        let size = |n: u64| usize::try_from(n).ok().filter(|n| *n > 0);
        let cols = self.dimensions.first().copied().and_then(size);
        let rest = self.dimensions.iter().skip(1).try_fold(1usize, |n, d| n.checked_mul(size(*d)?));
        let (Some(cols), Some(rows)) = (cols, rest) else { return Err(too_large()) };
        let (numbers, bytes) = format.block();
        if cols % numbers != 0 {
            return Err(fail(format!(
                "has rows of {cols} numbers, no multiple of the {numbers} of its blocks"
            )));
        }
        let size = (cols / numbers).checked_mul(bytes).and_then(|row| row.checked_mul(rows));
        let size = size.ok_or_else(too_large)?;
        if !self.offset.is_multiple_of(*alignment) {
            return Err(fail(format!("begins at {}, no multiple of {alignment}", self.offset)));
        }
        let from = usize::try_from(self.offset).ok().and_then(|o| o.checked_add(*start));
        let end = from.and_then(|from| from.checked_add(size)).filter(|end| *end <= len);
        let (Some(from), Some(end)) = (from, end) else {
            return Err(fail(format!("ends after the file, which has {len} bytes")));
        };
        Ok(Place { format, rows, cols, bytes: from..end })
    }
}

fn disjoint(tensors: &BTreeMap<String, Place>) -> Read<()> {
    let mut all: Vec<(&Range<usize>, &String)> = tensors.iter().map(|(n, p)| (&p.bytes, n)).collect();
    all.sort_by_key(|(bytes, _)| bytes.start);
    match all.windows(2).find(|w| w[0].0.end > w[1].0.start) {
        Some(w) => Err(format!("tensors `{}` and `{}` lie in the same bytes", w[0].1, w[1].1)),
        None => Ok(()),
    }
}

/// Metadata of one file with the bytes that its strings and arrays lie in.
#[derive(Clone, Copy)]
pub(in crate::import) struct Metadata<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    values: &'a BTreeMap<String, Value>,
}

impl<'a> Metadata<'a> {
    /// Of a file whose header was read from `bytes`.
    pub(in crate::import) fn new(path: &'a Path, bytes: &'a [u8], header: &'a Header) -> Metadata<'a> {
        Metadata { path, bytes, values: &header.metadata }
    }

    /// The file, for messages.
    pub(in crate::import) fn path(&self) -> &'a Path {
        self.path
    }

    /// A value as it is.
    pub(in crate::import) fn value(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key)
    }

    fn wrong(&self, key: &str, wanted: &str) -> ImportError {
        ImportError::Malformed { path: self.path.to_owned(), reason: format!("{key} is not {wanted}") }
    }

    /// A whole number up to 2^32 - 1.
    pub(in crate::import) fn unsigned(&self, key: &str) -> Result<Option<u32>, ImportError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(v)) => {
                u32::try_from(*v).map(Some).map_err(|_| self.wrong(key, "below 2^32"))
            }
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A number.
    pub(in crate::import) fn real(&self, key: &str) -> Result<Option<f64>, ImportError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Real(v)) => Ok(Some(*v)),
            Some(Value::Unsigned(v)) => Ok(Some(*v as f64)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// A truth value.
    pub(in crate::import) fn truth(&self, key: &str) -> Result<Option<bool>, ImportError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(_) => Err(self.wrong(key, "a truth value")),
        }
    }

    /// A string.
    pub(in crate::import) fn text(&self, key: &str) -> Result<Option<&'a str>, ImportError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => std::str::from_utf8(&self.bytes[range.clone()])
                .map(Some)
                .map_err(|_| self.wrong(key, "UTF-8")),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// An array of strings.
    pub(in crate::import) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ImportError> {
        let (n, range) = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Array(kind::TEXT, n, range)) if *n <= STRINGS_MAX => (*n, range.clone()),
            Some(_) => return Err(self.wrong(key, &format!("an array of at most {STRINGS_MAX} strings"))),
        };
        let mut cursor = Cursor { bytes: &self.bytes[..range.end], at: range.start };
        let next = |_| {
            let range = cursor.text().ok()?;
            std::str::from_utf8(&self.bytes[range]).ok()
        };
        let all: Option<Vec<&str>> = (0..n).map(next).collect();
        all.map(Some).ok_or_else(|| self.wrong(key, "an array of strings in UTF-8"))
    }

    /// An array of numbers.
    pub(in crate::import) fn reals(&self, key: &str) -> Result<Option<Vec<f64>>, ImportError> {
        let (kind, n, range) = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Array(kind, n, range)) if !matches!(*kind, kind::TEXT | kind::ARRAY) => {
                (*kind, *n, range.clone())
            }
            Some(_) => return Err(self.wrong(key, "an array of numbers")),
        };
        let mut cursor = Cursor { bytes: &self.bytes[..range.end], at: range.start };
        let next = |_| match cursor.value(kind, 0).ok()? {
            Value::Unsigned(v) => Some(v as f64),
            Value::Negative(v) => Some(v as f64),
            Value::Real(v) => Some(v),
            _ => None,
        };
        let all: Option<Vec<f64>> = (0..n).map(next).collect();
        all.map(Some).ok_or_else(|| self.wrong(key, "an array of numbers"))
    }
}
