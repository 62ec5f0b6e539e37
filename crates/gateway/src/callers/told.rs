//! What a client was told, as the books keep it with the payment or the charge: frames as providers send them, each with its length in front.

use assay_api::Event;
use assay_api::relay::Frame;
use assay_core::canonical::Canonical as _;
use assay_core::embedding::Record;

/// An answer to be told again.
pub(crate) struct Told {
    /// What was heard before the end.
    pub(crate) events: Vec<Event>,
    /// The record.
    pub(crate) record: Record,
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
        bytes
    }

    /// Nothing, if that is not what the bytes are.
    pub(crate) fn read(mut bytes: &[u8]) -> Option<Told> {
        let mut events = Vec::new();
        loop {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            let (frame, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
            bytes = rest;
            events.push(match Frame::from_canonical_bytes(frame).ok()? {
                Frame::Text { text, logprobs } => Event::Text { text, logprobs },
                Frame::Call { index, id, name } => Event::Call { index, id, name },
                Frame::Arguments { index, json } => Event::Arguments { index, json },
                Frame::End { record, .. } => return Some(Told { events, record: Record::Answer(record) }),
                Frame::Embedded(record) => return Some(Told { events, record: Record::Embedding(record) }),
                Frame::Alive | Frame::Queued { .. } | Frame::Counted(_) | Frame::Failed(_) => return None,
            });
        }
    }
}
