// The same operators in C on protobuf bytes: one pass over the input, unchanged
// fields are copied, the output is written backwards-free with lengths computed
// first. Fields: see peer/peer.proto.
#include <stdint.h>

typedef struct { const uint8_t *p, *end; } reader;

static inline uint64_t varint(reader *r) {
    uint64_t v = 0;
    for (uint32_t s = 0; r->p < r->end && s < 64; s += 7) {
        uint8_t c = *r->p++;
        v |= (uint64_t)(c & 0x7f) << s;
        if (!(c & 0x80))
            break;
    }
    return v;
}

static inline uint8_t *put_varint(uint8_t *o, uint64_t v) {
    while (v >= 0x80) {
        *o++ = (uint8_t)v | 0x80;
        v >>= 7;
    }
    *o++ = (uint8_t)v;
    return o;
}

static inline uint32_t varint_size(uint64_t v) {
    uint32_t n = 1;
    while (v >= 0x80) {
        v >>= 7;
        n++;
    }
    return n;
}

typedef struct { uint32_t key; const uint8_t *ptr; uint32_t len; uint64_t bits; } field;

static inline field next_field(reader *r) {
    field f = {(uint32_t)varint(r), 0, 0, 0};
    switch (f.key & 7) {
    case 0: f.bits = varint(r); break;
    case 1:
        __builtin_memcpy(&f.bits, r->p, 8);
        r->p += 8;
        break;
    case 2:
        f.len = (uint32_t)varint(r);
        f.ptr = r->p;
        r->p += f.len;
        break;
    case 5: r->p += 4; break;
    }
    return f;
}

typedef struct { field key, value; uint32_t size; } attr;

typedef struct {
    int64_t event_time, ingest_time;
    field source, address, value;
    uint32_t protocol, status, n_attrs;
    attr attrs[16];
} record;

static inline void read_record(record *rec, const uint8_t *p, uint32_t n) {
    reader r = {p, p + n};
    rec->event_time = rec->ingest_time = 0;
    rec->protocol = rec->status = rec->n_attrs = 0;
    rec->source.len = rec->address.len = 0;
    rec->value.key = 0;
    while (r.p < r.end) {
        field f = next_field(&r);
        switch (f.key >> 3) {
        case 1: rec->event_time = (int64_t)f.bits; break;
        case 2: rec->ingest_time = (int64_t)f.bits; break;
        case 3: rec->source = f; break;
        case 4: rec->address = f; break;
        case 5: rec->protocol = (uint32_t)f.bits; break;
        case 6: rec->status = (uint32_t)f.bits; break;
        case 7: case 8: case 10: case 11: rec->value = f; break;
        case 12:
            if (rec->n_attrs < 16) {
                attr *a = &rec->attrs[rec->n_attrs++];
                reader s = {f.ptr, f.ptr + f.len};
                a->key.len = 0;
                a->value.key = 0;
                while (s.p < s.end) {
                    field g = next_field(&s);
                    if (g.key >> 3 == 1)
                        a->key = g;
                    else
                        a->value = g;
                }
            }
            break;
        }
    }
}

static inline uint32_t value_size(const field *f) {
    switch (f->key & 7) {
    case 0: return f->key ? 1 + varint_size(f->bits) : 0;
    case 1: return 9;
    default: return 1 + varint_size(f->len) + f->len;
    }
}

static inline uint8_t *put_text(uint8_t *o, uint32_t key, const char *pre, uint32_t n_pre, const field *f) {
    *o++ = (uint8_t)key;
    o = put_varint(o, n_pre + f->len);
    __builtin_memcpy(o, pre, n_pre);
    __builtin_memcpy(o + n_pre, f->ptr, f->len);
    return o + n_pre + f->len;
}

static inline uint8_t *put_value(uint8_t *o, const field *f) {
    if (!f->key)
        return o;
    if ((f->key & 7) == 2)
        return put_text(o, f->key, "", 0, f);
    *o++ = (uint8_t)f->key;
    if ((f->key & 7) == 0)
        return put_varint(o, f->bits);
    __builtin_memcpy(o, &f->bits, 8);
    return o + 8;
}

static inline uint8_t *put_record(uint8_t *o, record *rec, const char *pre, uint32_t n_pre) {
    uint32_t address = n_pre + rec->address.len;
    uint32_t n = 1 + varint_size((uint64_t)rec->event_time) + 1 + varint_size((uint64_t)rec->ingest_time) +
                 1 + varint_size(rec->source.len) + rec->source.len + 1 + varint_size(address) + address +
                 1 + varint_size(rec->protocol) + value_size(&rec->value);
    if (rec->status)
        n += 1 + varint_size(rec->status);
    for (uint32_t i = 0; i < rec->n_attrs; i++) {
        attr *a = &rec->attrs[i];
        a->size = 1 + varint_size(a->key.len) + a->key.len + value_size(&a->value);
        n += 1 + varint_size(a->size) + a->size;
    }
    *o++ = 1 << 3 | 2;
    o = put_varint(o, n);
    *o++ = 1 << 3;
    o = put_varint(o, (uint64_t)rec->event_time);
    *o++ = 2 << 3;
    o = put_varint(o, (uint64_t)rec->ingest_time);
    o = put_text(o, 3 << 3 | 2, "", 0, &rec->source);
    o = put_text(o, 4 << 3 | 2, pre, n_pre, &rec->address);
    *o++ = 5 << 3;
    o = put_varint(o, rec->protocol);
    if (rec->status) {
        *o++ = 6 << 3;
        o = put_varint(o, rec->status);
    }
    o = put_value(o, &rec->value);
    for (uint32_t i = 0; i < rec->n_attrs; i++) {
        attr *a = &rec->attrs[i];
        *o++ = 12 << 3 | 2;
        o = put_varint(o, a->size);
        o = put_text(o, 1 << 3 | 2, "", 0, &a->key);
        o = put_value(o, &a->value);
    }
    return o;
}

// transform reads n bytes of a batch and writes the result to out, which must
// have room for 2 * n bytes.
static inline uint32_t transform(uint8_t op, const uint8_t *in, uint32_t n, uint8_t *out) {
    static record rec;
    reader r = {in, in + n};
    uint8_t *o = out;
    while (r.p < r.end) {
        field f = next_field(&r);
        if (f.key != (1 << 3 | 2))
            continue;
        read_record(&rec, f.ptr, f.len);
        double v;
        __builtin_memcpy(&v, &rec.value.bits, 8);
        int is_float = rec.value.key == (10 << 3 | 1);
        if (op == 'f' && is_float && !(v > 50))
            continue;
        if (op == 's' && is_float) {
            v = v * 1.8 + 32;
            __builtin_memcpy(&rec.value.bits, &v, 8);
        }
        o = put_record(o, &rec, "site/", op == 's' ? 5 : 0);
    }
    return (uint32_t)(o - out);
}
