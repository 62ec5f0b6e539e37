//! What a client was told, as the books keep it with the payment or the charge: frames as providers send them, each with its length in front; then, of an answer
//! that two providers executed, the second's receipt, provider, and price if it has one (8 bytes each for a token read and written, big-endian).

use assay_api::relay::Frame;
use assay_api::{Event, Second};
use assay_core::canonical::Canonical as _;
use assay_core::embedding::Record;
use assay_core::id::{NodeAddress, ReceiptId};
use assay_core::price::Price;

/// An answer to be told again.
pub(crate) struct Told {
    /// What was heard before the end.
    pub(crate) events: Vec<Event>,
    /// The record.
    pub(crate) record: Record,
    /// The other execution, of an answer that has two.
    pub(crate) second: Option<Second>,
}

impl Told {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let last = match self.record {
            Record::Answer(record) => Frame::End { stop: record.transcript.stop, record },
            Record::Embedding(record) => Frame::Embedded(record),
        };
        let before = self.events.into_iter().filter_map(|event| match event {
            Event::Text { text, logprobs } => Some(Frame::Text { text, logprobs }),
            Event::Call { index, id, name } => Some(Frame::Call { index, id, name }),
            Event::Arguments { index, json } => Some(Frame::Arguments { index, json }),
            Event::End { .. } | Event::Failed(_) => None,
        });
        let mut bytes = Vec::new();
        for frame in before.chain([last]) {
            let frame = frame.to_canonical_bytes();
            bytes.extend(u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend(frame);
        }
        if let Some(Second { receipt, provider, price }) = self.second {
            bytes.extend(receipt.as_bytes());
            bytes.extend(provider.as_bytes());
            let price = price.map(|price| [price.input(), price.output()].map(u64::to_be_bytes));
            bytes.extend(price.iter().flatten().flatten());
        }
        bytes
    }

    /// Nothing, if that is not what the bytes are.
    pub(crate) fn read(mut bytes: &[u8]) -> Option<Told> {
        let mut events = Vec::new();
        let record = loop {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            let (frame, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
            bytes = rest;
            events.push(match Frame::from_canonical_bytes(frame).ok()? {
                Frame::Text { text, logprobs } => Event::Text { text, logprobs },
                Frame::Call { index, id, name } => Event::Call { index, id, name },
                Frame::Arguments { index, json } => Event::Arguments { index, json },
                Frame::End { record, .. } => break Record::Answer(record),
                Frame::Embedded(record) => break Record::Embedding(record),
                Frame::Alive
                | Frame::Queued { .. }
                | Frame::Counted(_)
                | Frame::Failed(_)
                | Frame::Cached(_) => return None,
            });
        };
        let second = match bytes {
            [] => None,
            kept => Some(second(kept)?),
        };
        Some(Told { events, record, second })
    }
}

/// The other execution, as it stands behind the frames.
fn second(kept: &[u8]) -> Option<Second> {
    let (receipt, rest) = kept.split_first_chunk()?;
    let (provider, rest) = rest.split_first_chunk()?;
    let price = match rest {
        [] => None,
        price => {
            let (input, output) = price.split_first_chunk()?;
            let price = Price::new(u64::from_be_bytes(*input), u64::from_be_bytes(output.try_into().ok()?));
            Some(price.ok()?)
        }
    };
    Some(Second {
        receipt: ReceiptId::from_bytes(*receipt),
        provider: NodeAddress::from_bytes(*provider),
        price,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_execution_is_read_as_it_was_kept() {
        let (receipt, provider) = (ReceiptId::from_bytes([1; 32]), NodeAddress::from_bytes([2; 20]));
        let kept = [[1; 32].as_slice(), &[2; 20]].concat();
        assert_eq!(second(&kept), Some(Second { receipt, provider, price: None }));
        let price = [7u64.to_be_bytes(), 9u64.to_be_bytes()].concat();
        let whole = [kept.as_slice(), &price].concat();
        assert_eq!(second(&whole), Some(Second { receipt, provider, price: Price::new(7, 9).ok() }));
        for length in (1..52).chain(53..68) {
            assert_eq!(second(&whole[..length]), None, "{length}");
        }
        assert_eq!(second(&[whole.as_slice(), &[0]].concat()), None);
    }
}
