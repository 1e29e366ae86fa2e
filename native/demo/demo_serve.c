// SPDX-License-Identifier: GPL-2.0-or-later
/* Server mode: every complete request is answered with the same 64 bytes. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "demo.h"

#define REQUEST_MAX 8192
#define BODY "fastsocket-demo: one connection received and served on one core\n"
#define HEAD                                                                         \
	"HTTP/1.1 200 OK\r\nServer: fastsocket-demo\r\nContent-Type: text/plain\r\n" \
	"Content-Length: 64\r\n"
#define ANSWER_CLOSE HEAD "Connection: close\r\n\r\n" BODY
#define ANSWER_KEEP HEAD "Connection: keep-alive\r\n\r\n" BODY

_Static_assert(sizeof(BODY) - 1 == 64, "the body has 64 bytes");

/* What is left over of a request is put before what comes. */
static char buffer[REQUEST_MAX + 64 * 1024];

static void end(struct worker *worker, int fd)
{
	struct conn *conn = &worker->conns[fd];

	if (unlikely(conn->partial != NULL)) {
		free(conn->partial);
		conn->partial = NULL;
	}
	close_client(worker, fd);
}

/* Sends what is owed; false: the connection is over. */
static bool send_owed(struct worker *worker, int fd)
{
	struct conn *conn = &worker->conns[fd];

	while (conn->owed) {
		bool closing = conn->last && conn->owed == 1;
		const char *answer = closing ? ANSWER_CLOSE : ANSWER_KEEP;
		size_t size = closing ? sizeof(ANSWER_CLOSE) - 1 : sizeof(ANSWER_KEEP) - 1;
		ssize_t n = send(fd, answer + conn->sent, size - conn->sent, MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN;
		conn->sent += n;
		if (conn->sent < size)
			continue;
		conn->sent = 0;
		conn->owed--;
	}
	return !conn->last;
}

/* Does the client want the connection closed after the request in @head? */
static bool wants_close(const char *head, size_t len)
{
	static const char field[] = "\r\nconnection:";
	const char *stop = head + len - 4; /* the empty line */
	const char *line = memchr(head, '\r', len);
	bool old = line - head >= 8 && !memcmp(line - 8, "HTTP/1.0", 8);

	for (; line < stop; line = memchr(line + 1, '\r', stop - line)) {
		const char *value = line + sizeof(field) - 1;

		if (value > stop || strncasecmp(line, field, sizeof(field) - 1))
			continue;
		value += strspn(value, " \t");
		if (!strncasecmp(value, "close", 5))
			return true;
		if (!strncasecmp(value, "keep-alive", 10))
			return false;
	}
	return old;
}

/* Counts the complete requests in @data and returns how many bytes they took. */
static size_t take_requests(struct worker *worker, struct conn *conn, const char *data, size_t len)
{
	size_t used = 0;

	while (!conn->last) {
		const char *empty = memmem(data + used, len - used, "\r\n\r\n", 4);
		size_t size;

		if (!empty)
			break;
		size = empty + 4 - (data + used);
		conn->owed++;
		conn->last = !worker->options->keepalive || wants_close(data + used, size);
		worker->counters->requests++;
		used += size;
	}
	return used;
}

/*
 * Takes a request that came in pieces, or several in one piece, out of the @len bytes in the
 * buffer and keeps the rest. false: the connection is over.
 */
static bool receive_slowly(struct worker *worker, struct conn *conn, size_t len)
{
	size_t used = take_requests(worker, conn, buffer, len);

	len -= used;
	free(conn->partial);
	conn->partial = NULL;
	conn->partial_len = 0;
	if (conn->last || len == 0)
		return true;
	if (len > REQUEST_MAX)
		return false;
	conn->partial = malloc(len);
	if (!conn->partial)
		return false;
	memcpy(conn->partial, buffer + used, len);
	conn->partial_len = len;
	return true;
}

void serve_event(struct worker *worker, int fd)
{
	struct conn *conn = &worker->conns[fd];
	bool blocked;
	ssize_t n;

	if (likely(!conn->blocked)) {
		size_t before = conn->partial_len;

		if (unlikely(before))
			memcpy(buffer, conn->partial, before);
		n = recv(fd, buffer + before, sizeof(buffer) - before, 0);
		if (n <= 0) {
			if (n == 0 || errno != EAGAIN)
				end(worker, fd);
			return;
		}
		/* The usual case: one request, whole, and the connection ends with its answer. */
		if (likely(!worker->options->keepalive && !conn->partial && n >= 4 &&
			   !memcmp(buffer + n - 4, "\r\n\r\n", 4))) {
			worker->counters->requests++;
			conn->owed = 1;
			conn->last = true;
		} else if (!receive_slowly(worker, conn, before + n)) {
			end(worker, fd);
			return;
		}
	}
	if (!send_owed(worker, fd)) {
		end(worker, fd);
		return;
	}
	blocked = conn->owed > 0;
	if (unlikely(blocked != conn->blocked)) {
		/* While answers are owed no more requests are read: the client has to take them. */
		conn->blocked = blocked;
		rewatch(worker, fd, KIND_CLIENT, blocked ? EPOLLOUT : EPOLLIN);
	}
}
