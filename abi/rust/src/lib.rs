//! Modules for edgehost in Rust. `docs/abi.md` is the contract.
//!
//! ```ignore
//! use edgehost::{Batch, Module, Outcome, Value};
//!
//! struct Fahrenheit;
//!
//! impl Module for Fahrenheit {
//!     fn init() -> Self {
//!         Fahrenheit
//!     }
//!     fn process<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b> {
//!         for r in batch.records() {
//!             if let Some(v) = r.number() {
//!                 r.set(Value::Float(v * 1.8 + 32.0));
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! edgehost::module!(Fahrenheit);
//! ```
//!
//! A [`Record`] is a view of a row in the module's memory, which is edited in
//! place: nothing is decoded. Text is bytes, as it lies in the batch. What lives
//! for `'b` lives until the next call of the module; a record can refer to nothing
//! that lives shorter, and [`Batch::text`] copies what does.
//!
//! The crate needs neither `std` nor `alloc`.
#![no_std]

#[cfg(feature = "std")]
extern crate std;

mod batch;
mod host;
mod layout;
mod memory;
mod record;

pub use batch::{Batch, Records};
pub use host::{
    config, config_number, features, kv_delete, kv_get, kv_set, log, output, refuse, Counter, Errno, Gauge, Level,
};
pub use layout::{Kind, Protocol, Value, NO_INDEX};
pub use record::{Attrs, Record};

/// How a batch ends: an error discards everything the call did, and the host finds
/// the record at fault by processing parts of the batch. To refuse one record, use
/// [`Record::reject`].
pub type Outcome<'b> = Result<(), &'b [u8]>;

/// An operator. One module has one, which lives as long as the module.
pub trait Module: Sized + 'static {
    /// Runs once, first. [`refuse`] within makes edgehost refuse the deployment.
    fn init() -> Self;
    /// Transforms a batch in place.
    fn process<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b>;
    /// Runs at the period that the pipeline configures, with a batch without
    /// records, when the module is declared with `module!(T, tick)`.
    fn tick<'b>(&mut self, batch: &mut Batch<'b>) -> Outcome<'b> {
        let _ = batch;
        Ok(())
    }
    /// Runs before the instance is closed.
    fn stop(&mut self) {}
}

/// Begins a call: what the last one left is free.
fn begin() {
    memory::begin();
    record::forget();
}

/// Exports an operator: `module!(T)`, or `module!(T, tick)` for one with ticks.
#[macro_export]
macro_rules! module {
    ($t:ty) => {
        static EDGEHOST_MODULE: $crate::Slot<$t> = $crate::Slot::new();
        #[no_mangle]
        pub extern "C" fn edgehost_abi_v1() {}
        #[no_mangle]
        pub extern "C" fn edgehost_alloc(size: u32) -> u32 {
            $crate::Slot::<$t>::arena(size)
        }
        #[no_mangle]
        pub extern "C" fn edgehost_init() -> i32 {
            EDGEHOST_MODULE.start()
        }
        #[no_mangle]
        pub unsafe extern "C" fn edgehost_process(batch: u32) -> i32 {
            EDGEHOST_MODULE.run(batch, <$t as $crate::Module>::process)
        }
        #[no_mangle]
        pub extern "C" fn edgehost_stop() {
            EDGEHOST_MODULE.stop()
        }
    };
    ($t:ty, tick) => {
        $crate::module!($t);
        #[no_mangle]
        pub unsafe extern "C" fn edgehost_tick(batch: u32) -> i32 {
            EDGEHOST_MODULE.run(batch, <$t as $crate::Module>::tick)
        }
    };
}

/// The place of the operator; for [`module!`] only.
#[doc(hidden)]
pub struct Slot<T>(core::cell::UnsafeCell<Option<T>>);

// A module has one thread, and its exports are not called while one of them runs.
unsafe impl<T> Sync for Slot<T> {}

impl<T: Module> Slot<T> {
    pub const fn new() -> Self {
        Slot(core::cell::UnsafeCell::new(None))
    }

    pub fn arena(size: u32) -> u32 {
        memory::arena(size)
    }

    pub fn start(&self) -> i32 {
        #[cfg(feature = "std")]
        host::report_panics();
        begin();
        unsafe { *self.0.get() = Some(T::init()) };
        host::refused() as i32
    }

    /// # Safety
    /// `batch` is the address of a batch that the host wrote.
    pub unsafe fn run(&self, batch: u32, f: for<'b> fn(&mut T, &mut Batch<'b>) -> Outcome<'b>) -> i32 {
        begin();
        let mut batch = Batch::at(batch);
        let outcome = match &mut *self.0.get() {
            Some(module) => f(module, &mut batch),
            None => Err(&b"edgehost_init was not called"[..]),
        };
        batch.finish(outcome)
    }

    pub fn stop(&self) {
        if let Some(module) = unsafe { &mut *self.0.get() } {
            module.stop()
        }
    }
}

impl<T: Module> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}
