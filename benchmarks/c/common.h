/* Sockets, time and growing buffers, for the programs of the benchmark. Linux only. */
#ifndef TOKENWEIR_BENCH_COMMON_H
#define TOKENWEIR_BENCH_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A growing array of bytes: `data[start .. end)` is in use. */
typedef struct {
    char *data;
    size_t start, end, size;
} Buffer;

static inline size_t buffer_length(const Buffer *b) { return b->end - b->start; }

static inline char *buffer_bytes(const Buffer *b) { return b->data + b->start; }

static inline void buffer_reserve(Buffer *b, size_t more) {
    if (b->start == b->end) b->start = b->end = 0;
    if (b->size - b->end >= more) return;
    if (b->start) {
        memmove(b->data, b->data + b->start, b->end - b->start);
        b->end -= b->start;
        b->start = 0;
    }
    if (b->size - b->end >= more) return;
    size_t size = b->size ? b->size : 4096;
    while (size - b->end < more) size *= 2;
    b->data = realloc(b->data, size);
    if (!b->data) die("out of memory");
    b->size = size;
}

static inline void buffer_add(Buffer *b, const void *data, size_t length) {
    buffer_reserve(b, length);
    memcpy(b->data + b->end, data, length);
    b->end += length;
}

/* Reads what the socket has. Returns 1 for data, 0 for "later", -1 for the end or an error. */
static inline int buffer_read(Buffer *b, int fd) {
    buffer_reserve(b, 16384);
    ssize_t got = recv(fd, b->data + b->end, b->size - b->end, 0);
    if (got > 0) {
        b->end += got;
        return 1;
    }
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* Sends what the socket takes. Returns 1 if all was sent, 0 for "later", -1 for an error. */
static inline int buffer_write(Buffer *b, int fd) {
    while (b->start < b->end) {
        ssize_t sent = send(fd, b->data + b->start, b->end - b->start, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
        b->start += sent;
    }
    b->start = b->end = 0;
    return 1;
}

static inline void set_nonblocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = loopback(port);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096))
        die("can't listen on port %d: %s", port, strerror(errno));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Connects, and only then makes the socket non-blocking. Returns -1 if nobody listens. */
static inline int connect_to(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        if (fd >= 0) close(fd);
        return -1;
    }
    set_nonblocking(fd);
    return fd;
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll, operation, fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

/* Sends what the socket takes, and watches for room (`watched`) until all is sent. Returns false if the peer is gone. */
static inline bool buffer_flush(Buffer *b, int epoll, int fd, bool *watched, void *data) {
    int sent = buffer_write(b, fd);
    if (sent < 0) return false;
    if (!sent != *watched) {
        *watched = !sent;
        watch(epoll, EPOLL_CTL_MOD, fd, EPOLLIN | (sent ? 0 : EPOLLOUT), data);
    }
    return true;
}

/* Accepts all who wait. A client is `size` bytes, zeroed; its first member is the socket, an int. */
static inline void accept_all(int listener, int epoll, size_t size) {
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
        int *client = calloc(1, size);
        if (!client) die("out of memory");
        *client = fd;
        set_nonblocking(fd);
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, client);
    }
}

static inline void timer_at(int fd, int64_t at_ns) {
    if (at_ns < 1) at_ns = 1;
    struct itimerspec due = {.it_value = {at_ns / 1000000000, at_ns % 1000000000}};
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &due, NULL);
}

static inline int new_timer(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (fd < 0) die("timerfd_create: %s", strerror(errno));
    return fd;
}

#endif
