// SPDX-License-Identifier: GPL-2.0-or-later
/* A worker: one process, one epoll instance, non-blocking sockets, pinned to a core on request. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "demo.h"

#define EVENTS 512 /* as nginx's default of epoll_events */
#define PAUSE_MS 100 /* until accepting is tried again after descriptors ran out */
#define DRAIN_MS 500 /* for connections in progress when the worker has to end */
#define LOG_LINE 512

int open_listener(const struct options *options, struct address *address)
{
	char text[ADDRESS_TEXT];
	int one = 1;
	int fd = socket(address->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	format_address(address, text);
	if (fd < 0)
		fail(EXIT_FAILED, "cannot make a socket for %s: %s", text, strerror(errno));
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		fail(EXIT_FAILED, "%s: cannot set SO_REUSEADDR: %s", text, strerror(errno));
	if (options->reuseport && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)))
		fail(EXIT_FAILED, "%s: cannot set SO_REUSEPORT: %s", text, strerror(errno));
	/* Several answers on one connection must not wait for each other's ACK; inherited. */
	if ((options->keepalive || options->backends.count) &&
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		fail(EXIT_FAILED, "%s: cannot set TCP_NODELAY: %s", text, strerror(errno));
	/* [::]:80 serves IPv4 too, unless 0.0.0.0:80 is wanted beside it. */
	if (address->sa.sa_family == AF_INET6)
		for (unsigned int i = 0; i < options->listen.count; i++) {
			const struct address *other = &options->listen.item[i];

			if (other->sa.sa_family == AF_INET &&
			    other->in.sin_port == address->in6.sin6_port &&
			    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)))
				fail(EXIT_FAILED, "%s: cannot set IPV6_V6ONLY: %s", text,
				     strerror(errno));
		}
	if (bind(fd, &address->sa, address->len))
		fail(EXIT_FAILED, "cannot bind to %s: %s", text, strerror(errno));
	if (getsockname(fd, &address->sa, &address->len))
		fail(EXIT_FAILED, "%s: cannot read the port: %s", text, strerror(errno));
	return fd;
}

void start_listening(int fd, const struct address *address)
{
	char text[ADDRESS_TEXT];

	if (listen(fd, BACKLOG)) {
		format_address(address, text);
		fail(EXIT_FAILED, "cannot listen on %s: %s", text, strerror(errno));
	}
}

void log_worker(const struct worker *worker, const char *format, ...)
{
	char line[LOG_LINE];
	va_list args;
	int n;

	n = snprintf(line, sizeof(line), "worker %u: ", worker->index);
	va_start(args, format);
	vsnprintf(line + n, sizeof(line) - n, format, args);
	va_end(args);
	dprintf(worker->log, "%s\n", line);
}

bool is_local(int fd, unsigned int cpu)
{
	socklen_t size = sizeof(unsigned int);
	unsigned int incoming;

	return !getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &incoming, &size) && incoming == cpu;
}

static void control(const struct worker *worker, int op, int fd, enum kind kind, uint32_t events)
{
	struct epoll_event event = {
		.events = events,
		.data.u64 = (uint64_t)kind << 32 | (uint32_t)fd,
	};

	/* A kernel without memory for this cannot serve either; the master reports the end. */
	if (epoll_ctl(worker->epoll, op, fd, &event))
		fail(EXIT_FAILED, "worker %u: epoll_ctl: %s", worker->index, strerror(errno));
}

void watch(const struct worker *worker, int fd, enum kind kind, uint32_t events)
{
	control(worker, EPOLL_CTL_ADD, fd, kind, events);
}

void rewatch(const struct worker *worker, int fd, enum kind kind, uint32_t events)
{
	control(worker, EPOLL_CTL_MOD, fd, kind, events);
}

static void resume(struct worker *worker)
{
	/* EPOLLEXCLUSIVE: a connection wakes one worker, as in nginx without accept_mutex. */
	for (unsigned int i = 0; i < worker->options->listen.count; i++)
		watch(worker, worker->listeners[i], KIND_LISTENER, EPOLLIN | EPOLLEXCLUSIVE);
	worker->paused = false;
}

static void pause_accept(struct worker *worker)
{
	for (unsigned int i = 0; i < worker->options->listen.count; i++)
		control(worker, EPOLL_CTL_DEL, worker->listeners[i], KIND_LISTENER, 0);
	worker->paused = true;
}

void close_client(struct worker *worker, int fd)
{
	close(fd);
	worker->counters->live--;
	if (unlikely(worker->paused && !worker->stopping))
		resume(worker);
}

static void log_accept(const struct worker *worker, int fd)
{
	struct address peer = {.len = sizeof(struct sockaddr_in6)};
	char text[ADDRESS_TEXT] = "unknown";
	socklen_t size = sizeof(int);
	int incoming = -1;

	if (!getpeername(fd, &peer.sa, &peer.len))
		format_address(&peer, text);
	if (getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &incoming, &size))
		log_worker(worker, "SO_INCOMING_CPU: %s", strerror(errno));
	log_worker(worker, "cpu %d accepted %s, received on cpu %d", sched_getcpu(), text,
		   incoming);
}

static void accept_client(struct worker *worker, int listener)
{
	const struct options *options = worker->options;
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (unlikely(fd < 0)) {
		switch (errno) {
		case EMFILE:
		case ENFILE:
		case ENOBUFS:
		case ENOMEM:
			log_worker(worker, "accepts nothing for now: %s", strerror(errno));
			pause_accept(worker);
			return;
		case EBADF:
		case EINVAL:
		case ENOTSOCK:
		case EOPNOTSUPP:
			fail(EXIT_FAILED, "worker %u: accept: %s", worker->index, strerror(errno));
		default: /* taken by another worker, or the connection failed: accept(2) */
			return;
		}
	}
	worker->counters->accepted++;
	worker->counters->live++;
	if (unlikely(options->stats != NULL))
		worker->counters->local += is_local(fd, sched_getcpu());
	if (unlikely(options->debug))
		log_accept(worker, fd);
	if (unlikely((unsigned int)fd >= worker->file_limit)) {
		close_client(worker, fd);
		return;
	}
	worker->conns[fd] = (struct conn){0};
	watch(worker, fd, KIND_CLIENT, options->backends.count ? CLIENT_EVENTS : EPOLLIN);
}

static void stall(const struct options *options)
{
	uint64_t until = now_ns() + options->stall_ns;

	if (options->burn) {
		while (now_ns() < until)
			;
		return;
	}
	for (uint64_t now = now_ns(); now < until; now = now_ns())
		usleep((until - now + NS_PER_US - 1) / NS_PER_US);
}

/* How long epoll_wait() may sleep, in ms. */
static int timeout(const struct worker *worker, uint64_t next_stall, uint64_t stop_at)
{
	uint64_t until = next_stall < stop_at ? next_stall : stop_at;
	uint64_t now;
	int ms;

	if (likely(until == UINT64_MAX))
		return worker->paused ? PAUSE_MS : -1;
	now = now_ns();
	ms = now >= until ? 0 : (until - now + NS_PER_MS - 1) / NS_PER_MS;
	return worker->paused && ms > PAUSE_MS ? PAUSE_MS : ms;
}

static void handle(struct worker *worker, uint64_t data, uint32_t events)
{
	int fd = (uint32_t)data;

	switch ((enum kind)(data >> 32)) {
	case KIND_LISTENER:
		accept_client(worker, fd);
		break;
	case KIND_CLIENT:
		if (worker->options->backends.count)
			relay_client_event(worker, fd, events);
		else
			serve_event(worker, fd);
		break;
	case KIND_BACKEND:
		relay_backend_event(worker, fd, events);
		break;
	case KIND_SIGNAL:
		worker->stopping = true;
		if (!worker->paused)
			pause_accept(worker);
		break;
	}
}

static _Noreturn void serve(struct worker *worker)
{
	const struct options *options = worker->options;
	static struct epoll_event events[EVENTS];
	uint64_t stop_at = UINT64_MAX;
	uint64_t next_stall = UINT64_MAX;

	if (options->stall_every_ns && options->stall_worker == worker->index)
		next_stall = now_ns() + options->stall_every_ns;
	for (;;) {
		int n = epoll_wait(worker->epoll, events, EVENTS,
				   timeout(worker, next_stall, stop_at));

		if (n < 0 && errno != EINTR)
			fail(EXIT_FAILED, "worker %u: epoll_wait: %s", worker->index,
			     strerror(errno));
		if (unlikely(worker->paused && !worker->stopping && n == 0))
			resume(worker);
		for (int i = 0; i < n; i++) {
			handle(worker, events[i].data.u64, events[i].events);
			if (unlikely(worker->stopping && stop_at == UINT64_MAX))
				stop_at = now_ns() + DRAIN_MS * NS_PER_MS;
		}
		if (unlikely(next_stall != UINT64_MAX && now_ns() >= next_stall)) {
			stall(options);
			/* From start to start, as a periodic flush to a slow disk would. */
			while (next_stall <= now_ns())
				next_stall += options->stall_every_ns;
		}
		if (unlikely(worker->stopping && (!worker->counters->live || now_ns() >= stop_at)))
			exit(EXIT_SUCCESS);
	}
}

void run_worker(struct worker *worker, int ready)
{
	sigset_t set;
	int fd;

	worker->file_limit = raise_file_limit();
	worker->conns = mmap(NULL, worker->file_limit * sizeof(*worker->conns),
			     PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			     -1, 0);
	if (worker->conns == MAP_FAILED)
		fail(EXIT_FAILED, "worker %u: no memory for %u connections", worker->index,
		     worker->file_limit);
	worker->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (worker->epoll < 0)
		fail(EXIT_FAILED, "worker %u: epoll_create1: %s", worker->index, strerror(errno));
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_SETMASK, &set, NULL);
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fd < 0)
		fail(EXIT_FAILED, "worker %u: signalfd: %s", worker->index, strerror(errno));
	watch(worker, fd, KIND_SIGNAL, EPOLLIN | EPOLLET);
	resume(worker);
	if (ready >= 0) {
		if (write(ready, "", 1) != 1)
			fail(EXIT_FAILED, "worker %u: the master is gone", worker->index);
		close(ready);
	}
	serve(worker);
}
