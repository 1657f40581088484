// The modules of the host's tests, on the bare record ABI v1. `make` in this
// folder builds them; the results are small and kept here, so that the tests
// need Go alone.
//
//   POISON  traps at an address that ends in "trap", never returns at one that
//           ends in "loop", rejects one that ends in "reject", and lets one that
//           ends in "drop" fall
//   BROKEN  always traps
//   LOOP    never returns
//   REJECT  rejects every record
//   STAMP   writes the number STAMP into every value
//   COUNT   numbers the records of each source over all batches, by a number that
//           it remembers; a tick emits that number at the address "count"; traps
//           at an address that ends in "trap" after it wrote
//   TALLY   counts its batches in its memory and writes the number into every value
//   ADD     adds the number ADD to every value
//   BURN    works on each record for a time that depends on its event time, up to
//           BURN rounds; traps at an address that ends in "burst"
//   START   traps in edgehost_init when its configuration has the key "trap", does not
//           come back from it with the key "spin"
//   ROUTE   sends records whose integer value is a multiple of ten to the output
//           "second"
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
  union { double f64; int64_t i64; ref text; } value;
  ref source, address, attrs, reason;
  uint32_t status, index, output;
  uint8_t kind, protocol, disposition, flags;
  uint64_t reserved;
} row;

#define EXPORT(name) __attribute__((export_name(name)))
#define AT(type, p) ((type *)(uintptr_t)(p))
#define TEXT(s) ((ref){(uint32_t)(uintptr_t)(s), sizeof(s) - 1})

extern unsigned char __heap_base;

EXPORT("edgehost_abi_v1") void marker(void) {}

EXPORT("edgehost_alloc") uint32_t alloc(uint32_t size) {
  uint32_t base = ((uint32_t)(uintptr_t)&__heap_base + 7) & ~7u;
  uint32_t have = (uint32_t)__builtin_wasm_memory_size(0) << 16;
  if ((uint64_t)base + size > have) {
    uint32_t pages = (uint32_t)(((uint64_t)base + size - have + 65535) >> 16);
    if (__builtin_wasm_memory_grow(0, pages) == (uintptr_t)-1) return 0;
  }
  return base;
}

__attribute__((unused)) static int ends(ref r, const char *s, uint32_t n) {
  if (r.len < n) return 0;
  for (uint32_t i = 0; i < n; i++)
    if (AT(char, r.ptr)[r.len - n + i] != s[i]) return 0;
  return 1;
}

#define ENDS(r, s) ends(r, s, sizeof(s) - 1)

#ifdef ROUTE
__attribute__((import_module("edgehost"), import_name("output"))) int32_t output(const char *p, uint32_t n);
static int32_t second;
EXPORT("edgehost_init") int32_t init(void) {
  second = output("second", 6);
  return second < 0 ? 1 : 0;
}
#endif

#ifdef START
__attribute__((import_module("edgehost"), import_name("config_get")))
int32_t config_get(const char *key, uint32_t n, void *buf, uint32_t limit);
EXPORT("edgehost_init") int32_t init(void) {
  if (config_get("trap", 4, 0, 0) >= 0) __builtin_trap();
  for (volatile int on = config_get("spin", 4, 0, 0) >= 0; on;) {}
  return 0;
}
#endif

#ifdef COUNT
#define IMPORT(name) __attribute__((import_module("edgehost"), import_name(name)))
IMPORT("kv_get") int32_t kv_get(const char *key, uint32_t n, void *buf, uint32_t limit);
IMPORT("kv_set") int32_t kv_set(const char *key, uint32_t n, const void *value, uint32_t m, int64_t ttl_ms);
IMPORT("metric") int32_t metric(uint32_t kind, const char *name, uint32_t n);
IMPORT("metric_add") int32_t metric_add(int32_t id, double v);
static int64_t remembered(void) {
  int64_t n = 0;
  return kv_get("n", 1, &n, sizeof n) == sizeof n ? n : 0;
}
static row made;
EXPORT("edgehost_tick") int32_t tick(uint32_t batch) {
  header *h = AT(header, batch);
  made = (row){.event_time = h->time_us, .ingest_time = h->time_us, .address = TEXT("count"), .index = 0xFFFFFFFF, .kind = 2};
  made.value.i64 = remembered();
  h->out_rows = (uint32_t)(uintptr_t)&made;
  h->n_out = 1;
  return 0;
}
#endif

EXPORT("edgehost_process") int32_t process(uint32_t batch) {
  header *h = AT(header, batch);
  uint32_t out = 0;
#ifdef COUNT
  static int32_t seen = -1;
  if (seen < 0) seen = metric(0, "seen", 4);
  metric_add(seen, h->n_rows);
  int64_t n = remembered(), last = n + h->n_rows;
  kv_set("n", 1, &last, sizeof last, 0);
#endif
#ifdef TALLY
  static int64_t batches = 0;
  batches++;
#endif
  for (uint32_t i = 0; i < h->n_rows; i++) {
    row *r = AT(row, h->rows + i * h->row_size);
#ifdef BROKEN
    __builtin_trap();
#endif
#ifdef LOOP
    for (volatile int x = 0;; x++) {}
#endif
#ifdef COUNT
    if (ENDS(r->address, "trap")) __builtin_trap();
#endif
#ifdef BURN
    if (ENDS(r->address, "burst")) __builtin_trap();
    uint64_t spin = (uint64_t)r->event_time * 0x9E3779B97F4A7C15u;
    for (volatile uint32_t x = (spin >> 32) % BURN; x; x--) {}
#endif
#ifdef POISON
    if (ENDS(r->address, "trap")) __builtin_trap();
    if (ENDS(r->address, "loop"))
      for (volatile int x = 0;; x++) {}
    if (ENDS(r->address, "drop")) continue;
#endif
    row *o = AT(row, h->rows + out * h->row_size);
    if (o != r) *o = *r;
    out++;
#ifdef POISON
    if (ENDS(o->address, "reject")) {
      o->disposition = 1;
      o->reason = TEXT("not wanted here");
    }
#endif
#ifdef REJECT
    o->disposition = 1;
    o->reason = TEXT("no");
#endif
#ifdef COUNT
    o->value.i64 = ++n;
#endif
#ifdef STAMP
    o->value.f64 = STAMP;
    o->kind = 4;
#endif
#ifdef ADD
    o->value.f64 += ADD;
#endif
#ifdef TALLY
    o->value.i64 = batches;
#endif
#ifdef ROUTE
    if (o->kind == 2 && o->value.i64 % 10 == 0) o->output = (uint32_t)second;
#endif
  }
  h->n_out = out;
  return 0;
}
