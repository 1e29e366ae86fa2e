// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Proxy mode: the client's first bytes open a connection to the next backend; from then on bytes
 * pass both ways until one side ends. Descriptors are edge-triggered, and an event is no more than
 * a hint to try: one that is left over from a descriptor closed in the same round does no harm.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "demo.h"

#define CHUNK 16384
#define BAD_GATEWAY "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

enum side {
	CLIENT,
	BACKEND
};

/* What came from one side and goes to the other. */
struct stream {
	char data[CHUNK];
	size_t start, stop;
	bool drained; /* the last read took all there was: epoll tells when there is more */
	bool hup; /* the side has sent its end: read on until it is seen */
	bool eof;
};

struct relay {
	int fd[2];
	struct stream from[2];
	unsigned int cpu; /* that opened the connection to the backend */
	bool answered; /* the backend has sent something */
	bool client_blocked; /* has been: its descriptor is watched for room too */
};

enum progress {
	GOES,
	WAITS,
	CLIENT_OVER,
	BACKEND_OVER
};

static enum progress over(enum side side)
{
	return side == CLIENT ? CLIENT_OVER : BACKEND_OVER;
}

static void end(struct worker *worker, struct relay *relay)
{
	worker->conns[relay->fd[CLIENT]].relay = NULL;
	if (relay->fd[BACKEND] >= 0) {
		worker->conns[relay->fd[BACKEND]].relay = NULL;
		close(relay->fd[BACKEND]);
	}
	close_client(worker, relay->fd[CLIENT]);
	free(relay);
}

static void refuse(struct worker *worker, struct relay *relay, const char *what)
{
	worker->counters->backend_errors++;
	if (worker->options->debug)
		log_worker(worker, "%s: %s", what, strerror(errno));
	/* Best effort: a client that is gone already cannot be told. */
	if (send(relay->fd[CLIENT], BAD_GATEWAY, sizeof(BAD_GATEWAY) - 1, MSG_NOSIGNAL) < 0 &&
	    worker->options->debug)
		log_worker(worker, "client gone: %s", strerror(errno));
	end(worker, relay);
}

/* Writes what is buffered from side @from to the other one. */
static enum progress flush(struct relay *relay, enum side from)
{
	struct stream *stream = &relay->from[from];

	while (stream->start < stream->stop) {
		ssize_t n = send(relay->fd[!from], stream->data + stream->start,
				 stream->stop - stream->start, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN ? WAITS : over(!from);
		stream->start += n;
	}
	stream->start = stream->stop = 0;
	return GOES;
}

static void count_answer(struct worker *worker, struct relay *relay)
{
	relay->answered = true;
	worker->counters->active++;
	if (worker->options->stats)
		worker->counters->active_local += is_local(relay->fd[BACKEND], relay->cpu);
}

/* Moves bytes from side @from to the other one as far as they go; never GOES. */
static enum progress pump(struct worker *worker, struct relay *relay, enum side from)
{
	struct stream *stream = &relay->from[from];

	stream->drained = false;
	for (;;) {
		enum progress progress = flush(relay, from);
		ssize_t n;

		if (progress != GOES)
			return progress;
		if (stream->drained || stream->eof)
			return WAITS;
		n = recv(relay->fd[from], stream->data, CHUNK, 0);
		if (n < 0 && errno != EAGAIN)
			return over(from);
		if (n == 0 && from == BACKEND) {
			errno = 0;
			return BACKEND_OVER;
		}
		stream->drained = n < 0 || (n < CHUNK && !stream->hup);
		if (n > 0) {
			stream->stop = n;
			if (from == BACKEND && !relay->answered)
				count_answer(worker, relay);
		} else if (n == 0) {
			/* A client that has no more to say may still wait for its answer. */
			stream->eof = true;
			shutdown(relay->fd[BACKEND], SHUT_WR);
		}
	}
}

/* Opens the connection to the next backend; -1 with errno. */
static int connect_backend(struct worker *worker)
{
	const struct address_list *backends = &worker->options->backends;
	const struct address *backend = &backends->item[worker->next_backend];
	int one = 1;
	int fd;

	worker->next_backend = (worker->next_backend + 1) % backends->count;
	fd = socket(backend->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if ((unsigned int)fd >= worker->file_limit ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    (connect(fd, &backend->sa, backend->len) && errno != EINPROGRESS)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/* The first bytes of a client. */
static void open_relay(struct worker *worker, int client, uint32_t events)
{
	struct relay *relay = malloc(sizeof(*relay));
	ssize_t n;

	if (!relay) {
		close_client(worker, client);
		return;
	}
	relay->fd[CLIENT] = client;
	relay->fd[BACKEND] = -1;
	relay->answered = relay->client_blocked = false;
	for (int side = CLIENT; side <= BACKEND; side++) {
		relay->from[side].start = relay->from[side].stop = 0;
		relay->from[side].hup = relay->from[side].eof = false;
		relay->from[side].drained = true;
	}
	n = recv(client, relay->from[CLIENT].data, CHUNK, 0);
	if (n <= 0) {
		if (n == 0 || errno != EAGAIN)
			close_client(worker, client);
		free(relay);
		return;
	}
	relay->from[CLIENT].stop = n;
	relay->from[CLIENT].drained = n < CHUNK && !(events & EPOLLRDHUP);
	relay->from[CLIENT].hup = events & EPOLLRDHUP;
	relay->cpu = sched_getcpu();
	worker->conns[client].relay = relay;
	worker->counters->requests++;
	relay->fd[BACKEND] = connect_backend(worker);
	if (relay->fd[BACKEND] < 0) {
		refuse(worker, relay, "cannot connect to the backend");
		return;
	}
	worker->conns[relay->fd[BACKEND]] = (struct conn){.relay = relay};
	watch(worker, relay->fd[BACKEND], KIND_BACKEND, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

static void move(struct worker *worker, struct relay *relay, enum side ready, uint32_t events)
{
	enum progress progress = WAITS;

	if (events & EPOLLOUT)
		progress = relay->from[!ready].drained ? flush(relay, !ready) :
							 pump(worker, relay, !ready);
	if (progress <= WAITS && events & ~EPOLLOUT) {
		relay->from[ready].hup |= (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
		progress = pump(worker, relay, ready);
	}
	if (progress == BACKEND_OVER && !relay->answered)
		refuse(worker, relay, "no answer from the backend");
	else if (progress == CLIENT_OVER || progress == BACKEND_OVER)
		end(worker, relay);
	else if (unlikely(relay->from[BACKEND].stop > 0 && !relay->client_blocked)) {
		relay->client_blocked = true;
		rewatch(worker, relay->fd[CLIENT], KIND_CLIENT, CLIENT_EVENTS | EPOLLOUT);
	}
}

void relay_client_event(struct worker *worker, int fd, uint32_t events)
{
	struct relay *relay = worker->conns[fd].relay;

	if (relay)
		move(worker, relay, CLIENT, events);
	else
		open_relay(worker, fd, events);
}

void relay_backend_event(struct worker *worker, int fd, uint32_t events)
{
	struct relay *relay = worker->conns[fd].relay;

	if (relay)
		move(worker, relay, BACKEND, events);
}
