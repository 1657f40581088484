//! The module that host/sandbox/sdk_test.go runs to check this SDK: it does what the
//! configuration key "op" says. The other SDKs have the same one.

use edgehost::{config, kv_delete, kv_get, kv_set, log, output, refuse};
use edgehost::{Batch, Counter, Gauge, Kind, Level, Module, Outcome, Record, Value};

struct Check {
    op: &'static [u8],
    second: u32,
    metrics: Option<(Counter, Gauge)>,
}

fn copy_value<'b>(batch: &Batch<'b>, v: Value<'b>) -> Value<'b> {
    match v {
        Value::String(s) => Value::String(batch.text(&[s])),
        Value::Bytes(s) => Value::Bytes(batch.text(&[s])),
        Value::Json(s) => Value::Json(batch.text(&[s])),
        other => other,
    }
}

fn copy(batch: &mut Batch) {
    batch.collect();
    for r in batch.records() {
        let n = batch.emit_new();
        n.set_event_time(r.event_time());
        n.set_ingest_time(r.ingest_time());
        n.set_source(batch.text(&[r.source()]));
        n.set_address(batch.text(&[r.address()]));
        n.set_status(r.status());
        n.set(copy_value(batch, r.value()));
        for (key, v) in r.attrs() {
            n.set_attr(batch.text(&[key]), copy_value(batch, v));
        }
    }
}

fn edit<'b>(batch: &Batch<'b>, r: Record<'b>) {
    r.set_event_time(r.event_time() + 1);
    r.set_ingest_time(r.ingest_time() + 2);
    let source = r.source();
    r.set_address(source);
    r.set_source(batch.text(&[b"new ", source]));
    r.set_status(0x8000_0000);
    r.set(match r.value() {
        Value::None => Value::Int(1),
        Value::Bool(v) => Value::Bool(!v),
        Value::Int(v) => Value::Int(v.wrapping_mul(2)),
        Value::Uint(v) => Value::Uint(v / 2),
        Value::Float(v) => Value::Float(v * 2.0),
        Value::String(v) => Value::String(batch.text(&[v, v])),
        Value::Bytes(v) => Value::Bytes(batch.text(&[v, v])),
        Value::Json(v) => Value::Json(batch.text(&[b"{\"was\":", v, b"}"])),
    });
}

fn attrs(r: Record) {
    r.set_attr(b"unit", Value::String(b"mbar"));
    r.set_attr(b"x", Value::Float(1.0));
    r.set_attr(b"x", Value::Float(2.0));
    r.set_attr(b"y", Value::String(b"why"));
    r.set_attr(b"z", Value::Bool(true));
    r.del_attr(b"qos");
    r.del_attr(b"nothing");
}

fn fan(batch: &mut Batch, times: u32) {
    batch.collect();
    for r in batch.records().filter(|r| r.value().kind() != Kind::None) {
        batch.emit(r);
        for _ in 1..times {
            let second = batch.emit(r);
            second.set_address(batch.text(&[r.address(), b"/2"]));
            second.set_attr(b"copy", Value::Int(r.index() as i64));
        }
    }
}

fn share(batch: &mut Batch) {
    for r in batch.records() {
        r.set_attr(b"copy", Value::Int(0));
        batch.emit(r);
        r.set_attr(b"copy", Value::Int(1));
        let second = batch.emit(r);
        second.set_attr(b"copy", Value::Int(r.index() as i64));
        second.del_attr(b"qos");
        r.set_attr(b"late", Value::Bool(true));
        r.del_attr(b"copy");
    }
    batch.collect();
}

fn state(batch: &Batch, seen: Counter, last: Gauge) {
    let was = kv_get(batch, b"count").unwrap_or(b"");
    let mut count = batch.len() as u64;
    if let Ok(bytes) = <[u8; 8]>::try_from(was) {
        count += u64::from_le_bytes(bytes);
    }
    let _ = kv_set(b"count", &count.to_le_bytes(), 60_000);
    let _ = kv_delete(b"old");
    seen.add(batch.len() as f64);
    last.set(count as f64);
    log(Level::Warn, b"state kept");
    for r in batch.records() {
        r.set_attr(b"count", Value::Bytes(was));
    }
}

impl Module for Check {
    fn init() -> Self {
        let op = config(b"op").unwrap_or(b"");
        let known: [&[u8]; 14] = [
            b"pass", b"copy", b"edit", b"attrs", b"filter", b"reject", b"route", b"fan", b"grow", b"share", b"trap", b"fail", b"state", b"parse",
        ];
        if !known.contains(&op) {
            refuse(format!("no such op: {}", String::from_utf8_lossy(op)).as_bytes());
        }
        Check {
            op,
            second: if op == b"route" { output(b"second") } else { 0 },
            metrics: if op == b"state" { Some((Counter::new(b"seen"), Gauge::new(b"last"))) } else { None },
        }
    }

    fn process<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b> {
        match self.op {
            b"copy" => copy(batch),
            b"edit" => batch.records().for_each(|r| edit(batch, r)),
            b"attrs" => batch.records().for_each(attrs),
            b"filter" => batch.retain(|r| r.index() % 2 == 1),
            b"reject" => batch
                .records()
                .filter(|r| r.value().kind() == Kind::String)
                .for_each(|r| r.reject(batch.text(&[b"no text: ", r.address()]))),
            b"route" => batch.records().filter(|r| r.index() % 2 == 1).for_each(|r| r.set_output(self.second)),
            b"fan" => fan(batch, 2),
            b"grow" => fan(batch, 3),
            b"share" => share(batch),
            b"trap" => panic!("the module traps"),
            b"fail" => {
                let source = if batch.is_empty() { &b"nobody"[..] } else { batch.record(0).source() };
                return Err(batch.text(&[b"refused by ", source]));
            }
            b"state" => {
                if let Some((seen, last)) = self.metrics {
                    state(batch, seen, last)
                }
            }
            b"parse" => batch.records().for_each(|r| {
                if let Some(text) = r.value().text() {
                    r.set(match std::str::from_utf8(text).unwrap_or("").parse() {
                        Ok(v) => Value::Float(v),
                        Err(_) => Value::None,
                    })
                }
            }),
            _ => {}
        }
        Ok(())
    }

    fn tick<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b> {
        let r = batch.emit_new();
        r.set_event_time(batch.time() - 1);
        r.set_source(b"tick");
        r.set_address(b"t");
        r.set(Value::Float(batch.seq() as f64));
        r.set_attr(b"n", Value::Uint(batch.seq()));
        Ok(())
    }

    fn stop(&mut self) {
        log(Level::Info, b"stopped");
    }
}

edgehost::module!(Check, tick);
