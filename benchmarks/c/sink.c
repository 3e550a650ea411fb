/* A server of the MongoDB protocol that acknowledges every write and keeps none: for the cost of Tokenweir without that
   of a store. It is no database.

     sink PORT [TENANTS-FILE]

   TENANTS-FILE has the documents of tenantLimitation, as BSON, one after the other. Of token_ledger it counts entries
   (each _id once) and sums `charge`; of token_replicas it keeps the heartbeats. All else reads as empty. The command
   {benchstats: 1} gives the counts. */
#define _GNU_SOURCE
#include "bson.h"

#define OP_REPLY 1
#define OP_QUERY 2004
#define OP_MSG 2013
#define LARGEST 48000000
#define REPLICAS 64

typedef struct Client {
    int fd;
    bool watched;
    Buffer in, out;
    struct Client *next_closed;
} Client;

typedef struct { char id[128]; int64_t beats; } Replica;

/* One command, with its documents. */
typedef struct {
    const char *name, *collection, *body, *end;
    const char *documents, *documents_end; /* a section of kind 1; else NULL */
} Command;

static int epoll, port;
static Client *closed;
static char *tenants;
static size_t tenants_length;
static Replica replicas[REPLICAS];
static int64_t operations, inserts, updates, finds, commits, entries, admitted, charged;
static uint64_t *seen;
static size_t seen_count, seen_size;

/* Remembers an id by 64 bits of hash. Returns false if it was there. */
static bool is_new(const char *id) {
    uint64_t hash = 14695981039346656037ull;
    for (; *id; id++) hash = (hash ^ (unsigned char)*id) * 1099511628211ull;
    if (!hash) hash = 1;
    if (2 * seen_count >= seen_size) {
        size_t old_size = seen_size;
        uint64_t *old = seen;
        seen_size = seen_size ? 2 * seen_size : 65536;
        seen = calloc(seen_size, sizeof *seen);
        for (size_t i = 0; i < old_size; i++)
            if (old[i]) {
                size_t at = old[i] % seen_size;
                while (seen[at]) at = (at + 1) % seen_size;
                seen[at] = old[i];
            }
        free(old);
    }
    size_t at = hash % seen_size;
    for (; seen[at]; at = (at + 1) % seen_size)
        if (seen[at] == hash) return false;
    seen[at] = hash;
    seen_count++;
    return true;
}

static void take_entry(const char *document) {
    if (!is_new(text_of(find_member(document, "_id")))) return;
    entries++;
    if (!strcmp(text_of(find_member(document, "state")), "denied")) return;
    admitted++;
    charged += number_of(find_member(document, "charge"));
}

static void beat(const char *update) {
    Member filter = find_member(update, "q");
    if (filter.type != B_DOCUMENT) return;
    Member id = find_member(filter.value, "_id");
    const char *name = id.type == B_DOCUMENT ? text_of(find_member(id.value, "$eq")) : text_of(id);
    for (int i = 0; i < REPLICAS; i++) {
        if (!replicas[i].id[0]) snprintf(replicas[i].id, sizeof replicas[i].id, "%s", name);
        if (strcmp(replicas[i].id, name)) continue;
        replicas[i].beats++;
        return;
    }
}

static void leave(const char *deletion) {
    Member filter = find_member(deletion, "q");
    if (filter.type != B_DOCUMENT) return;
    Member id = find_member(filter.value, "_id");
    const char *name = id.type == B_DOCUMENT ? text_of(find_member(id.value, "$eq")) : text_of(id);
    for (int i = 0; i < REPLICAS; i++)
        if (replicas[i].id[0] && !strcmp(replicas[i].id, name)) {
            memmove(&replicas[i], &replicas[i + 1], (REPLICAS - 1 - i) * sizeof *replicas);
            replicas[REPLICAS - 1].id[0] = 0;
            return;
        }
}

/* Calls `each` for every document of a write, which stand in a section of their own or in an array. Returns their number. */
static int for_documents(const Command *c, const char *array, void (*each)(const char *)) {
    int count = 0;
    if (c->documents) {
        for (const char *at = c->documents; at < c->documents_end; at += int32_at(at), count++)
            if (each) each(at);
        return count;
    }
    Member list = find_member(c->body, array), m;
    if (list.type != B_ARRAY) return 0;
    for (const char *at = list.value + 4; next_member(&at, &m); count++)
        if (each && m.type == B_DOCUMENT) each(m.value);
    return count;
}

static void put_hello(Buffer *b) {
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    put_bool(b, "helloOk", true);
    put_bool(b, "ismaster", true);
    put_bool(b, "isWritablePrimary", true);
    put_text(b, "setName", "sink");
    put_int32(b, "setVersion", 1);
    size_t hosts = put_array(b, "hosts");
    put_text(b, "0", address);
    close_document(b, hosts);
    put_text(b, "me", address);
    put_text(b, "primary", address);
    put_int32(b, "maxBsonObjectSize", 16777216);
    put_int32(b, "maxMessageSizeBytes", LARGEST);
    put_int32(b, "maxWriteBatchSize", 100000);
    put_int32(b, "logicalSessionTimeoutMinutes", 30);
    put_int32(b, "minWireVersion", 0);
    put_int32(b, "maxWireVersion", 21);
    put_bool(b, "readOnly", false);
}

static void put_tenants(Buffer *b) {
    char index[16];
    int count = 0;
    for (size_t at = 0; at < tenants_length; at += int32_at(tenants + at)) {
        sprintf(index, "%d", count++);
        put_name(b, B_DOCUMENT, index);
        buffer_add(b, tenants + at, int32_at(tenants + at));
    }
}

static void put_replicas(Buffer *b) {
    char index[16];
    for (int i = 0; i < REPLICAS && replicas[i].id[0]; i++) {
        sprintf(index, "%d", i);
        size_t one = put_document(b, index);
        put_text(b, "_id", replicas[i].id);
        put_int64(b, "beats", replicas[i].beats);
        close_document(b, one);
    }
}

/* Whether a find asks for replicas of version 0.1, which lack a mark. There are none. */
static bool asks_for_former(const Command *c) {
    Member filter = find_member(c->body, "filter");
    return filter.type == B_DOCUMENT && find_member(filter.value, "daily_usage").type;
}

static void put_cursor(Buffer *b, const Command *c, const char *batch) {
    size_t cursor = put_document(b, "cursor");
    put_int64(b, "id", 0);
    put_text(b, "ns", "modelToken.any");
    size_t list = put_array(b, batch);
    if (!strcmp(c->name, "find") && !strcmp(c->collection, "tenantLimitation")) put_tenants(b);
    if (!strcmp(c->name, "find") && !strcmp(c->collection, "token_replicas") && !asks_for_former(c)) put_replicas(b);
    if (!strcmp(c->name, "listIndexes")) {
        size_t index = put_document(b, "0");
        put_int32(b, "v", 2);
        size_t key = put_document(b, "key");
        put_int32(b, "_id", 1);
        close_document(b, key);
        put_text(b, "name", "_id_");
        close_document(b, index);
    }
    close_document(b, list);
    close_document(b, cursor);
}

static void put_stats(Buffer *b) {
    put_int64(b, "operations", operations);
    put_int64(b, "inserts", inserts);
    put_int64(b, "updates", updates);
    put_int64(b, "finds", finds);
    put_int64(b, "commits", commits);
    put_int64(b, "entries", entries);
    put_int64(b, "admitted", admitted);
    put_int64(b, "charged", charged);
}

static void carry_out(const Command *c, Buffer *b) {
    double success = 1;
    if (!strcmp(c->name, "benchstats")) {
        put_stats(b);
        put_double(b, "ok", 1);
        return;
    }
    operations++;
    if (!strcasecmp(c->name, "hello") || !strcasecmp(c->name, "ismaster")) {
        put_hello(b);
    } else if (!strcmp(c->name, "insert")) {
        inserts++;
        bool ledger = !strcmp(c->collection, "token_ledger");
        put_int32(b, "n", for_documents(c, "documents", ledger ? take_entry : NULL));
    } else if (!strcmp(c->name, "update")) {
        updates++;
        int count = for_documents(c, "updates", !strcmp(c->collection, "token_replicas") ? beat : NULL);
        put_int32(b, "n", count);
        put_int32(b, "nModified", count);
    } else if (!strcmp(c->name, "delete")) {
        updates++;
        put_int32(b, "n", for_documents(c, "deletes", !strcmp(c->collection, "token_replicas") ? leave : NULL));
    } else if (!strcmp(c->name, "aggregate") && memmem(c->body, c->end - c->body, "$changeStream", 13)) {
        success = 0;
        put_int32(b, "code", 40573);
        put_text(b, "errmsg", "the sink has no change streams");
    } else if (!strcmp(c->name, "find") || !strcmp(c->name, "aggregate") || !strcmp(c->name, "listIndexes")) {
        finds++;
        put_cursor(b, c, "firstBatch");
    } else if (!strcmp(c->name, "getMore")) {
        put_cursor(b, c, "nextBatch");
    } else if (!strcasecmp(c->name, "findAndModify")) { /* of the ledger's generation, which never goes back */
        updates++;
        size_t value = put_document(b, "value");
        put_int64(b, "number", 1);
        close_document(b, value);
    } else if (!strcmp(c->name, "commitTransaction")) {
        commits++;
    }
    put_double(b, "ok", success);
}

static void drop(Client *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    c->next_closed = closed;
    closed = c;
}

static void put_int(Buffer *b, int32_t value) { buffer_add(b, &value, 4); }

static void reply(Client *c, int32_t request, bool legacy, const Command *command) {
    Buffer *b = &c->out;
    size_t start = buffer_length(b);
    put_int(b, 0);
    put_int(b, 1);
    put_int(b, request);
    put_int(b, legacy ? OP_REPLY : OP_MSG);
    put_int(b, legacy ? 8 : 0);
    if (legacy) {
        buffer_add(b, "\0\0\0\0\0\0\0\0", 8);
        put_int(b, 0);
        put_int(b, 1);
    } else {
        buffer_add(b, "", 1);
    }
    size_t document = open_document(b);
    carry_out(command, b);
    close_document(b, document);
    int32_t length = buffer_length(b) - start;
    memcpy(buffer_bytes(b) + start, &length, 4);
}

static void flush(Client *c) {
    if (!buffer_flush(&c->out, epoll, c->fd, &c->watched, c)) drop(c);
}

static Command read_command(const char *message, const char *end, bool legacy) {
    Command c = {.end = end};
    const char *at = message + 20;
    if (legacy) {
        at += strlen(at) + 1 + 8; /* flags were read; the collection, skip and return */
        c.body = at;
    } else {
        while (at < end) {
            if (!*at) {
                c.body = at + 1;
                at += 1 + int32_at(at + 1);
            } else {
                c.documents = at + 5 + strlen(at + 5) + 1;
                at += 1 + int32_at(at + 1);
                c.documents_end = at;
            }
        }
    }
    Member first;
    const char *members = c.body + 4;
    if (!next_member(&members, &first)) die("an empty command");
    c.name = first.name;
    c.collection = text_of(first);
    return c;
}

static void receive(Client *c) {
    int got = buffer_read(&c->in, c->fd);
    if (got < 0) return drop(c);
    while (buffer_length(&c->in) >= 16) {
        char *message = buffer_bytes(&c->in);
        int32_t length = int32_at(message), code = int32_at(message + 12);
        if (length < 26 || length > LARGEST || (code != OP_MSG && code != OP_QUERY)) return drop(c);
        if (buffer_length(&c->in) < (size_t)length) break;
        Command command = read_command(message, message + length, code == OP_QUERY);
        reply(c, int32_at(message + 4), code == OP_QUERY, &command);
        c->in.start += length;
    }
    flush(c);
}

int main(int argc, char **argv) {
    if (argc < 2) die("usage: sink PORT [TENANTS-FILE]");
    int listener = listen_on(port = atoi(argv[1]));
    if (argc > 2) {
        FILE *file = fopen(argv[2], "rb");
        tenants = malloc(1 << 20);
        if (!file) die("can't read %s", argv[2]);
        tenants_length = fread(tenants, 1, 1 << 20, file);
        fclose(file);
    }
    epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            Client *c = events[i].data.ptr;
            if (events[i].data.ptr == &listener) {
                accept_all(listener, epoll, sizeof(Client));
                continue;
            }
            if (c->fd >= 0 && events[i].events & EPOLLOUT) flush(c);
            if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
        while (closed) {
            Client *c = closed;
            closed = c->next_closed;
            free(c->in.data);
            free(c->out.data);
            free(c);
        }
    }
}
