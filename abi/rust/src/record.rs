//! What lies in memory (docs/abi.md, sections 2 and 3) and views of it.

use crate::memory;
use crate::Outcome;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::size_of;
use core::{ptr, slice};

/// The index of a record that derives from no input record.
pub const NO_INDEX: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ref {
    ptr: u32,
    len: u32,
}

#[repr(C)]
struct Header {
    version: u32,
    header_size: u32,
    row_size: u32,
    flags: u32,
    rows: u32,
    n_rows: u32,
    out_rows: u32,
    n_out: u32,
    time: i64,
    seq: u64,
    error: Ref,
    attr_size: u32,
    reserved: u32,
}

#[repr(C)]
struct Row {
    event_time: i64,
    ingest_time: i64,
    value: u64,
    source: Ref,
    address: Ref,
    attrs: Ref,
    reason: Ref,
    status: u32,
    index: u32,
    output: u32,
    kind: u8,
    protocol: u8,
    disposition: u8,
    flags: u8,
    reserved: u64,
}

#[repr(C)]
struct Attr {
    key: Ref,
    value: u64,
    kind: u8,
    reserved: [u8; 7],
}

const _: [(); 64] = [(); size_of::<Header>()];
const _: [(); 80] = [(); size_of::<Row>()];
const _: [(); 24] = [(); size_of::<Attr>()];

impl Ref {
    fn of(bytes: &[u8]) -> Self {
        Ref { ptr: bytes.as_ptr() as u32, len: bytes.len() as u32 }
    }

    fn from_bits(bits: u64) -> Self {
        Ref { ptr: bits as u32, len: (bits >> 32) as u32 }
    }

    fn bits(self) -> u64 {
        self.ptr as u64 | (self.len as u64) << 32
    }

    /// # Safety
    /// The span lies in memory and stays as it is for `'b`.
    unsafe fn bytes<'b>(self) -> &'b [u8] {
        if self.len == 0 {
            return &[];
        }
        slice::from_raw_parts(self.ptr as *const u8, self.len as usize)
    }
}

/// The kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    None = 0,
    Bool = 1,
    Int = 2,
    Uint = 3,
    Float = 4,
    String = 5,
    Bytes = 6,
    Json = 7,
}

/// The kind of source that read a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    None,
    OpcUa,
    Mqtt,
    Modbus,
    /// One that this version does not know.
    Other(u8),
}

/// A value. Text is UTF-8 in `String` and `Json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'b> {
    None,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    String(&'b [u8]),
    Bytes(&'b [u8]),
    Json(&'b [u8]),
}

impl<'b> Value<'b> {
    pub fn kind(&self) -> Kind {
        match self {
            Value::None => Kind::None,
            Value::Bool(_) => Kind::Bool,
            Value::Int(_) => Kind::Int,
            Value::Uint(_) => Kind::Uint,
            Value::Float(_) => Kind::Float,
            Value::String(_) => Kind::String,
            Value::Bytes(_) => Kind::Bytes,
            Value::Json(_) => Kind::Json,
        }
    }

    /// The value as a float, when it is a bool or a number of any kind.
    pub fn number(&self) -> Option<f64> {
        match *self {
            Value::Float(v) => Some(v),
            Value::Int(v) => Some(v as f64),
            Value::Uint(v) => Some(v as f64),
            Value::Bool(v) => Some(v as u8 as f64),
            _ => None,
        }
    }

    /// The text of a string or json value, and the bytes of a bytes value.
    pub fn text(&self) -> Option<&'b [u8]> {
        match *self {
            Value::String(v) | Value::Bytes(v) | Value::Json(v) => Some(v),
            _ => None,
        }
    }

    fn bits(&self) -> u64 {
        match *self {
            Value::None => 0,
            Value::Bool(v) => v as u64,
            Value::Int(v) => v as u64,
            Value::Uint(v) => v,
            Value::Float(v) => v.to_bits(),
            Value::String(v) | Value::Bytes(v) | Value::Json(v) => Ref::of(v).bits(),
        }
    }

    unsafe fn of(kind: u8, bits: u64) -> Self {
        match kind {
            1 => Value::Bool(bits != 0),
            2 => Value::Int(bits as i64),
            3 => Value::Uint(bits),
            4 => Value::Float(f64::from_bits(bits)),
            5 => Value::String(Ref::from_bits(bits).bytes()),
            6 => Value::Bytes(Ref::from_bits(bits).bytes()),
            7 => Value::Json(Ref::from_bits(bits).bytes()),
            _ => Value::None,
        }
    }
}

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
        Record { row: row as *mut Row, attr_size: unsafe { (*self.header).attr_size }, alive: PhantomData }
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
        let r = Record { row: self.at as *mut Row, attr_size: self.attr_size, alive: PhantomData };
        self.at += self.row_size;
        self.left -= 1;
        Some(r)
    }
}

/// A view of one record. Copies are views of the same one.
#[derive(Clone, Copy)]
pub struct Record<'b> {
    row: *mut Row,
    attr_size: u32,
    alive: PhantomData<&'b ()>,
}

/// Plain fields: what reads one, what sets it.
macro_rules! field {
    ($(#[$doc:meta])* $get:ident, $set:ident, $t:ty) => {
        $(#[$doc])*
        pub fn $get(&self) -> $t {
            unsafe { (*self.row).$get }
        }
        pub fn $set(&self, v: $t) {
            unsafe { (*self.row).$get = v }
        }
    };
}

impl<'b> Record<'b> {
    field!(
        /// When the value was measured, in microseconds since the Unix epoch.
        event_time, set_event_time, i64);
    field!(
        /// When edgehost received the value.
        ingest_time, set_ingest_time, i64);
    field!(
        /// The quality as an OPC UA StatusCode.
        status, set_status, u32);
    field!(
        /// The handle of the output; 0 is the default.
        output, set_output, u32);

    /// The position of the record in its batch; [`NO_INDEX`] for a new one.
    pub fn index(&self) -> u32 {
        unsafe { (*self.row).index }
    }

    pub fn protocol(&self) -> Protocol {
        match unsafe { (*self.row).protocol } {
            0 => Protocol::None,
            1 => Protocol::OpcUa,
            2 => Protocol::Mqtt,
            3 => Protocol::Modbus,
            other => Protocol::Other(other),
        }
    }

    /// The name of the source.
    pub fn source(&self) -> &'b [u8] {
        unsafe { (*self.row).source.bytes() }
    }

    pub fn set_source(&self, name: &'b [u8]) {
        unsafe { (*self.row).source = Ref::of(name) }
    }

    /// The topic, node id or register.
    pub fn address(&self) -> &'b [u8] {
        unsafe { (*self.row).address.bytes() }
    }

    pub fn set_address(&self, address: &'b [u8]) {
        unsafe { (*self.row).address = Ref::of(address) }
    }

    pub fn value(&self) -> Value<'b> {
        unsafe { Value::of((*self.row).kind, (*self.row).value) }
    }

    /// The value as a float, when it is a bool or a number of any kind.
    pub fn number(&self) -> Option<f64> {
        self.value().number()
    }

    pub fn set(&self, v: Value<'b>) {
        unsafe {
            (*self.row).value = v.bits();
            (*self.row).kind = v.kind() as u8;
        }
    }

    /// Sends the record as it arrived to the dead-letter queue.
    pub fn reject(&self, reason: &'b [u8]) {
        unsafe {
            (*self.row).disposition = 1;
            (*self.row).reason = Ref::of(reason);
        }
    }

    fn attrs_ref(&self) -> Ref {
        unsafe { (*self.row).attrs }
    }

    fn attr_at(&self, i: u32) -> *mut Attr {
        (self.attrs_ref().ptr + i * self.attr_size) as *mut Attr
    }

    fn find(&self, key: &[u8]) -> Option<*mut Attr> {
        (0..self.attrs_ref().len).map(|i| self.attr_at(i)).find(|&a| unsafe { (*a).key.bytes() == key })
    }

    /// The attributes in order.
    pub fn attrs(&self) -> Attrs<'b> {
        Attrs { record: *self, next: 0 }
    }

    pub fn attr(&self, key: &[u8]) -> Option<Value<'b>> {
        self.find(key).map(|a| unsafe { Value::of((*a).kind, (*a).value) })
    }

    /// Sets an attribute. Records that share their attributes and get the same edit
    /// one after the other share the result, which costs the host one look.
    pub fn set_attr(&self, key: &'b [u8], v: Value<'b>) {
        let edit = Edit { from: self.attrs_ref(), to: Ref { ptr: 0, len: 0 }, key: Ref::of(key), bits: v.bits(), kind: v.kind() };
        if let Some(to) = recall(&edit) {
            unsafe { (*self.row).attrs = to };
            self.share_attrs();
            return;
        }
        self.own_attrs(edit.from.len + 1);
        unsafe {
            let a = self.find(key).unwrap_or_else(|| {
                let a = self.attr_at(edit.from.len);
                ptr::write_bytes(a as *mut u8, 0, self.attr_size as usize);
                (*a).key = edit.key;
                (*self.row).attrs.len += 1;
                a
            });
            (*a).value = edit.bits;
            (*a).kind = edit.kind as u8;
        }
        remember(Edit { to: self.attrs_ref(), ..edit });
    }

    /// Removes an attribute, if there is one.
    pub fn del_attr(&self, key: &[u8]) {
        if self.find(key).is_none() {
            return;
        }
        forget();
        self.own_attrs(self.attrs_ref().len);
        if let Some(a) = self.find(key) {
            unsafe {
                (*self.row).attrs.len -= 1;
                let end = self.attr_at(self.attrs_ref().len) as usize;
                let after = a as usize + self.attr_size as usize;
                ptr::copy(after as *const u8, a as *mut u8, end - a as usize);
            }
        }
    }

    /// How many attributes an array of ours may hold before it must move; it stands
    /// before the array. It is 0 while several records may refer to it.
    fn room(&self) -> Option<*mut u32> {
        let attrs = self.attrs_ref();
        (attrs.len > 0 && memory::is_ours(attrs.ptr)).then(|| (attrs.ptr - 8) as *mut u32)
    }

    fn share_attrs(&self) {
        if let Some(room) = self.room() {
            unsafe { *room = 0 }
        }
    }

    /// Gives the record an attribute array of its own with room for `n`.
    fn own_attrs(&self, n: u32) {
        if self.room().map_or(false, |room| unsafe { *room } >= n) {
            return;
        }
        let room = n + 2;
        let old = self.attrs_ref();
        unsafe {
            let to = memory::alloc(8 + room * self.attr_size);
            *(to as *mut u32) = room;
            ptr::copy_nonoverlapping(old.ptr as *const u8, to.add(8), (old.len * self.attr_size) as usize);
            (*self.row).attrs.ptr = to as u32 + 8;
        }
    }
}

/// The attributes of a record: keys and values.
pub struct Attrs<'b> {
    record: Record<'b>,
    next: u32,
}

impl<'b> Iterator for Attrs<'b> {
    type Item = (&'b [u8], Value<'b>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.record.attrs_ref().len {
            return None;
        }
        let a = self.record.attr_at(self.next);
        self.next += 1;
        unsafe { Some(((*a).key.bytes(), Value::of((*a).kind, (*a).value))) }
    }
}

/// An edit of attributes: which array became which by what.
#[derive(Clone, Copy)]
struct Edit {
    from: Ref,
    to: Ref,
    key: Ref,
    bits: u64,
    kind: Kind,
}

struct Memo(UnsafeCell<Option<Edit>>);

// A module has one thread.
unsafe impl Sync for Memo {}

/// The last edit of this call.
static MEMO: Memo = Memo(UnsafeCell::new(None));

pub(crate) fn forget() {
    unsafe { *MEMO.0.get() = None }
}

/// Remembers an edit, unless it changed an array that was ours already.
fn remember(e: Edit) {
    unsafe { *MEMO.0.get() = if e.from.ptr == e.to.ptr { None } else { Some(e) } }
}

fn recall(e: &Edit) -> Option<Ref> {
    match unsafe { &*MEMO.0.get() } {
        Some(m) if m.from == e.from && m.key == e.key && m.bits == e.bits && m.kind == e.kind => Some(m.to),
        _ => None,
    }
}
