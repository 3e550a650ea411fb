/* The service that the Lua filter of the compared design calls: POST /checkLimit before, POST /insert after.

     meter PORT [REDIS-PORT]

   A body has the members serviceAccount and clientIP; that of /insert also tokenInput, tokenOutput and tokenTotal.
   Tokens are counted for each service account and for each pair of account and client IP, per day (UTC).
   /checkLimit answers 200, or 400 if a count has reached its limit (10^15: never, here). Without REDIS-PORT the
   counts are in memory; with it they are in Redis, by one connection that is written once for all requests at hand.
   A check is one MGET, an insert is two INCRBY and two EXPIRE in one write. GET /stats gives what was inserted. */
#define _GNU_SOURCE
#include "http.h"

#define SLOTS 65536
#define LIMIT 1000000000000000ll
#define DAY_S 86400

typedef struct Client {
    int fd;
    bool watched, waiting;
    Buffer in, out;
    Message message;
    struct Client *next_closed;
} Client;

typedef struct { char key[128]; int64_t count; } Slot;

typedef struct { Client *client; bool check; int replies; bool over; } Pending;

static int epoll, redis = -1;
static bool redis_watched;
static Buffer redis_in, redis_out;
static Pending *pending;
static size_t pending_first, pending_end, pending_size;
static Slot slots[SLOTS];
static Client *closed;
static uint64_t checks, inserts, tokens;

static int64_t *counter(const char *key) {
    uint32_t hash = 2166136261u;
    for (const char *c = key; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    for (uint32_t i = 0; i < SLOTS; i++) {
        Slot *slot = &slots[(hash + i) % SLOTS];
        if (!slot->key[0]) strncpy(slot->key, key, sizeof slot->key - 1);
        if (!strcmp(slot->key, key)) return &slot->count;
    }
    die("too many callers");
    return NULL;
}

/* Copies a member's value without its quotes; "" if it is missing. */
static void member(const char *body, const char *name, char *value, size_t size) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", name);
    const char *found = strstr(body, quoted);
    value[0] = 0;
    if (!found) return;
    found += strlen(quoted);
    if (*found == '"') found++;
    size_t length = strcspn(found, "\",}");
    if (length >= size) length = size - 1;
    memcpy(value, found, length);
    value[length] = 0;
}

static void drop(Client *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    if (c->waiting) return; /* freed when Redis has answered */
    c->next_closed = closed;
    closed = c;
}

static void flush(Client *c) {
    if (!buffer_flush(&c->out, epoll, c->fd, &c->watched, c)) drop(c);
}

static void respond(Client *c, int status, const char *body) {
    char head[256];
    size_t length = strlen(body);
    buffer_add(&c->out, head, sprintf(head, "HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\ncontent-length: %zu\r\n\r\n",
                                      status, status == 200 ? "OK" : "Bad Request", length));
    buffer_add(&c->out, body, length);
    flush(c);
}

static void verdict(Client *c, bool over) {
    respond(c, over ? 400 : 200, over ? "Usage over limit" : "ok");
}

static void await(Client *c, bool check, int replies) {
    if (pending_end == pending_size) {
        if (pending_first) {
            memmove(pending, pending + pending_first, (pending_end - pending_first) * sizeof *pending);
            pending_end -= pending_first;
            pending_first = 0;
        } else {
            pending_size = pending_size ? 2 * pending_size : 1024;
            pending = realloc(pending, pending_size * sizeof *pending);
        }
    }
    pending[pending_end++] = (Pending){c, check, replies, false};
    c->waiting = true;
}

static void command(const char *verb, const char *one, const char *two) {
    char text[512];
    int length = snprintf(text, sizeof text, "*3\r\n$%zu\r\n%s\r\n$%zu\r\n%s\r\n$%zu\r\n%s\r\n", strlen(verb), verb,
                          strlen(one), one, strlen(two), two);
    buffer_add(&redis_out, text, length);
}

static void serve(Client *c) {
    char account[48], address[40], number[24], by_account[128], by_both[128], date[16];
    if (!strcmp(c->message.target, "/stats")) {
        char body[256];
        sprintf(body, "{\"checks\":%llu,\"inserts\":%llu,\"tokens\":%llu}", (unsigned long long)checks,
                (unsigned long long)inserts, (unsigned long long)tokens);
        return respond(c, 200, body);
    }
    buffer_add(&c->message.body, "", 1);
    const char *body = buffer_bytes(&c->message.body);
    bool check = !strcmp(c->message.target, "/checkLimit");
    time_t now = time(NULL);
    struct tm day;
    strftime(date, sizeof date, "%Y-%m-%d", gmtime_r(&now, &day));
    member(body, "serviceAccount", account, sizeof account);
    member(body, "clientIP", address, sizeof address);
    member(body, "tokenTotal", number, sizeof number);
    snprintf(by_account, sizeof by_account, "usage:%s:%s", date, account);
    snprintf(by_both, sizeof by_both, "usage:%s:%s:%s", date, account, address);
    int64_t total = atoll(number);
    if (check) {
        checks++;
    } else {
        inserts++;
        tokens += total;
    }
    if (redis < 0) {
        int64_t *one = counter(by_account), *both = counter(by_both);
        if (!check) {
            *one += total;
            *both += total;
        }
        return verdict(c, check && (*one >= LIMIT || *both >= LIMIT));
    }
    if (check) {
        command("MGET", by_account, by_both);
        return await(c, true, 1);
    }
    snprintf(number, sizeof number, "%lld", (long long)total);
    char seconds[24];
    snprintf(seconds, sizeof seconds, "%d", 2 * DAY_S);
    command("INCRBY", by_account, number);
    command("INCRBY", by_both, number);
    command("EXPIRE", by_account, seconds);
    command("EXPIRE", by_both, seconds);
    await(c, false, 4);
}

static void receive(Client *c) {
    int got = buffer_read(&c->in, c->fd);
    if (got < 0) return drop(c);
    while (c->fd >= 0 && !c->waiting) {
        int state = message_read(&c->message, &c->in, true);
        if (state == HTTP_BAD) return drop(c);
        if (state == HTTP_MORE) return;
        serve(c);
        message_reset(&c->message);
    }
}

/* Reads one reply of Redis; a value in it that reaches the limit sets `over`. Returns its length; 0: incomplete. */
static size_t reply_length(const char *data, size_t length, bool *over) {
    const char *eol = memmem(data, length, "\r\n", 2);
    if (!eol) return 0;
    size_t used = eol + 2 - data;
    long long number = atoll(data + 1);
    if (*data == '-') die("redis: %.*s", (int)(eol - data), data);
    if (*data == '$' && number >= 0) {
        if (length < used + number + 2) return 0;
        *over |= atoll(data + used) >= LIMIT;
        return used + number + 2;
    }
    if (*data == '*')
        for (long long i = 0; i < number; i++) {
            size_t part = reply_length(data + used, length - used, over);
            if (!part) return 0;
            used += part;
        }
    return used;
}

static void redis_receive(void) {
    int got = buffer_read(&redis_in, redis);
    if (got < 0) die("redis: the connection ended");
    while (buffer_length(&redis_in)) {
        Pending *p = &pending[pending_first];
        size_t length = reply_length(buffer_bytes(&redis_in), buffer_length(&redis_in), &p->over);
        if (!length) return;
        redis_in.start += length;
        if (--p->replies) continue;
        Client *c = p->client;
        pending_first++;
        c->waiting = false;
        if (c->fd < 0) {
            c->next_closed = closed;
            closed = c;
        } else {
            verdict(c, p->check && p->over);
        }
    }
}

static void redis_flush(void) {
    if (redis < 0 || !buffer_length(&redis_out)) return;
    if (!buffer_flush(&redis_out, epoll, redis, &redis_watched, &redis)) die("redis: the connection ended");
}

int main(int argc, char **argv) {
    if (argc < 2) die("usage: meter PORT [REDIS-PORT]");
    int listener = listen_on(atoi(argv[1]));
    epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    if (argc > 2) {
        if ((redis = connect_to(atoi(argv[2]))) < 0) die("can't connect to Redis");
        watch(epoll, EPOLL_CTL_ADD, redis, EPOLLIN, &redis);
    }
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            void *data = events[i].data.ptr;
            if (data == &listener) {
                accept_all(listener, epoll, sizeof(Client));
            } else if (data == &redis) {
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) redis_receive(); /* redis_flush follows */
            } else {
                Client *c = data;
                if (c->fd >= 0 && events[i].events & EPOLLOUT) flush(c);
                if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
            }
        }
        redis_flush();
        while (closed) {
            Client *c = closed;
            closed = c->next_closed;
            free(c->in.data);
            free(c->out.data);
            free(c->message.body.data);
            free(c);
        }
    }
}
