/* A model server that costs little: answers a chat completion at once, or streams one at a rate.

     upstream PORT [broken]

   The request's text says how: "chunks=75 rate=25" is a stream of 75 chunks, 25 a second, whose first comes at once;
   without "chunks=" the answer is JSON. Each chunk's content is "INDEX:MICROSECONDS ", the time of its sending.
   GET /stats gives what was served. "broken" leaves out the last chunk but one, or a byte of the JSON's text: for the
   test that the load generator notices. */
#define _GNU_SOURCE
#include "http.h"

#define PROMPT_TOKENS 25
#define OUTPUT_TOKENS 8

typedef struct Client {
    int fd;
    bool watched;
    Buffer in, out;
    Message message;
    int chunks, sent; /* of the stream that is being sent; chunks 0: none */
    int64_t began, interval;
    size_t place; /* in the heap, from 1; 0: not there */
    int64_t due;
    struct Client *next_closed;
} Client;

static int epoll, timer;
static bool broken;
static Client **heap;
static size_t heap_length, heap_size;
static Client *closed;
static uint64_t requests, streams, chunks_sent, tokens, aborted;

static void heap_put(Client *c, size_t at) {
    heap[at] = c;
    c->place = at;
}

static void heap_settle(Client *c, size_t at) {
    while (at > 1 && heap[at / 2]->due > c->due) {
        heap_put(heap[at / 2], at);
        at /= 2;
    }
    for (size_t child; (child = 2 * at) <= heap_length; at = child) {
        if (child < heap_length && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        heap_put(heap[child], at);
    }
    heap_put(c, at);
}

static void heap_add(Client *c) {
    if (heap_length + 2 > heap_size) {
        heap_size = heap_size ? 2 * heap_size : 1024;
        heap = realloc(heap, heap_size * sizeof *heap);
    }
    heap_settle(c, ++heap_length);
}

static void heap_remove(Client *c) {
    size_t at = c->place;
    Client *last = heap[heap_length--];
    c->place = 0;
    if (last != c) heap_settle(last, at);
}

static void drop(Client *c) {
    if (c->fd < 0) return;
    if (c->place) {
        heap_remove(c);
        aborted++;
    }
    close(c->fd);
    c->fd = -1;
    c->next_closed = closed; /* freed after this turn's events */
    closed = c;
}

static void flush(Client *c) {
    if (!buffer_flush(&c->out, epoll, c->fd, &c->watched, c)) drop(c);
}

static void add_chunk(Buffer *out, const char *data, int length) {
    char size[16];
    buffer_add(out, size, sprintf(size, "%x\r\n", length));
    buffer_add(out, data, length);
    buffer_add(out, "\r\n", 2);
}

static void send_chunk(Client *c) {
    char event[1024];
    int index = c->sent++;
    int64_t us = now_ns() / 1000 % 100000000;
    const char *shape =
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d:%08lld \"},\"logprobs\":null,"
        "\"finish_reason\":null}]}\n\n";
    if (!broken || index != c->chunks - 2) add_chunk(&c->out, event, sprintf(event, shape, index, (long long)us));
    chunks_sent++;
    if (c->sent == c->chunks) {
        int length = sprintf(
            event,
            "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
            "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n"
            "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
            "\"model\":\"bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,"
            "\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n",
            PROMPT_TOKENS, PROMPT_TOKENS + c->chunks, c->chunks);
        add_chunk(&c->out, event, length);
        buffer_add(&c->out, "0\r\n\r\n", 5);
        tokens += PROMPT_TOKENS + c->chunks;
        c->chunks = 0;
    } else {
        c->due = c->began + c->sent * c->interval;
        heap_add(c);
    }
    flush(c);
}

static void begin_stream(Client *c, int chunks, double rate) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    streams++;
    buffer_add(&c->out, head, sizeof head - 1);
    c->chunks = chunks;
    c->sent = 0;
    c->interval = 1e9 / rate;
    /* Streams that begin together do not go on in step: the first interval differs, by the golden ratio. Slow ones
       keep their interval: they are there to be open. */
    double phase = rate < 1 ? 0 : streams * 0.6180339887;
    c->began = now_ns() - (int64_t)((phase - (int64_t)phase) * c->interval);
    send_chunk(c);
}

static void answer_json(Client *c) {
    char body[1024], head[256];
    int length = sprintf(
        body,
        "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"1 + 1 =%s2\"},\"logprobs\":null,"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d,"
        "\"prompt_tokens_details\":null}}",
        broken ? "" : " ", PROMPT_TOKENS, PROMPT_TOKENS + OUTPUT_TOKENS, OUTPUT_TOKENS);
    buffer_add(&c->out, head, sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n", length));
    buffer_add(&c->out, body, length);
    tokens += PROMPT_TOKENS + OUTPUT_TOKENS;
    flush(c);
}

static void answer_stats(Client *c) {
    char body[512], head[256];
    int length = sprintf(body, "{\"requests\":%llu,\"streams\":%llu,\"chunks\":%llu,\"tokens\":%llu,\"aborted\":%llu,\"open\":%zu}",
                         (unsigned long long)requests, (unsigned long long)streams, (unsigned long long)chunks_sent,
                         (unsigned long long)tokens, (unsigned long long)aborted, heap_length);
    buffer_add(&c->out, head, sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n", length));
    buffer_add(&c->out, body, length);
    flush(c);
}

static void answer(Client *c) {
    if (!strcmp(c->message.target, "/stats")) return answer_stats(c);
    requests++;
    buffer_add(&c->message.body, "", 1); /* ends the text for atoi and strstr */
    const char *text = buffer_bytes(&c->message.body), *chunks = strstr(text, "chunks="), *rate = strstr(text, "rate=");
    int count = chunks ? atoi(chunks + 7) : 0;
    double per_second = rate ? atof(rate + 5) : 0;
    if (count > 0 && per_second > 0)
        begin_stream(c, count, per_second);
    else
        answer_json(c);
}

static void receive(Client *c) {
    int got = buffer_read(&c->in, c->fd);
    if (got < 0) return drop(c);
    while (c->fd >= 0 && !c->chunks) {
        int state = message_read(&c->message, &c->in, true);
        if (state == HTTP_BAD) return drop(c);
        if (state == HTTP_MORE) return;
        answer(c);
        message_reset(&c->message);
    }
}

static void send_due(void) {
    uint64_t expirations;
    if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timer: %s", strerror(errno));
    int64_t now = now_ns();
    while (heap_length && heap[1]->due <= now) {
        Client *c = heap[1];
        heap_remove(c);
        send_chunk(c);
        if (c->fd >= 0 && !c->chunks && buffer_length(&c->in)) receive(c);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) die("usage: upstream PORT [broken]");
    broken = argc > 2 && !strcmp(argv[2], "broken");
    int listener = listen_on(atoi(argv[1]));
    epoll = epoll_create1(0);
    timer = new_timer();
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, &timer);
    int64_t armed = 0;
    struct epoll_event events[256];
    for (;;) {
        int64_t wanted = heap_length ? heap[1]->due : 0;
        if (wanted && wanted != armed) timer_at(timer, armed = wanted);
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            void *data = events[i].data.ptr;
            if (data == &listener) {
                accept_all(listener, epoll, sizeof(Client));
            } else if (data == &timer) {
                armed = 0;
                send_due();
            } else {
                Client *c = data;
                if (c->fd >= 0 && events[i].events & EPOLLOUT) flush(c);
                if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
            }
        }
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
