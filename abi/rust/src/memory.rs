//! The memory of a call: what rows refer to lives until the next call begins.

use core::arch::wasm32;
use core::cell::UnsafeCell;
use core::mem::size_of;
use core::ptr;

const PAGE: u32 = 65_536;

/// One piece of the memory that `alloc` cuts; the bytes follow it. Pieces are kept.
#[repr(C, align(8))]
struct Chunk {
    next: *mut Chunk,
    size: u32,
    used: u32,
}

struct State {
    arena: u32,
    arena_size: u32,
    chunks: *mut Chunk,
    now: *mut Chunk,
    kept: u32, // what lives as long as the module
    kept_left: u32,
}

struct Cell(UnsafeCell<State>);

// A module has one thread.
unsafe impl Sync for Cell {}

static STATE: Cell = Cell(UnsafeCell::new(State {
    arena: 0,
    arena_size: 0,
    chunks: ptr::null_mut(),
    now: ptr::null_mut(),
    kept: 0,
    kept_left: 0,
}));

/// Takes fresh pages, so that it gets along with any other allocator; 0 when there
/// are none.
fn grow(bytes: u32) -> u32 {
    match wasm32::memory_grow(0, ((bytes as usize) + PAGE as usize - 1) / PAGE as usize) {
        usize::MAX => 0,
        page => page as u32 * PAGE,
    }
}

fn whole_pages(bytes: u32) -> u32 {
    match bytes.checked_add(PAGE - 1) {
        Some(n) => n / PAGE * PAGE,
        None => wasm32::unreachable(),
    }
}

unsafe fn add_chunk(s: *mut State, at: u32, size: u32) {
    let chunk = at as *mut Chunk;
    *chunk = Chunk { next: (*s).chunks, size: size - size_of::<Chunk>() as u32, used: 0 };
    (*s).chunks = chunk;
}

/// `edgehost_alloc`. A batch that outgrows the arena gets a new one, and the old
/// one goes to `alloc`.
pub fn arena(size: u32) -> u32 {
    let s = STATE.0.get();
    unsafe {
        if (*s).arena != 0 && size <= (*s).arena_size {
            return (*s).arena;
        }
        if size > u32::MAX / 2 {
            return 0;
        }
        let room = whole_pages(size + size / 4 + 1);
        let at = grow(room);
        if at == 0 {
            return 0;
        }
        if (*s).arena != 0 {
            add_chunk(s, (*s).arena, (*s).arena_size);
        }
        (*s).arena = at;
        (*s).arena_size = room;
        at
    }
}

/// Frees what the last call allocated.
pub fn begin() {
    let s = STATE.0.get();
    unsafe {
        let mut chunk = (*s).chunks;
        while !chunk.is_null() {
            (*chunk).used = 0;
            chunk = (*chunk).next;
        }
        (*s).now = (*s).chunks;
    }
}

/// Gives `size` bytes, 8-aligned, until the next call. It traps when memory is used
/// up: the host knows why.
pub fn alloc(size: u32) -> *mut u8 {
    let s = STATE.0.get();
    let size = match size.checked_add(7) {
        Some(n) => n & !7,
        None => wasm32::unreachable(),
    };
    unsafe {
        let mut chunk = (*s).now;
        while !chunk.is_null() {
            if (*chunk).size - (*chunk).used >= size {
                let p = (chunk.add(1) as *mut u8).add((*chunk).used as usize);
                (*chunk).used += size;
                (*s).now = chunk;
                return p;
            }
            chunk = (*chunk).next;
        }
        let room = match size.checked_add(size_of::<Chunk>() as u32) {
            Some(n) => whole_pages(n),
            None => wasm32::unreachable(),
        };
        let at = grow(room);
        if at == 0 {
            wasm32::unreachable()
        }
        add_chunk(s, at, room);
        (*s).now = (*s).chunks;
        (*(*s).now).used = size;
        (*s).now.add(1) as *mut u8
    }
}

/// Whether an address is of `alloc`.
pub fn is_ours(at: u32) -> bool {
    unsafe {
        let mut chunk = (*STATE.0.get()).chunks;
        while !chunk.is_null() {
            if at.wrapping_sub(chunk.add(1) as u32) < (*chunk).used {
                return true;
            }
            chunk = (*chunk).next;
        }
    }
    false
}

/// Copies bytes into memory that is never freed.
pub fn keep(bytes: &[u8]) -> &'static [u8] {
    let s = STATE.0.get();
    let n = bytes.len() as u32;
    unsafe {
        if n > (*s).kept_left {
            (*s).kept_left = whole_pages(n);
            (*s).kept = grow((*s).kept_left);
            if (*s).kept == 0 {
                wasm32::unreachable()
            }
        }
        let p = (*s).kept as *mut u8;
        (*s).kept += n;
        (*s).kept_left -= n;
        copy(bytes, p)
    }
}

/// Copies bytes to `to`, which has room for them.
pub unsafe fn copy<'b>(bytes: &[u8], to: *mut u8) -> &'b [u8] {
    if bytes.is_empty() {
        return &[];
    }
    ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
    core::slice::from_raw_parts(to, bytes.len())
}
