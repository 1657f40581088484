// plant: the module of `edgehost demo`, on the bare record ABI v1 (docs/abi.md),
// without any SDK. It converts degrees Celsius to Fahrenheit, lets heartbeats
// fall and rejects readings that no sensor of this plant can make.
//
//   clang-14 --target=wasm32 -nostdlib -O2 -mbulk-memory -Wl,--no-entry -Wl,--strip-all -o plant.wasm plant.c
#include <stdint.h>

typedef struct { uint32_t ptr, len; } ref;

typedef struct {
  uint32_t version, header_size, row_size, flags, rows, n_rows, out_rows, n_out;
  int64_t time_us;
  uint64_t seq;
  ref error;
  uint32_t attr_size, reserved;
} header;

typedef struct {
  int64_t event_time, ingest_time;
  union { double f64; int64_t i64; uint64_t bits; ref text; } value;
  ref source, address, attrs, reason;
  uint32_t status, index, output;
  uint8_t kind, protocol, disposition, flags;
  uint64_t reserved;
} row;

typedef struct { ref key; union { uint64_t bits; ref text; } value; uint8_t kind, pad[7]; } attr;

enum { KIND_FLOAT = 4, KIND_STRING = 5, REJECT = 1 };

_Static_assert(sizeof(header) == 64 && sizeof(row) == 80 && sizeof(attr) == 24, "record ABI v1");

#define EXPORT(name) __attribute__((export_name(name)))
#define AT(type, p) ((type *)(uintptr_t)(p))

extern unsigned char __heap_base;
static uint32_t arena_size;

EXPORT("edgehost_abi_v1") void marker(void) {}

// The arena is one span behind the module's own data; it only grows.
EXPORT("edgehost_alloc") uint32_t alloc(uint32_t size) {
  uint32_t base = ((uint32_t)(uintptr_t)&__heap_base + 7) & ~7u;
  uint32_t have = (uint32_t)__builtin_wasm_memory_size(0) << 16;
  if (size > arena_size) {
    if ((uint64_t)base + size > have) {
      uint32_t pages = (uint32_t)(((uint64_t)base + size - have + 65535) >> 16);
      if (__builtin_wasm_memory_grow(0, pages) == (uintptr_t)-1) return 0;
    }
    arena_size = size;
  }
  return base;
}

static int equal(ref r, const char *s, uint32_t n) {
  if (r.len != n) return 0;
  for (uint32_t i = 0; i < n; i++)
    if (AT(char, r.ptr)[i] != s[i]) return 0;
  return 1;
}

static int ends(ref r, const char *s, uint32_t n) {
  return r.len >= n && equal((ref){r.ptr + r.len - n, n}, s, n);
}

#define EQUAL(r, s) equal(r, s, sizeof(s) - 1)
#define ENDS(r, s) ends(r, s, sizeof(s) - 1)
#define TEXT(s) ((ref){(uint32_t)(uintptr_t)(s), sizeof(s) - 1})

// Attributes of the input are read-only: the host takes a Ref that it wrote
// itself for unchanged. Changed arrays are built here, once for each array of
// the input, since the host lets rows with equal attributes share one.
enum { POOL = 8192 };
static attr pool[POOL];
static uint32_t used;
static ref last_in, last_out;

// fahrenheit points the row at a copy of its attributes with the unit F. It
// returns 0 when the row's unit is not C, and -1 when the pool is used up.
static int fahrenheit(row *r, uint32_t attr_size) {
  if (r->attrs.len && r->attrs.ptr == last_in.ptr && r->attrs.len == last_in.len) {
    r->attrs = last_out;
    return 1;
  }
  uint32_t n = r->attrs.len, unit = n;
  for (uint32_t i = 0; i < n; i++) {
    attr *a = AT(attr, r->attrs.ptr + i * attr_size);
    if (EQUAL(a->key, "unit") && a->kind == KIND_STRING && EQUAL(a->value.text, "C")) unit = i;
  }
  if (unit == n) return 0;
  if (n > POOL - used) return -1;
  attr *copy = pool + used;
  used += n;
  for (uint32_t i = 0; i < n; i++) copy[i] = *AT(attr, r->attrs.ptr + i * attr_size);
  copy[unit].value.text = TEXT("F");
  last_in = r->attrs;
  last_out = r->attrs = (ref){(uint32_t)(uintptr_t)copy, n};
  return 1;
}

EXPORT("edgehost_process") int32_t process(uint32_t batch) {
  header *h = AT(header, batch);
  uint32_t out = 0;
  used = 0;
  last_in = (ref){0, 0};
  for (uint32_t i = 0; i < h->n_rows; i++) {
    row *r = AT(row, h->rows + i * h->row_size);
    if (ENDS(r->address, "/heartbeat")) continue;
    row *o = AT(row, h->rows + out * h->row_size);
    if (o != r) *o = *r;
    out++;
    if (o->kind != KIND_FLOAT) continue;
    if (o->value.f64 < -1000 || o->value.f64 > 100000) {
      o->disposition = REJECT;
      o->reason = TEXT("no sensor of this plant can read that");
      continue;
    }
    int converted = fahrenheit(o, h->attr_size);
    if (converted < 0) {
      h->error = TEXT("more attributes in one batch than the pool holds");
      return 1;
    }
    if (converted) o->value.f64 = o->value.f64 * 1.8 + 32;
  }
  h->n_out = out;
  return 0;
}
