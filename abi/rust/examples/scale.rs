//! Scale multiplies every number by a factor and adds an offset.

use edgehost::{config, config_number, Batch, Module, Outcome, Value};

struct Scale {
    factor: f64,
    offset: f64,
    unit: &'static [u8],
    prefix: &'static [u8],
}

impl Module for Scale {
    fn init() -> Self {
        Scale {
            factor: config_number(b"factor", 1.0),
            offset: config_number(b"offset", 0.0),
            unit: config(b"unit").unwrap_or(b""),
            prefix: config(b"prefix").unwrap_or(b""),
        }
    }

    fn process<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b> {
        for r in batch.records() {
            if let Some(v) = r.number() {
                r.set(Value::Float(v * self.factor + self.offset));
                if !self.unit.is_empty() {
                    r.set_attr(b"unit", Value::String(self.unit));
                }
            }
            if !self.prefix.is_empty() {
                r.set_address(batch.text(&[self.prefix, r.address()]));
            }
        }
        Ok(())
    }
}

edgehost::module!(Scale);
