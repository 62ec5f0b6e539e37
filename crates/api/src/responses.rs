//! `/v1/responses`: OpenAI's newer route, without its state. Every request carries its whole conversation; what would need a
//! stored answer is refused by name.

mod input;
mod object;
mod parse;
mod stream;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};

use crate::server::{
    Shared, answer_id, events, generator, now_s, receive, start, with_receipts, with_sources,
};
use crate::{Inference, Refusal, answer};
use object::Frame;
pub(crate) use parse::parse;
use stream::ResponseStream;

/// `POST /v1/responses`.
pub(crate) async fn route<I: Inference>(
    State(s): State<Shared<I>>,
    request: Request,
) -> Result<Response, Refusal> {
    let received = receive(&s, request).await?;
    let asked = parse(&received.body)?;
    let card = generator(s.inference.as_ref(), &asked.parsed.model)?;
    let choices = start(&s, &received, &card, asked.parsed.requests(card.root)).await?;
    let (receipts, sources) = (choices.receipts(), choices.sources());
    let frame =
        Frame { hex: answer_id("", &receipts), created: now_s(), inline: received.inline, echo: asked.echo };
    let stream = asked.parsed.stream;
    drop((asked.parsed, received));
    let response = if stream {
        let keep_alive = s.options.keep_alive;
        events(answer::stream(choices, ResponseStream::new(frame), keep_alive).await?)
    } else {
        let answers = answer::collect(choices).await?;
        Json(frame.whole(&answers)).into_response()
    };
    Ok(with_sources(with_receipts(response, &receipts), &sources))
}
