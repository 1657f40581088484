//! The flat Rust guest of the benchmark.

use edgehost::{config, Batch, Module, Outcome, Value};

struct Flat(u8);

impl Module for Flat {
    fn init() -> Self {
        Flat(config(b"op").unwrap_or(b"p")[0])
    }

    fn process<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b> {
        match self.0 {
            b'f' => batch.retain(|r| !matches!(r.value(), Value::Float(v) if v <= 50.0)),
            b's' => {
                for r in batch.records() {
                    if let Value::Float(v) = r.value() {
                        r.set(Value::Float(v * 1.8 + 32.0));
                    }
                    r.set_address(batch.text(&[b"site/", r.address()]));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

edgehost::module!(Flat);
