//! What lies in memory (docs/abi.md, sections 2 and 3), and values.

use core::mem::size_of;
use core::slice;

/// The index of a record that derives from no input record.
pub const NO_INDEX: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ref {
    pub ptr: u32,
    pub len: u32,
}

#[repr(C)]
pub(crate) struct Header {
    pub version: u32,
    pub header_size: u32,
    pub row_size: u32,
    pub flags: u32,
    pub rows: u32,
    pub n_rows: u32,
    pub out_rows: u32,
    pub n_out: u32,
    pub time: i64,
    pub seq: u64,
    pub error: Ref,
    pub attr_size: u32,
    pub reserved: u32,
}

#[repr(C)]
pub(crate) struct Row {
    pub event_time: i64,
    pub ingest_time: i64,
    pub value: u64,
    pub source: Ref,
    pub address: Ref,
    pub attrs: Ref,
    pub reason: Ref,
    pub status: u32,
    pub index: u32,
    pub output: u32,
    pub kind: u8,
    pub protocol: u8,
    pub disposition: u8,
    pub flags: u8,
    pub reserved: u64,
}

#[repr(C)]
pub(crate) struct Attr {
    pub key: Ref,
    pub value: u64,
    pub kind: u8,
    pub reserved: [u8; 7],
}

const _: [(); 64] = [(); size_of::<Header>()];
const _: [(); 80] = [(); size_of::<Row>()];
const _: [(); 24] = [(); size_of::<Attr>()];

impl Ref {
    pub fn of(bytes: &[u8]) -> Self {
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
    pub unsafe fn bytes<'b>(self) -> &'b [u8] {
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

    pub(crate) fn bits(&self) -> u64 {
        match *self {
            Value::None => 0,
            Value::Bool(v) => v as u64,
            Value::Int(v) => v as u64,
            Value::Uint(v) => v,
            Value::Float(v) => v.to_bits(),
            Value::String(v) | Value::Bytes(v) | Value::Json(v) => Ref::of(v).bits(),
        }
    }

    pub(crate) unsafe fn of(kind: u8, bits: u64) -> Self {
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
