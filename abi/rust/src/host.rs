//! The functions of the host (docs/abi.md, section 6).

use crate::memory;
use core::cell::Cell;

mod import {
    #[link(wasm_import_module = "edgehost")]
    extern "C" {
        pub fn log(level: u32, text: *const u8, len: usize) -> i32;
        pub fn config_get(key: *const u8, key_len: usize, buf: *mut u8, buf_len: usize) -> i32;
        pub fn output(name: *const u8, len: usize) -> i32;
        pub fn features() -> i64;
        pub fn kv_get(key: *const u8, key_len: usize, buf: *mut u8, buf_len: usize) -> i32;
        pub fn kv_set(key: *const u8, key_len: usize, value: *const u8, len: usize, ttl_ms: i64) -> i32;
        pub fn kv_delete(key: *const u8, key_len: usize) -> i32;
        pub fn metric(kind: u32, name: *const u8, len: usize) -> i32;
        pub fn metric_add(id: i32, delta: f64) -> i32;
        pub fn metric_set(id: i32, value: f64) -> i32;
    }
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    extern "C" {
        pub fn fd_write(fd: i32, iovs: *const [usize; 2], n: usize, written: *mut usize) -> i32;
    }
}

/// What a host function refuses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    NotFound,
    Memory,
    TooLarge,
    Denied,
    Invalid,
}

fn result(n: i32) -> Result<u32, Errno> {
    match n {
        0..=i32::MAX => Ok(n as u32),
        -1 => Err(Errno::NotFound),
        -2 => Err(Errno::Memory),
        -3 => Err(Errno::TooLarge),
        -4 => Err(Errno::Denied),
        _ => Err(Errno::Invalid),
    }
}

/// How serious a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug = 0,
    Info = 1,
    Warn = 2,
    Error = 3,
}

/// Writes a line to the log of edgehost.
pub fn log(level: Level, text: &[u8]) {
    unsafe { import::log(level as u32, text.as_ptr(), text.len()) };
}

struct Flag(Cell<bool>);

// A module has one thread.
unsafe impl Sync for Flag {}

static REFUSED: Flag = Flag(Cell::new(false));

pub(crate) fn refused() -> bool {
    REFUSED.0.get()
}

fn stderr(parts: &[&[u8]]) {
    for part in parts {
        let iov = [part.as_ptr() as usize, part.len()];
        let mut written = 0;
        unsafe { import::fd_write(2, &iov, 1, &mut written) };
    }
}

/// Makes edgehost refuse the deployment with a reason. For [`crate::Module::init`].
pub fn refuse(reason: &[u8]) {
    refuse_parts(&[reason]);
}

fn refuse_parts(parts: &[&[u8]]) {
    stderr(parts);
    stderr(&[b"\n"]);
    REFUSED.0.set(true);
}

/// Writes the words of a panic to the host, which reports them with the trap.
#[cfg(feature = "std")]
pub(crate) fn report_panics() {
    std::panic::set_hook(std::boxed::Box::new(|info| {
        let text = std::format!("{}\n", info);
        stderr(&[text.as_bytes()]);
    }));
}

/// Reads a value of a length that is not known; it lives until the next call.
fn fetch<'b>(get: impl Fn(*mut u8, usize) -> i32) -> Result<&'b [u8], Errno> {
    let mut size = 256;
    loop {
        let buf = memory::alloc(size);
        let n = result(get(buf, size as usize))?;
        if n <= size {
            return Ok(unsafe { core::slice::from_raw_parts(buf, n as usize) });
        }
        size = n;
    }
}

fn find_config<'b>(key: &[u8]) -> Result<&'b [u8], Errno> {
    fetch(|buf, size| unsafe { import::config_get(key.as_ptr(), key.len(), buf, size) })
}

/// A value of the deployment's configuration.
pub fn config(key: &[u8]) -> Option<&'static [u8]> {
    find_config(key).ok().map(memory::keep)
}

/// A value of the configuration as a number. One that is no number refuses the
/// deployment.
pub fn config_number(key: &[u8], fallback: f64) -> f64 {
    let text = match find_config(key) {
        Ok(text) => text,
        Err(_) => return fallback,
    };
    match core::str::from_utf8(text).ok().and_then(|t| t.parse().ok()) {
        Some(v) => v,
        None => {
            refuse_parts(&[b"config key ", key, b": ", text, b" is no number"]);
            fallback
        }
    }
}

/// The handle of an output for [`crate::Record::set_output`]. A name that the
/// deployment does not have refuses it.
pub fn output(name: &[u8]) -> u32 {
    match result(unsafe { import::output(name.as_ptr(), name.len()) }) {
        Ok(handle) => handle,
        Err(_) => {
            refuse_parts(&[b"output ", name, b" is not configured for this module"]);
            0
        }
    }
}

/// The bits of what the host offers: 1 kv, 2 metrics, 4 ticks.
pub fn features() -> u64 {
    unsafe { import::features() as u64 }
}

/// The value of a key of the module's state; it lives until the next call.
pub fn kv_get<'b>(_: &crate::Batch<'b>, key: &[u8]) -> Result<&'b [u8], Errno> {
    fetch(|buf, size| unsafe { import::kv_get(key.as_ptr(), key.len(), buf, size) })
}

/// Sets a key. It is committed with the records of the batch, or not at all.
/// `ttl_ms` 0 keeps it for ever.
pub fn kv_set(key: &[u8], value: &[u8], ttl_ms: i64) -> Result<(), Errno> {
    result(unsafe { import::kv_set(key.as_ptr(), key.len(), value.as_ptr(), value.len(), ttl_ms) }).map(drop)
}

/// Removes a key, as [`kv_set`] sets one.
pub fn kv_delete(key: &[u8]) -> Result<(), Errno> {
    result(unsafe { import::kv_delete(key.as_ptr(), key.len()) }).map(drop)
}

/// A metric that only grows.
#[derive(Clone, Copy)]
pub struct Counter(i32);

impl Counter {
    /// Makes a counter, or finds it. The name is made of letters, digits and `_`.
    pub fn new(name: &[u8]) -> Self {
        Counter(unsafe { import::metric(0, name.as_ptr(), name.len()) })
    }

    /// Adds `delta`, which is not below 0. It counts when the batch succeeds.
    pub fn add(self, delta: f64) {
        unsafe { import::metric_add(self.0, delta) };
    }
}

/// A metric that is set.
#[derive(Clone, Copy)]
pub struct Gauge(i32);

impl Gauge {
    /// Makes a gauge, or finds it.
    pub fn new(name: &[u8]) -> Self {
        Gauge(unsafe { import::metric(1, name.as_ptr(), name.len()) })
    }

    /// Sets the value. It counts when the batch succeeds.
    pub fn set(self, value: f64) {
        unsafe { import::metric_set(self.0, value) };
    }
}
