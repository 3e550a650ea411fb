/* A load generator that costs little, and checks every answer.

     load PORT REQUEST-FILE CONNECTIONS SECONDS RATE [CHUNKS [EXACT-BODY-FILE]]

   RATE 0: a closed loop, each connection sends its next request at once. RATE above 0: an open loop, request i is meant
   to start at i / RATE seconds, and its latency counts from then, however late a connection is free for it. After
   SECONDS no request begins; those on their way, and in the open loop those that are due, have as long again and DRAIN_S
   to end.

   CHUNKS 0: an answer must be a 200 whose body has "usage", and equals the file if one is given. CHUNKS n: it must be
   server-sent events with contents "0:..." to "n-1:..." in order, then [DONE]; each content's time, in microseconds of
   the same clock, gives the chunk's way.

   Prints JSON. A histogram is a list of [microseconds, count]; its buckets are 1/128 wide. Exit status 0 if the run
   took place, whatever the answers were. */
#define _GNU_SOURCE
#include "http.h"

#define DRAIN_S 10
#define SUB_BITS 7
#define BUCKETS (64 << SUB_BITS)

typedef struct {
    uint64_t count[BUCKETS];
} Histogram;

typedef struct {
    int fd, place;
    bool busy, watched;
    Buffer in, out;
    Message message;
    int64_t intended, last_chunk;
    size_t scanned; /* of the body of a stream */
    int chunks;
    bool done, first, disorder;
} Connection;

static int epoll, port, expected_chunks;
static char *request, *exact;
static size_t request_length, exact_length;
static Connection *connections, **idle;
static int connection_count, idle_count;
static Histogram latency, first_token, way, gap, lag;
static uint64_t begun, ok, failed, unsent, chunk_count, open_now, open_most;
static int64_t last_end;
static char first_error[300];

static void record(Histogram *h, int64_t ns) {
    uint64_t value = ns > 0 ? ns : 0, most = (1 << SUB_BITS) - 1;
    int shift = value > most ? 64 - SUB_BITS - __builtin_clzll(value) : 0;
    h->count[((uint64_t)shift << SUB_BITS) + (value >> shift)]++;
}

static void print_histogram(const char *name, const Histogram *h) {
    printf(",\"%s\":[", name);
    const char *between = "";
    for (uint64_t i = 0; i < BUCKETS; i++) {
        if (!h->count[i]) continue;
        int shift = i >> SUB_BITS;
        double middle = ((i & ((1 << SUB_BITS) - 1)) + 0.5) * (double)(1ull << shift);
        printf("%s[%.3f,%llu]", between, middle / 1000, (unsigned long long)h->count[i]);
        between = ",";
    }
    printf("]");
}

static void complain(const char *format, ...) {
    failed++;
    if (first_error[0]) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(first_error, sizeof first_error, format, arguments);
    va_end(arguments);
    for (char *c = first_error; *c; c++)
        if (*c < ' ' || *c == '"' || *c == '\\' || *c > '~') *c = '?';
}

static void reopen(Connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->in.start = c->in.end = c->out.start = c->out.end = 0;
    c->watched = false;
    if ((c->fd = connect_to(port)) < 0) die("can't connect to port %d", port);
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
}

static void rest(Connection *c) {
    if (c->busy) open_now--;
    c->busy = false;
    c->place = idle_count;
    idle[idle_count++] = c;
}

static void flush(Connection *c) {
    if (buffer_flush(&c->out, epoll, c->fd, &c->watched, c)) return;
    complain("a request could not be sent");
    reopen(c);
    rest(c);
}

static void begin(int64_t intended) {
    Connection *c = idle[--idle_count];
    begun++;
    if (++open_now > open_most) open_most = open_now;
    c->busy = true;
    c->first = c->done = c->disorder = false;
    c->intended = intended;
    c->scanned = 0;
    c->chunks = 0;
    message_reset(&c->message);
    buffer_add(&c->out, request, request_length);
    record(&lag, now_ns() - intended);
    flush(c);
}

static void chunk_arrived(Connection *c, const char *content, int64_t now) {
    char *end;
    long index = strtol(content, &end, 10);
    if (*end != ':' || index != c->chunks) {
        c->disorder = true;
        return;
    }
    int64_t ago = (now / 1000 % 100000000) - strtoll(end + 1, NULL, 10);
    if (ago < 0) ago += 100000000;
    record(&way, ago * 1000);
    if (c->chunks++) record(&gap, now - c->last_chunk);
    else record(&first_token, now - c->intended);
    c->last_chunk = now;
    chunk_count++;
}

/* Reads the lines of a stream that are complete. */
static void scan(Connection *c, int64_t now) {
    static const char content[] = "\"content\":\"", data[] = "data: ";
    char *body = buffer_bytes(&c->message.body);
    size_t length = buffer_length(&c->message.body);
    for (char *eol; (eol = memchr(body + c->scanned, '\n', length - c->scanned)); c->scanned = eol + 1 - body) {
        char *line = body + c->scanned;
        if (eol - line < 7 || memcmp(line, data, 6)) continue;
        if (!memcmp(line + 6, "[DONE]", 6)) {
            c->done = true;
        } else {
            char *found = memmem(line, eol - line, content, sizeof content - 1);
            if (found && found[sizeof content - 1] != '"') chunk_arrived(c, found + sizeof content - 1, now);
        }
    }
}

static void check(Connection *c) {
    char *body = buffer_bytes(&c->message.body);
    size_t length = buffer_length(&c->message.body);
    if (c->message.status != 200)
        return complain("status %d: %.*s", c->message.status, (int)(length < 200 ? length : 200), body);
    if (expected_chunks) {
        if (c->disorder) return complain("a chunk is missing, or out of order, after %d", c->chunks);
        if (c->chunks != expected_chunks) return complain("%d chunks instead of %d", c->chunks, expected_chunks);
        if (!c->done) return complain("a stream without [DONE]");
    } else if (!memmem(body, length, "\"usage\"", 7)) {
        return complain("an answer without usage");
    } else if (exact && (length != exact_length || memcmp(body, exact, length))) {
        return complain("another body: %.*s", (int)(length < 200 ? length : 200), body);
    }
    ok++;
}

static void receive(Connection *c) {
    int got = buffer_read(&c->in, c->fd);
    if (!got) return;
    if (got < 0 || !c->busy) {
        if (c->busy) {
            complain("the connection ended in the middle of an answer");
            rest(c);
        }
        return reopen(c);
    }
    int state = message_read(&c->message, &c->in, false);
    int64_t now = now_ns();
    if (expected_chunks && c->message.status == 200) {
        scan(c, now);
    } else if (!c->first && c->message.state != IN_HEAD) {
        c->first = true;
        record(&first_token, now - c->intended);
    }
    if (state == HTTP_MORE) return;
    if (state == HTTP_BAD) {
        complain("an answer that is no HTTP, or has no end");
        reopen(c);
        return rest(c);
    }
    check(c);
    record(&latency, now - c->intended);
    last_end = now;
    if (c->message.close) reopen(c);
    rest(c);
}

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) die("can't read %s", path);
    char *data = malloc(1 << 20);
    *length = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

static void report(int64_t start) {
    double seconds = (last_end > start ? last_end - start : 1) / 1e9;
    printf("{\"begun\":%llu,\"ok\":%llu,\"failed\":%llu,\"unsent\":%llu,\"chunks\":%llu,\"open_most\":%llu,"
           "\"seconds\":%.6f,\"first_error\":\"%s\"",
           (unsigned long long)begun, (unsigned long long)ok, (unsigned long long)failed, (unsigned long long)unsent,
           (unsigned long long)chunk_count, (unsigned long long)open_most, seconds, first_error);
    print_histogram("latency", &latency);
    print_histogram("first_token", &first_token);
    print_histogram("way", &way);
    print_histogram("gap", &gap);
    print_histogram("lag", &lag);
    printf("}\n");
}

static void events_of(int wait_ms, int timer) {
    struct epoll_event events[256];
    int count = epoll_wait(epoll, events, 256, wait_ms);
    for (int i = 0; i < count; i++) {
        Connection *c = events[i].data.ptr;
        if (!c) {
            uint64_t expirations;
            if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timer: %s", strerror(errno));
            continue;
        }
        if (events[i].events & EPOLLOUT && c->watched) flush(c);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
    }
}

static void run(double seconds, double rate) {
    int timer = new_timer();
    watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, NULL);
    int64_t start = now_ns() + 1000000, stop = start + (int64_t)(seconds * 1e9), armed = 0;
    uint64_t due = rate > 0 ? (uint64_t)(seconds * rate) : 0;
    while (now_ns() < start) events_of(1, timer);
    for (;;) {
        int64_t now = now_ns();
        if (rate > 0) {
            while (idle_count && begun < due && start + (int64_t)(begun * 1e9 / rate) <= now)
                begin(start + (int64_t)(begun * 1e9 / rate));
            int64_t next = start + (int64_t)(begun * 1e9 / rate);
            if (begun < due && idle_count && next != armed) timer_at(timer, armed = next);
            if (begun == due && !open_now) break;
        } else {
            if (now < stop)
                for (int left = idle_count; left > 0; left--) begin(now_ns());
            else if (!open_now)
                break;
        }
        if (now > stop + (stop - start) + DRAIN_S * 1000000000ll) break;
        events_of(100, timer);
    }
    if (due > begun) unsent = due - begun;
    if (open_now) {
        uint64_t left = open_now;
        complain("%llu answers did not end", (unsigned long long)left);
        failed += left - 1;
    }
    report(start);
}

int main(int argc, char **argv) {
    if (argc < 6) die("usage: load PORT REQUEST-FILE CONNECTIONS SECONDS RATE [CHUNKS [EXACT-BODY-FILE]]");
    port = atoi(argv[1]);
    request = read_file(argv[2], &request_length);
    connection_count = atoi(argv[3]);
    expected_chunks = argc > 6 ? atoi(argv[6]) : 0;
    if (argc > 7) exact = read_file(argv[7], &exact_length);
    epoll = epoll_create1(0);
    connections = calloc(connection_count, sizeof *connections);
    idle = calloc(connection_count, sizeof *idle);
    for (int i = 0; i < connection_count; i++) {
        connections[i].fd = -1;
        reopen(&connections[i]);
        rest(&connections[i]);
    }
    run(atof(argv[4]), atof(argv[5]));
    return 0;
}
