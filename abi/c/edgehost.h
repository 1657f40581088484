/* edgehost.h: modules for edgehost in C99. docs/abi.md is the contract.
 *
 *     #include "edgehost.h"
 *
 *     EDGEHOST_PROCESS(b) {
 *         for (uint32_t i = 0; i < b->n_rows; i++) {
 *             eh_row *r = eh_row_at(b, i);
 *             double v;
 *             if (eh_number(eh_get(r), &v))
 *                 eh_set(r, eh_float(v * 1.8 + 32));
 *         }
 *         return 0;
 *     }
 *
 * A module uses EDGEHOST_PROCESS once, and EDGEHOST_INIT, EDGEHOST_TICK and
 * EDGEHOST_STOP at most once each. Rows are edited in place: nothing is decoded.
 *
 * Memory: what a row refers to must stay where it is until the next call. Static
 * data does; eh_alloc gives memory that does, and that is free again when the next
 * call begins. The header needs no libc when it is compiled with -mbulk-memory. It
 * may be included by several files of a module.
 */
#ifndef EDGEHOST_H
#define EDGEHOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- what lies in memory (docs/abi.md, sections 2 and 3) ---- */

/* eh_ref is a span of the module's memory. Length 0 is empty. */
typedef struct eh_ref { uint32_t ptr, len; } eh_ref;

typedef struct eh_batch {
    uint32_t version, header_size, row_size, flags;
    uint32_t rows, n_rows;    /* address and number of the input rows */
    uint32_t out_rows, n_out; /* preset to the input rows */
    int64_t time;             /* microseconds */
    uint64_t seq;
    eh_ref error; /* the words for a batch error; see eh_fail */
    uint32_t attr_size, reserved;
} eh_batch;

typedef struct eh_row {
    int64_t event_time, ingest_time; /* microseconds since the epoch, UTC */
    uint64_t value;                  /* by kind; see eh_get and eh_set */
    eh_ref source, address;
    eh_ref attrs;  /* len counts attributes; see eh_attr_get, _set, _del */
    eh_ref reason; /* see eh_reject */
    uint32_t status;
    uint32_t index;  /* the input row that this row derives from, or EH_NO_INDEX */
    uint32_t output; /* a handle of eh_output; 0 is the default */
    uint8_t kind;
    uint8_t protocol; /* read-only */
    uint8_t disposition, flags;
    uint64_t reserved;
} eh_row;

typedef struct eh_attr {
    eh_ref key;
    uint64_t value;
    uint8_t kind, reserved[7];
} eh_attr;

typedef char eh_assert_sizes_[sizeof(eh_batch) == 64 && sizeof(eh_row) == 80 && sizeof(eh_attr) == 24 ? 1 : -1];

enum { EH_NONE, EH_BOOL, EH_INT, EH_UINT, EH_FLOAT, EH_STRING, EH_BYTES, EH_JSON }; /* kinds */
enum { EH_NO_PROTOCOL, EH_OPCUA, EH_MQTT, EH_MODBUS };                             /* protocols */
enum { EH_DEBUG, EH_INFO, EH_WARN, EH_ERROR };                                     /* levels of eh_log */
enum { EH_FLAG_TICK = 1 };                                                         /* flags of a batch */
enum { EH_HAS_KV = 1, EH_HAS_METRICS = 2, EH_HAS_TICKS = 4 };                      /* eh_features */
enum { EH_NOT_FOUND = -1, EH_MEMORY = -2, EH_TOO_LARGE = -3, EH_DENIED = -4, EH_INVALID = -5 };
#define EH_NO_INDEX UINT32_MAX

/* eh_str is text or bytes of the module's memory: a view, not ended by 0. */
typedef struct eh_str { const char *ptr; uint32_t len; } eh_str;
#define EH_STR(literal) ((eh_str){(literal), sizeof(literal) - 1})

/* eh_value is a value of any kind, as it stands in a row or an attribute. */
typedef struct eh_value { uint64_t bits; uint8_t kind; } eh_value;

/* ---- the functions of the host (docs/abi.md, section 6) ---- */

#define EH_IMPORT_(module, name) __attribute__((import_module(module), import_name(name)))
EH_IMPORT_("edgehost", "log") int32_t eh_host_log(uint32_t level, const char *text, uint32_t len);
EH_IMPORT_("edgehost", "config_get") int32_t eh_host_config_get(const char *key, uint32_t key_len, char *buf, uint32_t buf_len);
EH_IMPORT_("edgehost", "output") int32_t eh_host_output(const char *name, uint32_t len);
EH_IMPORT_("edgehost", "features") int64_t eh_features(void);
EH_IMPORT_("edgehost", "kv_get") int32_t eh_host_kv_get(const char *key, uint32_t key_len, char *buf, uint32_t buf_len);
EH_IMPORT_("edgehost", "kv_set") int32_t eh_host_kv_set(const char *key, uint32_t key_len, const char *value, uint32_t len, int64_t ttl_ms);
EH_IMPORT_("edgehost", "kv_delete") int32_t eh_host_kv_delete(const char *key, uint32_t key_len);
EH_IMPORT_("edgehost", "metric") int32_t eh_host_metric(uint32_t kind, const char *name, uint32_t len);
EH_IMPORT_("edgehost", "metric_add") int32_t eh_metric_add(int32_t id, double delta);
EH_IMPORT_("edgehost", "metric_set") int32_t eh_metric_set(int32_t id, double value);
EH_IMPORT_("wasi_snapshot_preview1", "fd_write") int32_t eh_host_fd_write(int32_t fd, const void *iovs, int32_t n, uint32_t *written);

/* ---- memory ---- */

/* eh_chunk_ is one piece of the memory that eh_alloc cuts. Pieces are kept. */
typedef struct eh_chunk_ { struct eh_chunk_ *next; uint32_t size, used; uint32_t pad; } eh_chunk_;

typedef struct eh_state_ {
    uint32_t arena, arena_size; /* edgehost_alloc */
    eh_chunk_ *chunks, *now;
    int32_t refused;
    struct { /* the last edit of attributes in this call */
        eh_ref from, to, key;
        eh_value value;
        bool set;
    } memo;
} eh_state_;
__attribute__((weak)) eh_state_ eh_the_state_;

/* eh_grow_ takes fresh pages, so that it gets along with a malloc; 0 when there
 * are none. */
static inline uint32_t eh_grow_(uint32_t size) {
    uint32_t pages = (uint32_t)__builtin_wasm_memory_grow(0, size / 65536 + (size % 65536 != 0));
    return pages == UINT32_MAX ? 0 : pages << 16;
}

static inline void eh_add_chunk_(uint32_t at, uint32_t size) {
    eh_chunk_ *c = (eh_chunk_ *)(uintptr_t)at;
    c->size = size - sizeof *c;
    c->used = 0;
    c->next = eh_the_state_.chunks;
    eh_the_state_.chunks = c;
}

/* eh_alloc gives size bytes, 8-aligned, until the next call of the module. It
 * traps when memory is used up: the host knows why. */
static inline void *eh_alloc(uint32_t size) {
    size = (size + 7) & ~7u;
    for (eh_chunk_ *c = eh_the_state_.now; c; c = c->next)
        if (c->size - c->used >= size) {
            void *p = (char *)(c + 1) + c->used;
            c->used += size;
            eh_the_state_.now = c;
            return p;
        }
    if (size > UINT32_MAX - 2 * 65536)
        __builtin_trap();
    uint32_t room = (size + (uint32_t)sizeof(eh_chunk_) + 65535) & ~65535u;
    uint32_t at = eh_grow_(room);
    if (!at)
        __builtin_trap();
    eh_add_chunk_(at, room);
    eh_the_state_.now = eh_the_state_.chunks;
    eh_the_state_.now->used = size;
    return eh_the_state_.now + 1;
}

/* eh_begin_ frees what the last call allocated. */
static inline void eh_begin_(void) {
    for (eh_chunk_ *c = eh_the_state_.chunks; c; c = c->next)
        c->used = 0;
    eh_the_state_.now = eh_the_state_.chunks;
    eh_the_state_.memo.set = false;
}

/* eh_is_ours_ says whether an address is of eh_alloc. */
static inline bool eh_is_ours_(uint32_t ptr) {
    for (eh_chunk_ *c = eh_the_state_.chunks; c; c = c->next)
        if (ptr - (uint32_t)(uintptr_t)(c + 1) < c->used)
            return true;
    return false;
}

/* eh_arena_ is edgehost_alloc. A batch that outgrows the arena gets a new one, and
 * the old one goes to eh_alloc. */
static inline uint32_t eh_arena_(uint32_t size) {
    eh_state_ *s = &eh_the_state_;
    if (s->arena && size <= s->arena_size)
        return s->arena;
    if (size > UINT32_MAX / 2)
        return 0;
    uint32_t room = (size + size / 4 + 65536) & ~65535u, at = eh_grow_(room);
    if (!at)
        return 0;
    if (s->arena)
        eh_add_chunk_(s->arena, s->arena_size);
    s->arena = at;
    s->arena_size = room;
    return at;
}

/* ---- text ---- */

/* eh_text is a view of what a Ref refers to. */
static inline eh_str eh_text(eh_ref r) { return (eh_str){(const char *)(uintptr_t)r.ptr, r.len}; }

/* eh_ref_of refers to text that stays where it is. */
static inline eh_ref eh_ref_of(eh_str s) { return (eh_ref){(uint32_t)(uintptr_t)s.ptr, s.len}; }

static inline bool eh_equal(eh_str a, eh_str b) {
    if (a.len != b.len)
        return false;
    for (uint32_t i = 0; i < a.len; i++)
        if (a.ptr[i] != b.ptr[i])
            return false;
    return true;
}

/* eh_concat is a new text that lives until the next call. */
static inline eh_str eh_concat(eh_str a, eh_str b) {
    char *p = eh_alloc(a.len + b.len);
    __builtin_memcpy(p, a.ptr, a.len);
    __builtin_memcpy(p + a.len, b.ptr, b.len);
    return (eh_str){p, a.len + b.len};
}

/* eh_copy is the same text in memory that lives until the next call. */
static inline eh_str eh_copy(eh_str s) { return eh_concat(s, (eh_str){0, 0}); }

/* eh_parse reads a decimal number such as -12.5e3. Up to 15 digits and exponents
 * up to 22 it is exact, beyond that to about 15 digits. */
static inline bool eh_parse(eh_str s, double *v) {
    uint64_t m = 0;
    int32_t exp = 0, digits = 0, dot = 0;
    uint32_t i = 0;
    bool minus = i < s.len && s.ptr[i] == '-';
    if (i < s.len && (s.ptr[i] == '-' || s.ptr[i] == '+'))
        i++;
    for (; i < s.len; i++) {
        char c = s.ptr[i];
        if (c == '.' && !dot) {
            dot = 1;
        } else if (c >= '0' && c <= '9') {
            digits++;
            if (m < UINT64_C(100000000000000000)) {
                m = m * 10 + (uint64_t)(c - '0');
                exp -= dot;
            } else {
                exp += !dot;
            }
        } else {
            break;
        }
    }
    if (!digits)
        return false;
    if (i < s.len && (s.ptr[i] == 'e' || s.ptr[i] == 'E')) {
        int32_t e = 0, sign = 1, n = 0;
        i++;
        if (i < s.len && (s.ptr[i] == '-' || s.ptr[i] == '+'))
            sign = s.ptr[i++] == '-' ? -1 : 1;
        for (; i < s.len && s.ptr[i] >= '0' && s.ptr[i] <= '9'; i++, n++)
            if (e < 10000)
                e = e * 10 + (s.ptr[i] - '0');
        if (!n)
            return false;
        exp += sign * e;
    }
    if (i != s.len)
        return false;
    double d = (double)m;
    for (; m && exp > 0; exp -= exp > 22 ? 22 : exp) {
        double p = 1;
        for (int32_t k = exp > 22 ? 22 : exp; k; k--)
            p *= 10;
        d *= p;
        if (d > 1e308)
            break;
    }
    for (; m && exp < 0; exp += exp < -22 ? 22 : -exp) {
        double p = 1;
        for (int32_t k = exp < -22 ? 22 : -exp; k; k--)
            p *= 10;
        d /= p;
        if (d == 0)
            break;
    }
    *v = minus ? -d : d;
    return true;
}

/* ---- values ---- */

static inline eh_value eh_none(void) { return (eh_value){0, EH_NONE}; }
static inline eh_value eh_bool(bool v) { return (eh_value){v, EH_BOOL}; }
static inline eh_value eh_int(int64_t v) { return (eh_value){(uint64_t)v, EH_INT}; }
static inline eh_value eh_uint(uint64_t v) { return (eh_value){v, EH_UINT}; }
static inline eh_value eh_float(double v) {
    eh_value out = {0, EH_FLOAT};
    __builtin_memcpy(&out.bits, &v, sizeof v);
    return out;
}
/* eh_string, eh_bytes and eh_json refer to text that stays where it is. */
static inline eh_value eh_text_value_(eh_str s, uint8_t kind) {
    return (eh_value){(uint64_t)s.len << 32 | (uint32_t)(uintptr_t)s.ptr, kind};
}
static inline eh_value eh_string(eh_str s) { return eh_text_value_(s, EH_STRING); }
static inline eh_value eh_bytes(eh_str s) { return eh_text_value_(s, EH_BYTES); }
static inline eh_value eh_json(eh_str s) { return eh_text_value_(s, EH_JSON); }

/* eh_number is the value as a double, when it is a bool or a number of any kind. */
static inline bool eh_number(eh_value v, double *out) {
    switch (v.kind) {
    case EH_FLOAT: __builtin_memcpy(out, &v.bits, sizeof *out); return true;
    case EH_INT: *out = (double)(int64_t)v.bits; return true;
    case EH_UINT:
    case EH_BOOL: *out = (double)v.bits; return true;
    }
    return false;
}

/* eh_value_text is the text of a string, bytes or json value. */
static inline bool eh_value_text(eh_value v, eh_str *out) {
    if (v.kind < EH_STRING || v.kind > EH_JSON)
        return false;
    *out = eh_text((eh_ref){(uint32_t)v.bits, (uint32_t)(v.bits >> 32)});
    return true;
}

/* ---- rows ---- */

/* eh_row_at is the input row i. Rows lie row_size apart, which may be more than
 * sizeof(eh_row). */
static inline eh_row *eh_row_at(const eh_batch *b, uint32_t i) {
    return (eh_row *)(uintptr_t)(b->rows + i * b->row_size);
}

static inline eh_value eh_get(const eh_row *r) { return (eh_value){r->value, r->kind}; }
static inline void eh_set(eh_row *r, eh_value v) { r->value = v.bits, r->kind = v.kind; }

/* eh_reject sends the record as it arrived to the dead-letter queue. */
static inline void eh_reject(eh_row *r, eh_str reason) { r->disposition = 1, r->reason = eh_ref_of(reason); }

/* eh_fail makes the whole batch fail: return eh_fail(b, EH_STR("why")); */
static inline int32_t eh_fail(eh_batch *b, eh_str reason) {
    b->error = eh_ref_of(reason);
    return 1;
}

/* ---- attributes ---- */

/* eh_attr_at is the attribute i of a row. */
static inline eh_attr *eh_attr_at(const eh_batch *b, const eh_row *r, uint32_t i) {
    return (eh_attr *)(uintptr_t)(r->attrs.ptr + i * b->attr_size);
}

static inline eh_attr *eh_attr_find_(const eh_batch *b, const eh_row *r, eh_str key) {
    for (uint32_t i = 0; i < r->attrs.len; i++)
        if (eh_equal(eh_text(eh_attr_at(b, r, i)->key), key))
            return eh_attr_at(b, r, i);
    return NULL;
}

/* eh_attr_get finds an attribute. */
static inline bool eh_attr_get(const eh_batch *b, const eh_row *r, eh_str key, eh_value *v) {
    const eh_attr *a = eh_attr_find_(b, r, key);
    if (a)
        *v = (eh_value){a->value, a->kind};
    return a != NULL;
}

/* eh_attr_room_ is how many attributes an array of ours may hold before it must
 * move; it stands before the array. 0 while several rows may refer to it. */
static inline uint32_t *eh_attr_room_(uint32_t ptr) { return (uint32_t *)(uintptr_t)(ptr - 8); }

static inline void eh_attr_share_(const eh_row *r) {
    if (r->attrs.len && eh_is_ours_(r->attrs.ptr))
        *eh_attr_room_(r->attrs.ptr) = 0;
}

/* eh_attr_own_ gives the row an array of its own with room for n. */
static inline void eh_attr_own_(const eh_batch *b, eh_row *r, uint32_t n) {
    if (r->attrs.len && eh_is_ours_(r->attrs.ptr) && *eh_attr_room_(r->attrs.ptr) >= n)
        return;
    uint32_t room = n + 2;
    char *p = (char *)eh_alloc(8 + room * b->attr_size) + 8;
    __builtin_memcpy(p, (const char *)(uintptr_t)r->attrs.ptr, r->attrs.len * b->attr_size);
    r->attrs.ptr = (uint32_t)(uintptr_t)p;
    *eh_attr_room_(r->attrs.ptr) = room;
}

static inline bool eh_same_ref_(eh_ref a, eh_ref b) { return a.ptr == b.ptr && a.len == b.len; }

/* eh_attr_set sets an attribute. Key and text must stay where they are. Rows that
 * share their attributes and get the same edit one after the other share the
 * result, which costs the host one look. */
static inline void eh_attr_set(const eh_batch *b, eh_row *r, eh_str key, eh_value v) {
    eh_state_ *s = &eh_the_state_;
    eh_ref from = r->attrs, k = eh_ref_of(key);
    if (s->memo.set && eh_same_ref_(s->memo.from, from) && eh_same_ref_(s->memo.key, k) &&
        s->memo.value.bits == v.bits && s->memo.value.kind == v.kind) {
        r->attrs = s->memo.to;
        eh_attr_share_(r);
        return;
    }
    eh_attr_own_(b, r, r->attrs.len + 1);
    eh_attr *a = eh_attr_find_(b, r, key);
    if (!a) {
        a = eh_attr_at(b, r, r->attrs.len++);
        __builtin_memset(a, 0, b->attr_size);
        a->key = k;
    }
    a->value = v.bits;
    a->kind = v.kind;
    s->memo.set = from.ptr != r->attrs.ptr; /* an array that is edited again is not remembered */
    s->memo.from = from, s->memo.to = r->attrs, s->memo.key = k, s->memo.value = v;
}

/* eh_attr_del removes an attribute, if there is one. */
static inline void eh_attr_del(const eh_batch *b, eh_row *r, eh_str key) {
    if (!eh_attr_find_(b, r, key))
        return;
    eh_the_state_.memo.set = false;
    eh_attr_own_(b, r, r->attrs.len);
    char *a = (char *)eh_attr_find_(b, r, key);
    char *end = (char *)eh_attr_at(b, r, --r->attrs.len);
    for (; a < end; a += b->attr_size)
        __builtin_memcpy(a, a + b->attr_size, b->attr_size);
}

/* ---- output ---- */

/* eh_keep makes row i the next output row: for (i = n = 0; …) if (…) eh_keep(b, i, &n);
 * b->n_out = n. */
static inline void eh_keep(const eh_batch *b, uint32_t i, uint32_t *n) {
    if (i != *n)
        __builtin_memcpy(eh_row_at(b, *n), eh_row_at(b, i), b->row_size);
    ++*n;
}

/* eh_out collects output rows of any number and order:
 *     eh_out out = eh_out_begin(b); … eh_emit(&out, r); … eh_out_end(&out); */
typedef struct eh_out { eh_batch *b; char *rows; uint32_t n, room; } eh_out;

static inline eh_out eh_out_begin(eh_batch *b) {
    uint32_t room = b->n_rows < 16 ? 16 : b->n_rows;
    return (eh_out){b, eh_alloc(room * b->row_size), 0, room};
}

static inline eh_row *eh_out_next_(eh_out *o) {
    uint32_t size = o->b->row_size;
    if (o->n == o->room) {
        char *rows = eh_alloc(2 * o->room * size);
        __builtin_memcpy(rows, o->rows, o->n * size);
        o->rows = rows;
        o->room *= 2;
    }
    return (eh_row *)(o->rows + o->n++ * size);
}

/* eh_emit adds a copy of a row and returns it; it may be edited until the next
 * row is added. */
static inline eh_row *eh_emit(eh_out *o, const eh_row *r) {
    eh_row *to = eh_out_next_(o);
    __builtin_memcpy(to, r, o->b->row_size);
    eh_attr_share_(r);
    return to;
}

/* eh_emit_new adds a record that derives from no input row. */
static inline eh_row *eh_emit_new(eh_out *o) {
    eh_row *to = eh_out_next_(o);
    __builtin_memset(to, 0, o->b->row_size);
    to->index = EH_NO_INDEX;
    to->event_time = to->ingest_time = o->b->time;
    return to;
}

static inline void eh_out_end(eh_out *o) {
    o->b->out_rows = (uint32_t)(uintptr_t)o->rows;
    o->b->n_out = o->n;
}

/* ---- host ---- */

static inline void eh_log(uint32_t level, eh_str text) { eh_host_log(level, text.ptr, text.len); }

/* eh_refuse makes edgehost refuse the deployment with a reason. For EDGEHOST_INIT. */
static inline void eh_refuse(eh_str reason) {
    eh_str lines[2] = {reason, EH_STR("\n")};
    uint32_t written;
    eh_host_fd_write(2, lines, 2, &written);
    eh_the_state_.refused = 1;
}

/* eh_fetch_ reads a value of a length that is not known; it lives until the next call. */
static inline bool eh_fetch_(int32_t (*get)(const char *, uint32_t, char *, uint32_t), eh_str key, eh_str *out) {
    char *buf = eh_alloc(256);
    int32_t n = get(key.ptr, key.len, buf, 256);
    while (n > 256) { /* the value may change size only through this module */
        uint32_t size = (uint32_t)n;
        buf = eh_alloc(size);
        n = get(key.ptr, key.len, buf, size);
        if (n <= (int32_t)size)
            break;
    }
    if (n < 0)
        return false;
    *out = (eh_str){buf, (uint32_t)n};
    return true;
}

/* eh_keep_text copies text into memory that is never freed: for EDGEHOST_INIT. */
static inline eh_str eh_keep_text(eh_str s) {
    static char *at;
    static uint32_t left;
    if (s.len > left) {
        left = (s.len + 65535) & ~65535u;
        at = (char *)(uintptr_t)eh_grow_(left);
        if (!at)
            __builtin_trap();
    }
    char *p = at;
    __builtin_memcpy(p, s.ptr, s.len);
    at += s.len;
    left -= s.len;
    return (eh_str){p, s.len};
}

/* eh_config is a value of the deployment's configuration, empty when the key is not
 * set; it lives as long as the module. */
static inline eh_str eh_config(eh_str key) {
    eh_str v = {0, 0};
    if (eh_fetch_(eh_host_config_get, key, &v))
        v = eh_keep_text(v);
    return v;
}

/* eh_config_number is a value as a number. One that is no number refuses the
 * deployment. */
static inline double eh_config_number(eh_str key, double fallback) {
    eh_str v;
    double d;
    if (!eh_fetch_(eh_host_config_get, key, &v))
        return fallback;
    if (eh_parse(v, &d))
        return d;
    eh_refuse(eh_concat(eh_concat(EH_STR("config key "), key), eh_concat(EH_STR(": "), eh_concat(v, EH_STR(" is no number")))));
    return fallback;
}

/* eh_output is the handle of an output. A name that the deployment does not have
 * refuses it. */
static inline uint32_t eh_output(eh_str name) {
    int32_t h = eh_host_output(name.ptr, name.len);
    if (h >= 0)
        return (uint32_t)h;
    eh_refuse(eh_concat(EH_STR("output "), eh_concat(name, EH_STR(" is not configured for this module"))));
    return 0;
}

/* The module's state. Writes are committed with the records of the batch, or not
 * at all. ttl_ms 0 keeps a key for ever. Below 0 is an error. */
static inline bool eh_kv_get(eh_str key, eh_str *value) { return eh_fetch_(eh_host_kv_get, key, value); }
static inline int32_t eh_kv_set(eh_str key, eh_str value, int64_t ttl_ms) {
    return eh_host_kv_set(key.ptr, key.len, value.ptr, value.len, ttl_ms);
}
static inline int32_t eh_kv_delete(eh_str key) { return eh_host_kv_delete(key.ptr, key.len); }

/* A counter only grows (eh_metric_add); a gauge is set (eh_metric_set). */
static inline int32_t eh_counter(eh_str name) { return eh_host_metric(0, name.ptr, name.len); }
static inline int32_t eh_gauge(eh_str name) { return eh_host_metric(1, name.ptr, name.len); }

/* ---- exports ---- */

#define EH_EXPORT_(name) __attribute__((export_name(name)))

#define EDGEHOST_PROCESS(b)                                                              \
    static int32_t eh_process_(eh_batch *b);                                             \
    EH_EXPORT_("edgehost_abi_v1") void edgehost_abi_v1(void) {}                          \
    EH_EXPORT_("edgehost_alloc") uint32_t edgehost_alloc(uint32_t size) { return eh_arena_(size); } \
    EH_EXPORT_("edgehost_process") int32_t edgehost_process(eh_batch *batch) {           \
        eh_begin_();                                                                     \
        return eh_process_(batch);                                                       \
    }                                                                                    \
    static int32_t eh_process_(eh_batch *b)

/* EDGEHOST_INIT() { … } runs once; eh_refuse within refuses the deployment. */
#define EDGEHOST_INIT()                                          \
    static void eh_init_(void);                                  \
    EH_EXPORT_("edgehost_init") int32_t edgehost_init(void) {    \
        eh_begin_();                                             \
        eh_init_();                                              \
        return eh_the_state_.refused;                            \
    }                                                            \
    static void eh_init_(void)

#define EDGEHOST_TICK(b)                                               \
    static int32_t eh_tick_(eh_batch *b);                              \
    EH_EXPORT_("edgehost_tick") int32_t edgehost_tick(eh_batch *batch) { \
        eh_begin_();                                                   \
        return eh_tick_(batch);                                        \
    }                                                                  \
    static int32_t eh_tick_(eh_batch *b)

#define EDGEHOST_STOP() EH_EXPORT_("edgehost_stop") void edgehost_stop(void)

#endif
