// The flat Rust guest of the benchmark, on the bare record ABI v1.
#![no_std]

#[repr(C)]
pub struct Batch {
    version: u32, header_size: u32, row_size: u32, flags: u32,
    rows: u32, n_rows: u32, out_rows: u32, n_out: u32,
}

#[repr(C)]
struct Row {
    event_time: i64, ingest_time: i64, value: f64,
    source: [u32; 2], address: [u32; 2], attrs: [u32; 2], reason: [u32; 2],
    status: u32, index: u32, output: u32, kind: u8,
}

#[link(wasm_import_module = "edgehost")]
extern "C" {
    fn config_get(key: *const u8, n: u32, buf: *mut u8, room: u32) -> i32;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { core::arch::wasm32::unreachable() }

const FLOAT: u8 = 4;
const PREFIX: &[u8] = b"site/";
const PAGE: u32 = 65536;

static mut OP: [u8; 8] = [0; 8];
static mut ARENA: (u32, u32) = (0, 0); // the host's batch
static mut TEXTS: (u32, u32, u32) = (0, 0, 0); // address, size, used

unsafe fn pages(size: u32) -> u32 {
    core::arch::wasm32::memory_grow(0, ((size + PAGE - 1) / PAGE) as usize) as u32 * PAGE
}

unsafe fn texts(n: u32) -> u32 {
    if TEXTS.2 + n > TEXTS.1 {
        let size = 4 * (n + PAGE); // what is there stays where rows refer to it
        TEXTS = (pages(size), size, 0);
    }
    TEXTS.2 += n;
    TEXTS.0 + TEXTS.2 - n
}

#[no_mangle]
pub extern "C" fn edgehost_abi_v1() {}

#[no_mangle]
pub unsafe extern "C" fn edgehost_init() -> i32 {
    config_get(b"op".as_ptr(), 2, OP.as_mut_ptr(), 8);
    0
}

#[no_mangle]
pub unsafe extern "C" fn edgehost_alloc(size: u32) -> u32 {
    if size > ARENA.1 {
        ARENA = (pages(size), size);
    }
    ARENA.0
}

#[no_mangle]
pub unsafe extern "C" fn edgehost_process(b: *mut Batch) -> i32 {
    let b = &mut *b;
    TEXTS.2 = 0;
    let (size, mut n) = (b.row_size, 0);
    match OP[0] {
        b'f' => {
            for i in 0..b.n_rows {
                let r = (b.rows + i * size) as *mut Row;
                if (*r).kind != FLOAT || (*r).value > 50.0 {
                    if i != n {
                        core::ptr::copy_nonoverlapping(r as *const u8, (b.rows + n * size) as *mut u8, size as usize);
                    }
                    n += 1;
                }
            }
            b.n_out = n;
        }
        b's' => {
            for i in 0..b.n_rows {
                let r = &mut *((b.rows + i * size) as *mut Row);
                if r.kind == FLOAT {
                    r.value = r.value * 1.8 + 32.0;
                }
                let n = r.address[1] + PREFIX.len() as u32;
                let to = texts(n);
                core::ptr::copy_nonoverlapping(PREFIX.as_ptr(), to as *mut u8, PREFIX.len());
                core::ptr::copy_nonoverlapping(r.address[0] as *const u8, (to + PREFIX.len() as u32) as *mut u8, r.address[1] as usize);
                r.address = [to, n];
            }
        }
        _ => {}
    }
    0
}
