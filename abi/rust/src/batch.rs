//! The batch of a call: its records, and what goes out in their place.

use crate::layout::{Header, Ref, NO_INDEX};
use crate::memory;
use crate::record::Record;
use crate::Outcome;
use core::marker::PhantomData;
use core::{ptr, slice};

/// The batch of a call.
pub struct Batch<'b> {
    header: *mut Header,
    rows: *mut u8, // the output rows, once something is emitted
    n: u32,
    room: u32,
    alive: PhantomData<&'b ()>,
}

impl<'b> Batch<'b> {
    /// # Safety
    /// `at` is the address of a batch that the host wrote; `'b` ends with the call.
    pub(crate) unsafe fn at(at: u32) -> Self {
        Batch { header: at as *mut Header, rows: ptr::null_mut(), n: 0, room: 0, alive: PhantomData }
    }

    pub(crate) fn finish(self, outcome: Outcome<'b>) -> i32 {
        let header = self.header;
        unsafe {
            if !self.rows.is_null() {
                (*header).out_rows = self.rows as u32;
                (*header).n_out = self.n;
            }
            match outcome {
                Ok(()) => 0,
                Err(why) => {
                    (*header).error = Ref::of(why);
                    1
                }
            }
        }
    }

    fn row_size(&self) -> u32 {
        unsafe { (*self.header).row_size }
    }

    fn record_at(&self, row: *mut u8) -> Record<'b> {
        unsafe { Record::at(row, (*self.header).attr_size) }
    }

    /// The number of input records.
    pub fn len(&self) -> u32 {
        unsafe { (*self.header).n_rows }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The time of the batch in microseconds since the Unix epoch.
    pub fn time(&self) -> i64 {
        unsafe { (*self.header).time }
    }

    /// The number of the batch in its pipeline.
    pub fn seq(&self) -> u64 {
        unsafe { (*self.header).seq }
    }

    /// Whether this is a tick: a batch without input.
    pub fn is_tick(&self) -> bool {
        unsafe { (*self.header).flags & 1 != 0 }
    }

    /// The input record `i`. It panics when there is none.
    pub fn record(&self, i: u32) -> Record<'b> {
        assert!(i < self.len(), "no such record");
        self.record_at(unsafe { ((*self.header).rows + i * self.row_size()) as *mut u8 })
    }

    /// The input records in order.
    pub fn records(&self) -> Records<'b> {
        Records {
            at: unsafe { (*self.header).rows },
            left: self.len(),
            row_size: self.row_size(),
            attr_size: unsafe { (*self.header).attr_size },
            alive: PhantomData,
        }
    }

    /// Copies the parts, one after the other, into memory that lives until the next
    /// call.
    pub fn text(&self, parts: &[&[u8]]) -> &'b [u8] {
        let size: usize = parts.iter().map(|p| p.len()).sum();
        let start = memory::alloc(size as u32);
        let mut to = start;
        unsafe {
            for part in parts {
                memory::copy(part, to);
                to = to.add(part.len());
            }
            slice::from_raw_parts(start, size)
        }
    }

    /// Keeps the input records for which `keep` returns true and those that it
    /// rejects.
    pub fn retain(&mut self, mut keep: impl FnMut(Record<'b>) -> bool) {
        let mut n = 0;
        for (i, r) in self.records().enumerate() {
            if !keep(r) && unsafe { (*r.row).disposition } == 0 {
                continue;
            }
            if i as u32 != n {
                unsafe {
                    let to = ((*self.header).rows + n * self.row_size()) as *mut u8;
                    ptr::copy_nonoverlapping(r.row as *const u8, to, self.row_size() as usize);
                }
            }
            n += 1;
        }
        unsafe { (*self.header).n_out = n };
    }

    /// Says that the output is what is emitted and nothing else; [`Batch::emit`]
    /// implies it.
    pub fn collect(&mut self) {
        if self.rows.is_null() {
            self.room = self.len().max(16);
            self.rows = memory::alloc(self.room * self.row_size());
        }
    }

    fn next_row(&mut self) -> *mut u8 {
        self.collect();
        let size = self.row_size();
        unsafe {
            if self.n == self.room {
                let rows = memory::alloc(2 * self.room * size);
                ptr::copy_nonoverlapping(self.rows, rows, (self.n * size) as usize);
                self.rows = rows;
                self.room *= 2;
            }
            self.n += 1;
            self.rows.add(((self.n - 1) * size) as usize)
        }
    }

    /// Adds a copy of a record to the output and returns it. It may be changed until
    /// the next one is added.
    pub fn emit(&mut self, r: Record<'b>) -> Record<'b> {
        let to = self.next_row();
        unsafe { ptr::copy_nonoverlapping(r.row as *const u8, to, self.row_size() as usize) };
        r.share_attrs();
        self.record_at(to)
    }

    /// Adds a record that derives from no input record.
    pub fn emit_new(&mut self) -> Record<'b> {
        let to = self.next_row();
        unsafe { ptr::write_bytes(to, 0, self.row_size() as usize) };
        let r = self.record_at(to);
        unsafe {
            (*r.row).index = NO_INDEX;
            (*r.row).event_time = self.time();
            (*r.row).ingest_time = self.time();
        }
        r
    }
}

/// The input records of a batch.
pub struct Records<'b> {
    at: u32,
    left: u32,
    row_size: u32,
    attr_size: u32,
    alive: PhantomData<&'b ()>,
}

impl<'b> Iterator for Records<'b> {
    type Item = Record<'b>;

    fn next(&mut self) -> Option<Record<'b>> {
        if self.left == 0 {
            return None;
        }
        let r = unsafe { Record::at(self.at as *mut u8, self.attr_size) };
        self.at += self.row_size;
        self.left -= 1;
        Some(r)
    }
}
