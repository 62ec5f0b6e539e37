//! Going on with an answer that a provider broke off: model, request and nonce fix it, so another provider gives the same one, and what the client
//! has heard of it is left out.
//!
//! Invariant: what a client hears, all in all, is what one provider said from beginning to end. An answer that begins otherwise than what was
//! told is no continuation, and is refused.

use assay_api::{Event, Logprob};

/// One thing that was told; text without a break is one.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Text(String),
    Call { index: u32, id: String, name: String },
    Arguments { index: u32, json: String },
}

/// What of an answer was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    items: Vec<Item>,
    /// Tokens whose probabilities were told.
    logprobs: usize,
}

/// The answer differs from what was told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another provider gives another answer")]
pub(super) struct Differs;

/// A place in what was told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    item: usize,
    /// Bytes of it.
    bytes: usize,
    logprobs: usize,
}

impl Told {
    /// Behind everything.
    pub(super) fn end(&self) -> Place {
        Place { item: self.items.len(), bytes: 0, logprobs: self.logprobs }
    }

    /// All text.
    pub(super) fn text(&self) -> String {
        let texts = self.items.iter().filter_map(|item| match item {
            Item::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// Whether it has calls of tools.
    pub(super) fn called(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Call { .. }))
    }

    /// Notes what the client hears.
    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::Text { text, logprobs } => {
                self.logprobs += logprobs.len();
                match self.items.last_mut() {
                    Some(Item::Text(told)) => told.push_str(text),
                    _ => self.items.push(Item::Text(text.clone())),
                }
            }
            Event::Call { index, id, name } => {
                self.items.push(Item::Call { index: *index, id: id.clone(), name: name.clone() });
            }
            Event::Arguments { index, json } => {
                self.items.push(Item::Arguments { index: *index, json: json.clone() });
            }
            Event::End { .. } | Event::Failed(_) => {}
        }
    }

    /// What is new of an event of the second telling, which has come to `place`.
    pub(super) fn new_of(&self, place: &mut Place, event: Event) -> Result<Option<Event>, Differs> {
        match event {
            Event::Text { text, logprobs } => {
                let logprobs = self.new_logprobs(place, logprobs);
                let rest = self.new_text(place, &text)?;
                let nothing = rest.is_empty() && logprobs.is_empty();
                Ok((!nothing).then(|| Event::Text { text: rest.to_owned(), logprobs }))
            }
            // A call is named after the receipt: what the client knows it by stays.
            Event::Call { index, id, name } => match self.next(place) {
                None => Ok(Some(Event::Call { index, id, name })),
                Some(Item::Call { index: i, name: n, .. }) if (*i, n) == (index, &name) => Ok(None),
                Some(_) => Err(Differs),
            },
            Event::Arguments { index, json } => match self.next(place) {
                None => Ok(Some(Event::Arguments { index, json })),
                Some(item) if *item == Item::Arguments { index, json } => Ok(None),
                Some(_) => Err(Differs),
            },
            // An answer that ends before all that was told is another one.
            Event::End { .. } if place.item < self.items.len() => Err(Differs),
            last => Ok(Some(last)),
        }
    }

    fn new_logprobs(&self, place: &mut Place, mut logprobs: Vec<Logprob>) -> Vec<Logprob> {
        let known = self.logprobs.saturating_sub(place.logprobs).min(logprobs.len());
        place.logprobs += logprobs.len();
        logprobs.split_off(known)
    }

    fn new_text<'a>(&self, place: &mut Place, mut text: &'a str) -> Result<&'a str, Differs> {
        while !text.is_empty() {
            let told = match self.items.get(place.item) {
                None => return Ok(text),
                Some(Item::Text(told)) => told.get(place.bytes..).ok_or(Differs)?,
                Some(_) => return Err(Differs),
            };
            let common = told.len().min(text.len());
            let (Some((same, left)), Some((of_told, _))) =
                (text.split_at_checked(common), told.split_at_checked(common))
            else {
                return Err(Differs);
            };
            if same != of_told {
                return Err(Differs);
            }
            text = left;
            place.bytes += common;
            if common == told.len() {
                (place.item, place.bytes) = (place.item + 1, 0);
            }
        }
        Ok(text)
    }

    /// What was told at a place where something else than text comes, and goes past it.
    fn next(&self, place: &mut Place) -> Option<&Item> {
        let item = self.items.get(place.item);
        if item.is_some() && place.bytes == 0 {
            place.item += 1;
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Event {
        Event::Text { text: text.into(), logprobs: vec![] }
    }

    fn call(index: u32, id: &str, name: &str) -> Event {
        Event::Call { index, id: id.into(), name: name.into() }
    }

    fn told(events: &[Event]) -> Told {
        let mut told = Told::default();
        events.iter().for_each(|event| told.tell(event));
        told
    }

    /// What is new of a second telling.
    fn again(told: &Told, events: &[Event]) -> Result<Vec<Event>, Differs> {
        let mut place = Place::default();
        let news = events.iter().map(|event| told.new_of(&mut place, event.clone()));
        Ok(news.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    #[test]
    fn what_was_told_is_left_out() {
        let known = told(&[text("Once "), text("upon")]);
        assert_eq!(again(&known, &[text("Once upon"), text(" a")]), Ok(vec![text(" a")]));
        assert_eq!(
            again(&known, &[text("On"), text("ce upon a "), text("time")]),
            Ok(vec![text(" a "), text("time")])
        );
        assert_eq!(again(&known, &[text("Once up")]), Ok(vec![]));
        assert_eq!(again(&known, &[text("Twice")]), Err(Differs));
        assert_eq!(again(&known, &[text("Once upön")]), Err(Differs));
        assert_eq!(again(&known, &[text("Once "), call(0, "a", "f")]), Err(Differs));
        assert_eq!(again(&Told::default(), &[text("Once")]), Ok(vec![text("Once")]));
    }

    #[test]
    fn calls_are_known_by_what_they_are() {
        let arguments = |json: &str| Event::Arguments { index: 0, json: json.into() };
        let known = told(&[text("I look"), call(0, "call-1", "weather"), arguments("{}")]);
        let second = [text("I look"), call(0, "call-2", "weather"), arguments("{}"), text("!")];
        assert_eq!(again(&known, &second), Ok(vec![text("!")]));
        let other = [text("I look"), call(0, "call-2", "time")];
        assert_eq!(again(&known, &other), Err(Differs));
        let other = [text("I look"), call(0, "call-2", "weather"), arguments("{1}")];
        assert_eq!(again(&known, &other), Err(Differs));
        assert_eq!(again(&known, &[text("I look!")]), Err(Differs));
        assert!(known.called() && known.text() == "I look");
    }

    #[test]
    fn an_answer_that_ends_early_is_another_one() {
        let known = told(&[text("Once upon")]);
        let mut place = Place::default();
        assert_eq!(known.new_of(&mut place, text("Once")), Ok(None));
        assert!(place.item < known.items.len());
    }

    proptest! {
        /// However two providers cut the same text, and wherever the first broke off, the client hears it once.
        #[test]
        fn the_client_hears_the_answer_once(
            whole in "[a-zäöü 🦊]{0,60}",
            first in prop::collection::vec(1usize..9, 0..20),
            second in prop::collection::vec(1usize..9, 60),
        ) {
            let characters: Vec<char> = whole.chars().collect();
            let cut = |sizes: &[usize]| {
                let mut at = 0;
                let mut pieces = Vec::new();
                for size in sizes {
                    let end = (at + size).min(characters.len());
                    if at < end {
                        pieces.push(text(&characters[at..end].iter().collect::<String>()));
                    }
                    at = end;
                }
                pieces
            };
            let mut known = told(&cut(&first));
            for event in again(&known.clone(), &cut(&second)).unwrap() {
                known.tell(&event);
            }
            prop_assert_eq!(known.text(), whole);
        }
    }
}
