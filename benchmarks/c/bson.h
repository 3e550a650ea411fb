/* As much of BSON as the sink needs: find a member, and build a document. */
#ifndef TOKENWEIR_BENCH_BSON_H
#define TOKENWEIR_BENCH_BSON_H

#include "common.h"

enum { B_DOUBLE = 1, B_STRING = 2, B_DOCUMENT = 3, B_ARRAY = 4, B_BOOL = 8, B_INT32 = 16, B_INT64 = 18 };

typedef struct {
    int type; /* 0: there is no such member */
    const char *value;
    const char *name;
} Member;

static inline int32_t int32_at(const char *data) {
    int32_t value;
    memcpy(&value, data, 4);
    return value;
}

static inline int64_t int64_at(const char *data) {
    int64_t value;
    memcpy(&value, data, 8);
    return value;
}

static inline size_t value_size(int type, const char *value) {
    switch (type) {
        case 1: case 9: case 17: case 18: return 8;
        case 2: case 13: case 14: return 4 + int32_at(value);
        case 3: case 4: return int32_at(value);
        case 5: return 5 + int32_at(value);
        case 7: return 12;
        case 8: return 1;
        case 16: return 4;
        case 19: return 16;
        case 6: case 10: case 127: case 255: return 0;
        case 11: { size_t pattern = strlen(value) + 1; return pattern + strlen(value + pattern) + 1; }
        default: die("a BSON type that the sink does not know: %d", type); return 0;
    }
}

/* Takes the next member; `at` is 4 bytes into a document at first. */
static inline bool next_member(const char **at, Member *m) {
    if (!**at) return false;
    m->type = (unsigned char)**at;
    m->name = *at + 1;
    m->value = m->name + strlen(m->name) + 1;
    *at = m->value + value_size(m->type, m->value);
    return true;
}

static inline Member find_member(const char *document, const char *name) {
    Member m;
    for (const char *at = document + 4; next_member(&at, &m);)
        if (!strcmp(m.name, name)) return m;
    return (Member){0, NULL, NULL};
}

static inline const char *text_of(Member m) { return m.type == B_STRING ? m.value + 4 : ""; }

static inline int64_t number_of(Member m) {
    double real;
    if (m.type == B_INT32) return int32_at(m.value);
    if (m.type == B_INT64) return int64_at(m.value);
    if (m.type != B_DOUBLE) return 0;
    memcpy(&real, m.value, 8);
    return (int64_t)real;
}

/* Begins a member of a document; returns nothing: its value follows. */
static inline void put_name(Buffer *b, int type, const char *name) {
    char t = type;
    buffer_add(b, &t, 1);
    buffer_add(b, name, strlen(name) + 1);
}

static inline size_t open_document(Buffer *b) {
    int32_t later = 0;
    size_t at = b->end - b->start;
    buffer_add(b, &later, 4);
    return at;
}

static inline void close_document(Buffer *b, size_t at) {
    buffer_add(b, "", 1);
    int32_t length = b->end - b->start - at;
    memcpy(b->data + b->start + at, &length, 4);
}

static inline void put_int32(Buffer *b, const char *name, int32_t value) {
    put_name(b, B_INT32, name);
    buffer_add(b, &value, 4);
}

static inline void put_int64(Buffer *b, const char *name, int64_t value) {
    put_name(b, B_INT64, name);
    buffer_add(b, &value, 8);
}

static inline void put_double(Buffer *b, const char *name, double value) {
    put_name(b, B_DOUBLE, name);
    buffer_add(b, &value, 8);
}

static inline void put_bool(Buffer *b, const char *name, bool value) {
    put_name(b, B_BOOL, name);
    buffer_add(b, value ? "\1" : "\0", 1);
}

static inline void put_text(Buffer *b, const char *name, const char *value) {
    int32_t length = strlen(value) + 1;
    put_name(b, B_STRING, name);
    buffer_add(b, &length, 4);
    buffer_add(b, value, length);
}

static inline size_t put_document(Buffer *b, const char *name) {
    put_name(b, B_DOCUMENT, name);
    return open_document(b);
}

static inline size_t put_array(Buffer *b, const char *name) {
    put_name(b, B_ARRAY, name);
    return open_document(b);
}

#endif
