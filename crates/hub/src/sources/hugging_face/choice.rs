//! Which files of a repository an import needs: a checkpoint in safetensors with what lies beside it, or one file that is a model.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::sources::error::{SourceError, shown};
use crate::sources::folder::check_name;

/// Says in which files the weights are.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights, if they are in one file.
const WEIGHTS: &str = "model.safetensors";
/// What is read besides the weights, where it is there.
const BESIDE: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
/// Most files of weights.
const SHARDS_MAX: usize = 1024;
/// Most files that a message lists.
const LISTED_MAX: usize = 40;

/// What to fetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// One file.
    Single(String),
    /// These files, as a folder.
    Folder(Vec<String>),
    /// These files and what the index among them names, as a folder.
    Sharded(Vec<String>),
}

/// Whether a file of this name is a model by itself.
pub(super) fn is_single(name: &str) -> bool {
    name.ends_with(".gguf") || name.ends_with(".assay")
}

/// Chooses among the files of a repository. `asked` is the one that was named, if one was.
pub(super) fn choose(
    repository: &str,
    asked: Option<&str>,
    revision: &str,
    names: &[&str],
) -> Result<Choice, SourceError> {
    let singles = || names.iter().copied().filter(|n| is_single(n));
    if let Some(file) = asked {
        if names.contains(&file) {
            return Ok(Choice::Single(file.to_owned()));
        }
        let choices = singles().take(LISTED_MAX).map(shown).collect();
        let (repository, file, revision) = (repository.to_owned(), file.to_owned(), revision.to_owned());
        return Err(SourceError::FileNotFound { repository, file, revision, choices });
    }
    let mut weights: Vec<String> = names
        .iter()
        .filter(|n| n.ends_with(".safetensors") && !n.contains('/'))
        .map(|n| (*n).to_owned())
        .collect();
    if !weights.is_empty() {
        return folder(repository, names, &mut weights);
    }
    let nothing =
        |reason: String| Err(SourceError::NothingToImport { repository: repository.to_owned(), reason });
    match singles().collect::<Vec<_>>().as_slice() {
        [one] => Ok(Choice::Single((*one).to_owned())),
        [] if names.iter().any(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth")) => nothing(
            "its weights are Python pickles, which can hold programs and are not read; look for the same model in safetensors or GGUF"
                .into(),
        ),
        [] => nothing("it has neither .safetensors beside a config.json nor a .gguf".into()),
        many => {
            let mut choices: Vec<String> =
                many.iter().take(LISTED_MAX).map(|file| format!("hf:{repository}/{}", shown(file))).collect();
            if many.len() > LISTED_MAX {
                choices.push(format!("… ({} in all)", many.len()));
            }
            Err(SourceError::Ambiguous { repository: repository.to_owned(), choices })
        }
    }
}

/// A checkpoint, by the rules by which an import reads its folder: an index, else one file, else every one there is.
fn folder(repository: &str, names: &[&str], weights: &mut Vec<String>) -> Result<Choice, SourceError> {
    if !names.contains(&"config.json") {
        let reason = "it has weights, but no config.json that says what they are".to_owned();
        return Err(SourceError::NothingToImport { repository: repository.to_owned(), reason });
    }
    let beside = || BESIDE.into_iter().filter(|n| names.contains(n)).map(str::to_owned);
    if names.contains(&INDEX) {
        return Ok(Choice::Sharded(beside().chain([INDEX.to_owned()]).collect()));
    }
    if names.contains(&WEIGHTS) {
        *weights = vec![WEIGHTS.to_owned()];
    }
    too_many(repository, weights.len())?;
    Ok(Choice::Folder(beside().chain(weights.drain(..)).collect()))
}

/// The files that an index names. They must be among those of the repository.
pub(super) fn shards(repository: &str, index: &[u8], names: &[&str]) -> Result<Vec<String>, SourceError> {
    let nothing = |reason: String| SourceError::NothingToImport { repository: repository.to_owned(), reason };
    let json: Value = serde_json::from_slice(index).map_err(|e| nothing(format!("{INDEX}: {e}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| nothing(format!("{INDEX} has no weight_map")))?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    too_many(repository, files.len())?;
    for file in &files {
        check_name(INDEX, file)?;
        if file.contains('/') || !file.ends_with(".safetensors") || !names.contains(file) {
            return Err(nothing(format!(
                "{INDEX} names `{}`, which is no .safetensors file of it",
                shown(file)
            )));
        }
    }
    Ok(files.into_iter().map(str::to_owned).collect())
}

fn too_many(repository: &str, files: usize) -> Result<(), SourceError> {
    if files > SHARDS_MAX {
        let (file, limit) = (format!("the checkpoint of `{repository}`"), SHARDS_MAX as u64);
        return Err(SourceError::TooLarge { file, limit, unit: "files" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(asked: Option<&str>, names: &[&str]) -> Result<Choice, &'static str> {
        choose("o/n", asked, "main", names).map_err(|e| e.code())
    }

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn what_an_import_needs() {
        let noise = [
            "README.md",
            ".gitattributes",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "x/model.safetensors",
            "flax.msgpack",
        ];
        let with = |names: &[&'static str]| [names, &noise[..]].concat();
        let one =
            with(&["tokenizer.json", "model.safetensors", "config.json", "adapter.safetensors", "a.gguf"]);
        assert_eq!(
            chosen(None, &one),
            Ok(Choice::Folder(list(&["config.json", "tokenizer.json", "model.safetensors"])))
        );
        let sharded = with(&[
            "config.json",
            INDEX,
            "model-1.safetensors",
            "model-2.safetensors",
            "1_Pooling/config.json",
        ]);
        assert_eq!(
            chosen(None, &sharded),
            Ok(Choice::Sharded(list(&["config.json", "1_Pooling/config.json", INDEX])))
        );
        let loose = with(&["config.json", "a.safetensors", "b.safetensors"]);
        assert_eq!(
            chosen(None, &loose),
            Ok(Choice::Folder(list(&["config.json", "a.safetensors", "b.safetensors"])))
        );
        assert_eq!(chosen(None, &with(&["sub/a.gguf"])), Ok(Choice::Single("sub/a.gguf".into())));
        assert_eq!(chosen(Some("b.gguf"), &["a.gguf", "b.gguf"]), Ok(Choice::Single("b.gguf".into())));
        assert_eq!(chosen(Some("c.gguf"), &["a.gguf", "b.gguf"]), Err("hub_file_not_found"));
        assert_eq!(chosen(None, &with(&["a.gguf", "b.gguf"])), Err("hub_ambiguous"));
        assert_eq!(chosen(None, &with(&["config.json"])), Err("hub_nothing_to_import"));
        assert_eq!(chosen(None, &["model.safetensors"]), Err("hub_nothing_to_import"));
        assert_eq!(chosen(None, &[]), Err("hub_nothing_to_import"));
        let choices = choose("o/n", None, "main", &["a.gguf", "b.gguf"]).unwrap_err().to_string();
        assert!(choices.contains("hf:o/n/a.gguf, hf:o/n/b.gguf"), "{choices}");
    }

    #[test]
    fn shards_are_files_of_the_repository() {
        let named = |index: &str| {
            shards("o/n", index.as_bytes(), &["a.safetensors", "b.safetensors", "c.json"])
                .map_err(|e| e.code())
        };
        let index = r#"{"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}}"#;
        assert_eq!(named(index), Ok(list(&["a.safetensors", "b.safetensors"])));
        for wrong in
            ["", "{}", "[]", r#"{"weight_map":{"x":"d.safetensors"}}"#, r#"{"weight_map":{"x":"c.json"}}"#]
        {
            assert_eq!(named(wrong), Err("hub_nothing_to_import"), "{wrong}");
        }
        assert_eq!(named(r#"{"weight_map":{"x":"../a.safetensors"}}"#), Err("source_unsafe_name"));
    }

    #[test]
    fn a_checkpoint_has_so_many_files() {
        let names: Vec<String> = (0..=SHARDS_MAX).map(|i| format!("{i}.safetensors")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.push("config.json");
        assert_eq!(chosen(None, &names), Err("source_too_large"));
        assert!(chosen(None, &names[1..]).is_ok());
    }
}
