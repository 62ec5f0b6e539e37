//! Small checkpoints of every family as `data/recipe/families.py` describes them in `data/families`: configuration and files as
//! `transformers` writes them, weights from the same generator.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::small::{self, Random, Tensor};

/// A checkpoint's description and what `transformers` computes with it.
pub struct Family {
    pub name: String,
    json: Value,
}

impl Family {
    pub fn read(name: &str) -> Family {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
        let bytes = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        Family { name: name.to_owned(), json: serde_json::from_slice(&bytes).unwrap() }
    }

    /// `config.json`.
    pub fn config(&self) -> Value {
        self.json["config"].clone()
    }

    /// A result by its name.
    pub fn result(&self, name: &str) -> &Value {
        &self.json[name]
    }

    /// Token ids, or lists of them.
    pub fn ids(v: &Value) -> Vec<u32> {
        v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    /// Every tensor, in the order of names.
    pub fn tensors(&self) -> Vec<Tensor> {
        let levels = self.json["levels"].as_u64().unwrap();
        let tensor = |t: &Value| {
            let name = t[0].as_str().unwrap().to_owned();
            let shape: Vec<usize> = Family::ids(&t[1]).into_iter().map(|n| n as usize).collect();
            let (mean, amplitude) = (t[2].as_f64().unwrap(), t[3].as_f64().unwrap());
            let mut random = Random(fnv(&format!("{}/{name}", self.name)));
            let mut next = || (random.next() % (2 * levels + 1)) as f64 - levels as f64;
            let step = amplitude / levels as f64;
            let numbers = (0..shape.iter().product()).map(|_| (mean + next() * step) as f32).collect();
            Tensor { name, shape, numbers }
        };
        self.json["tensors"].as_array().unwrap().iter().map(tensor).collect()
    }

    /// Writes the folder with another configuration, in as many files as `save_pretrained` made.
    pub fn write(&self, folder: &Path, config: &Value) {
        std::fs::create_dir_all(folder).unwrap();
        small::write(folder, "config.json", config.to_string().as_bytes());
        let tensors = self.tensors();
        let Some(map) = self.json["weight_map"].as_object() else {
            small::write(folder, "model.safetensors", &small::safetensors(&tensors));
            return;
        };
        let mut files = BTreeMap::<&str, Vec<Tensor>>::new();
        for t in tensors {
            files.entry(map[&t.name].as_str().unwrap()).or_default().push(t);
        }
        assert!(files.len() > 1);
        for (name, tensors) in files {
            small::write(folder, name, &small::safetensors(&tensors));
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        small::write(folder, "model.safetensors.index.json", index.as_bytes());
    }
}

/// FNV-1a with 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
