//! `POST /v1/files`.

use axum::extract::State;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::Value;
use tokio::time::timeout;

use super::desk::now_ns;
use super::{Desk, FORM_BYTES, FileObject, MaybeDesk, here};
use crate::parameters::{out_of_range, unsupported};
use crate::{Owner, Refusal};

/// Most bytes of a file's name.
const NAME_BYTES_MAX: usize = 255;
/// What files may be for. Batches' outputs have another purpose, which only the server gives.
const PURPOSES: [&str; 2] = ["batch", "user_data"];

/// Takes a file.
pub(super) async fn upload(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Json<Value>, Refusal> {
    let desk = here(desk)?;
    let mut form = form.map_err(|e| bad_form(&e.to_string()))?;
    let Ok(_permit) = desk.uploads.try_acquire() else { return Err(Refusal::Busy { retry_after_s: 1 }) };
    if desk.files(&owner).len() >= desk.options.files_max {
        let message = format!("at most {} files are kept; delete some", desk.options.files_max);
        return Err(Refusal::Invalid { param: "file".into(), message });
    }
    let (mut purpose, mut file) = (None, None);
    while let Some(field) = within(&desk, form.next_field()).await? {
        match field.name().unwrap_or_default() {
            "purpose" => {
                let bytes = read(&desk, field, FORM_BYTES).await?;
                purpose = Some(String::from_utf8(bytes).map_err(|_| bad_form("`purpose` is not UTF-8"))?);
            }
            "file" => {
                let name = field.file_name().unwrap_or("upload").to_owned();
                if name.len() > NAME_BYTES_MAX {
                    return Err(out_of_range("file", &format!("named in at most {NAME_BYTES_MAX} bytes")));
                }
                let most = desk.options.file_bytes_max;
                file = Some((name, read(&desk, field, most).await?));
            }
            name if name.starts_with("expires_after") => {
                return Err(unsupported("expires_after", "files stay until they are deleted"));
            }
            _ => drop(read(&desk, field, FORM_BYTES).await?),
        }
    }
    let purpose = purpose.ok_or_else(|| Refusal::Missing { param: "purpose".into() })?;
    if !PURPOSES.contains(&purpose.as_str()) {
        return Err(unsupported("purpose", "purposes are batch and user_data"));
    }
    let (filename, bytes) = file.ok_or_else(|| Refusal::Missing { param: "file".into() })?;
    if bytes.is_empty() {
        return Err(out_of_range("file", "at least one byte"));
    }
    let id = desk.fresh_id("file-");
    let file = FileObject { id, owner, bytes: 0, created_ns: now_ns(), filename, purpose };
    let file = desk.blocking(move |d| d.put_file(file, &mut std::iter::once(Ok(bytes)))).await?;
    Ok(Json(file.view()))
}

fn bad_form(reason: &str) -> Refusal {
    Refusal::Invalid { param: "file".into(), message: format!("the body is no form with a file: {reason}") }
}

async fn within<T>(desk: &Desk, step: impl Future<Output = Result<T, MultipartError>>) -> Result<T, Refusal> {
    match timeout(desk.patience, step).await {
        Err(_) => Err(Refusal::BodyTimeout { after_s: desk.patience.as_secs() }),
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Refusal::BodyTooLarge { limit: desk.options.file_bytes_max })
        }
        Ok(Err(e)) => Err(bad_form(&e.body_text())),
    }
}

async fn read(desk: &Desk, mut field: Field<'_>, most: usize) -> Result<Vec<u8>, Refusal> {
    let mut all = Vec::new();
    while let Some(piece) = within(desk, field.chunk()).await? {
        if all.len().saturating_add(piece.len()) > most {
            return Err(Refusal::BodyTooLarge { limit: most });
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}
