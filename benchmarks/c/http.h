/* An incremental reader of HTTP/1.1 messages: a head, then a body by content-length or in chunks. */
#ifndef TOKENWEIR_BENCH_HTTP_H
#define TOKENWEIR_BENCH_HTTP_H

#include "common.h"

enum { HTTP_MORE = 0, HTTP_DONE = 1, HTTP_BAD = -1 };

typedef struct {
    enum { IN_HEAD, IN_LENGTH, IN_SIZE, IN_CHUNK, IN_CHUNK_END, IN_TRAILER, AT_END } state;
    int status;        /* of a response; 0 in a request */
    bool close;        /* the peer closes the connection after this message */
    size_t left;       /* bytes that the body or the chunk still has */
    char target[256];  /* of a request */
    Buffer body;       /* the body, without the framing of chunks */
} Message;

static inline void message_reset(Message *m) {
    m->state = IN_HEAD;
    m->status = 0;
    m->close = false;
    m->left = 0;
    m->body.start = m->body.end = 0;
}

/* Finds a header; returns its value, which ends at CR, or NULL. */
static inline const char *header_value(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; line < end;) {
        const char *eol = memchr(line, '\n', end - line);
        if (!eol) return NULL;
        if ((size_t)(eol - line) > length && line[length] == ':' && !strncasecmp(line, name, length)) {
            line += length + 1;
            while (line < eol && *line == ' ') line++;
            return line;
        }
        line = eol + 1;
    }
    return NULL;
}

static inline int message_head(Message *m, Buffer *in, bool bodiless) {
    char *head = buffer_bytes(in), *end = memmem(head, buffer_length(in), "\r\n\r\n", 4);
    if (!end) return buffer_length(in) > 65536 ? HTTP_BAD : HTTP_MORE;
    end += 4;
    if (!memcmp(head, "HTTP/1.", 7)) {
        m->status = atoi(head + 9);
    } else {
        const char *target = memchr(head, ' ', end - head);
        if (!target) return HTTP_BAD;
        size_t length = strcspn(++target, " \r\n");
        if (length >= sizeof m->target) return HTTP_BAD;
        memcpy(m->target, target, length);
        m->target[length] = 0;
    }
    const char *value = header_value(head, end, "connection");
    m->close = value && !strncasecmp(value, "close", 5);
    if ((value = header_value(head, end, "transfer-encoding")) && !strncasecmp(value, "chunked", 7)) {
        m->state = IN_SIZE;
    } else if ((value = header_value(head, end, "content-length"))) {
        m->left = strtoul(value, NULL, 10);
        m->state = m->left ? IN_LENGTH : AT_END;
    } else if (bodiless) {
        m->state = AT_END;
    } else {
        return HTTP_BAD; /* a body until the connection ends: it can't be seen to be complete */
    }
    in->start += end - head;
    return HTTP_MORE;
}

/* Takes bytes of the body. Returns false if there are none left in `in`. */
static inline bool message_take(Message *m, Buffer *in) {
    size_t some = buffer_length(in) < m->left ? buffer_length(in) : m->left;
    buffer_add(&m->body, buffer_bytes(in), some);
    in->start += some;
    return !(m->left -= some);
}

/* Reads on. HTTP_DONE: the message is complete; HTTP_MORE: more bytes are needed. A message without length and chunks
   has no body if `bodiless`, else it is bad. */
static inline int message_read(Message *m, Buffer *in, bool bodiless) {
    for (;;) {
        if (m->state == AT_END) return HTTP_DONE;
        if (!buffer_length(in)) return HTTP_MORE;
        if (m->state == IN_HEAD) {
            int result = message_head(m, in, bodiless);
            if (result != HTTP_MORE || m->state == IN_HEAD) return result;
        } else if (m->state == IN_LENGTH) {
            if (!message_take(m, in)) return HTTP_MORE;
            m->state = AT_END;
        } else if (m->state == IN_CHUNK) {
            if (!message_take(m, in)) return HTTP_MORE;
            m->state = IN_CHUNK_END;
        } else { /* a line: a chunk's size, its end, or the trailer */
            char *line = buffer_bytes(in), *eol = memchr(line, '\n', buffer_length(in));
            if (!eol) return buffer_length(in) > 4096 ? HTTP_BAD : HTTP_MORE;
            in->start += eol + 1 - line;
            if (m->state == IN_SIZE) {
                char *end;
                m->left = strtoul(line, &end, 16);
                if (end == line) return HTTP_BAD;
                m->state = m->left ? IN_CHUNK : IN_TRAILER;
            } else if (m->state == IN_CHUNK_END) {
                m->state = IN_SIZE;
            } else if (eol == line || eol == line + 1) {
                m->state = AT_END;
            }
        }
    }
}

#endif
