//! A view of one record, and its attributes.

use crate::layout::{Attr, Kind, Protocol, Ref, Row, Value};
use crate::memory;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr;

/// A view of one record. Copies are views of the same one.
#[derive(Clone, Copy)]
pub struct Record<'b> {
    pub(crate) row: *mut Row,
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
    /// # Safety
    /// A row lies at `row`, and its attributes are of the given size, for `'b`.
    pub(crate) unsafe fn at(row: *mut u8, attr_size: u32) -> Self {
        Record { row: row as *mut Row, attr_size, alive: PhantomData }
    }

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

    /// Lets other records refer to the attributes too.
    pub(crate) fn share_attrs(&self) {
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
