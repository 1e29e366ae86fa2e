// SPDX-License-Identifier: GPL-2.0-or-later
/* What becomes of a connection, from connect() to its last count. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load_connection.h"

static char buffer[64 * 1024];

static void enqueue(struct queue *queue, struct slot *slot, uint64_t now)
{
	slot->queue = queue;
	slot->queued_ns = now;
	slot->next = NULL;
	slot->previous = queue->tail;
	if (queue->tail)
		queue->tail->next = slot;
	else
		queue->head = slot;
	queue->tail = slot;
}

static void dequeue(struct slot *slot)
{
	struct queue *queue = slot->queue;

	if (!queue)
		return;
	*(slot->previous ? &slot->previous->next : &queue->head) = slot->next;
	*(slot->next ? &slot->next->previous : &queue->tail) = slot->previous;
	slot->queue = NULL;
}

void release(struct process *process, struct slot *slot)
{
	slot->next = process->free;
	process->free = slot;
}

static void close_slot(struct slot *slot)
{
	dequeue(slot);
	if (slot->fd >= 0)
		close(slot->fd);
	slot->fd = -1;
	reply_reset(&slot->reply);
}

static void complete(struct process *process, struct slot *slot, uint64_t now)
{
	struct tally *tally = process->tally;

	tally->all_completed++;
	if (now >= process->begin_ns && now <= process->stop_ns)
		tally->in_window++;
	if (slot->counted) {
		tally->completed++;
		tally->last_ns = now;
	}
}

/* The connection has done all that it was for. */
static void finish(struct process *process, struct slot *slot)
{
	close_slot(slot);
	process->busy--;
	release(process, slot);
}

static enum cause cause_of(int error)
{
	switch (error) {
	case ECONNRESET:
	case EPIPE:
		return CAUSE_RESET;
	case ECONNREFUSED:
		return CAUSE_REFUSED;
	case ETIMEDOUT:
		return CAUSE_TIMEOUT;
	default:
		return CAUSE_SYSTEM;
	}
}

static void give_up(struct process *process, struct slot *slot, enum cause cause)
{
	struct tally *tally = process->tally;
	uint64_t now = now_ns();

	tally->all_failed++;
	if (slot->counted) {
		tally->failed[cause]++;
		tally->last_ns = now;
		if ((cause == CAUSE_RESET || cause == CAUSE_CLOSED) && !slot->reply.started)
			(*(slot->sent ? &tally->lost_after_request :
					&tally->lost_before_request))++;
	}
	close_slot(slot);
	enqueue(&process->backoff, slot, now);
}

static void give_up_errno(struct process *process, struct slot *slot, int error)
{
	enum cause cause = cause_of(error);

	if (cause == CAUSE_SYSTEM)
		process->tally->system_errno = error;
	give_up(process, slot, cause);
}

static void hold(struct process *process, struct slot *slot)
{
	dequeue(slot);
	slot->state = HELD;
	process->busy--;
	process->tally->held++;
}

static void drop_held(struct process *process, struct slot *slot)
{
	close_slot(slot);
	process->tally->held--;
	process->tally->dropped++;
}

/* Picks the next source address of the target's family; NULL: let the kernel choose. */
static const struct address *next_source(struct process *process, const struct address *target)
{
	enum family family = family_of(target);
	const struct address_list *sources = &process->plan->sources[family];
	const struct address *source;

	if (!sources->count)
		return NULL;
	source = &sources->item[process->next_source[family] % sources->count];
	/* In steps, so that the processes share no address where there are enough for all. */
	process->next_source[family] += process->plan->processes;
	return source;
}

/* Begins to connect @slot; false with errno. */
static bool open_connection(struct process *process, struct slot *slot)
{
	const struct address *target = &process->plan->targets.item[slot->target];
	const struct address *source = next_source(process, target);
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data.ptr = slot,
	};
	int zero = 0, one = 1;

	slot->fd = socket(target->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (slot->fd < 0)
		return false;
	/* The port is chosen at connect(), so that it is unique per destination only: ip(7). */
	if (source &&
	    (setsockopt(slot->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one)) ||
	     bind(slot->fd, &source->sa, source->len)))
		return false;
	/* The ACK of the handshake waits for the request to take it along: tcp(7). */
	if (process->plan->lean &&
	    setsockopt(slot->fd, IPPROTO_TCP, TCP_QUICKACK, &zero, sizeof(zero)))
		return false;
	if (connect(slot->fd, &target->sa, target->len) && errno != EINPROGRESS)
		return false;
	return !epoll_ctl(process->epoll, EPOLL_CTL_ADD, slot->fd, &event);
}

void start(struct process *process, uint64_t intended, uint64_t now)
{
	struct slot *slot = process->free;
	struct tally *tally = process->tally;

	process->free = slot->next;
	process->busy++;
	slot->target = process->next_target;
	process->next_target = (process->next_target + 1) % process->plan->targets.count;
	slot->state = CONNECTING;
	slot->sent = false;
	slot->left = process->plan->requests;
	slot->begin_ns = intended;
	slot->counted = intended >= process->begin_ns;
	if (slot->counted) {
		tally->started++;
		if (now - intended > tally->max_late_ns)
			tally->max_late_ns = now - intended;
		tally->late_starts += now - intended > LATE_NS;
	}
	enqueue(&process->active, slot, now);
	/* Open loop: who has waited for so long is gone before the connection could begin. */
	if (now - intended >= process->plan->timeout_ns)
		give_up(process, slot, CAUSE_TIMEOUT);
	else if (!open_connection(process, slot))
		give_up_errno(process, slot, errno);
}

/* Sends the next request; false: the connection has failed and is given up. */
static bool send_request(struct process *process, struct slot *slot)
{
	const struct request *request = &(slot->left > 1 || process->plan->hold ?
						  process->keep :
						  process->last)[slot->target];
	ssize_t n = send(slot->fd, request->text, request->size, MSG_NOSIGNAL);

	if (n != (ssize_t)request->size) {
		/* A few bytes always fit into the buffer of a working connection. */
		give_up_errno(process, slot, n < 0 ? errno : ENOBUFS);
		return false;
	}
	slot->state = WAITING;
	slot->sent = true;
	return true;
}

/* A whole answer is there. true: look for more on this connection. */
static bool answered(struct process *process, struct slot *slot, bool ended)
{
	uint64_t now = now_ns();
	bool close = slot->reply.close;

	if (slot->counted) {
		process->tally->requests++;
		histogram_add(&process->tally->latency, now - slot->begin_ns);
	}
	slot->left--;
	reply_reset(&slot->reply);
	slot->sent = false;
	if (slot->left && !close && !ended) {
		dequeue(slot);
		slot->begin_ns = now;
		enqueue(&process->active, slot, now);
		return send_request(process, slot);
	}
	if (process->plan->hold && !close && !ended) {
		hold(process, slot);
		return false;
	}
	complete(process, slot, now);
	if (ended) {
		finish(process, slot);
		return false;
	}
	slot->state = CLOSING;
	dequeue(slot);
	enqueue(&process->closing, slot, now);
	return true;
}

/* The server has ended the connection in the middle of things. */
static void ended(struct process *process, struct slot *slot)
{
	if (reply_ends(&slot->reply))
		answered(process, slot, true);
	else
		give_up(process, slot, slot->reply.started ? CAUSE_TRUNCATED : CAUSE_CLOSED);
}

/* Reads what is there; @hup: the end of the connection has come, too. */
static void receive(struct process *process, struct slot *slot, bool hup)
{
	for (;;) {
		ssize_t n = recv(slot->fd, buffer, sizeof(buffer), 0);
		bool drained = n < (ssize_t)sizeof(buffer);

		if (n < 0 && errno == EAGAIN)
			return;
		if (slot->state == CLOSING) {
			/* The answer is complete: how the end looks does not matter any more. */
			if (n <= 0)
				finish(process, slot);
			return;
		}
		if (n <= 0) {
			if (n == 0)
				ended(process, slot);
			else
				give_up_errno(process, slot, errno);
			return;
		}
		switch (reply_take(&slot->reply, buffer, n)) {
		case REPLY_STATUS:
			give_up(process, slot, CAUSE_STATUS);
			return;
		case REPLY_PROTOCOL:
			give_up(process, slot, CAUSE_PROTOCOL);
			return;
		case REPLY_DONE:
			if (!answered(process, slot, hup && drained))
				return;
			break;
		case REPLY_MORE:
			if (hup && drained) {
				ended(process, slot);
				return;
			}
			break;
		}
		/* A short read has emptied the queue: epoll tells when there is more. */
		if (drained && !hup)
			return;
	}
}

void handle(struct process *process, struct slot *slot, uint32_t events)
{
	int error = 0;
	socklen_t size = sizeof(error);

	if (slot->state == HELD) {
		ssize_t n = recv(slot->fd, buffer, sizeof(buffer), 0);

		if (n == 0 || (n < 0 && errno != EAGAIN) || (events & EPOLLRDHUP))
			drop_held(process, slot);
		return;
	}
	if (slot->state == CONNECTING) {
		if (events & EPOLLERR) {
			if (getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &error, &size))
				error = errno;
			give_up_errno(process, slot, error);
			return;
		}
		if (!(events & EPOLLOUT))
			return;
		if (!slot->left) {
			hold(process, slot);
			return;
		}
		if (!send_request(process, slot))
			return;
	}
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		receive(process, slot, events & EPOLLRDHUP);
}

void expire(struct process *process, uint64_t now)
{
	struct slot *slot;

	while ((slot = process->active.head) && slot->queued_ns + process->active.delay_ns <= now)
		give_up(process, slot, CAUSE_TIMEOUT);
	while ((slot = process->closing.head) &&
	       slot->queued_ns + process->closing.delay_ns <= now) {
		process->tally->client_closed += slot->counted;
		finish(process, slot);
	}
	while ((slot = process->backoff.head) &&
	       slot->queued_ns + process->backoff.delay_ns <= now) {
		dequeue(slot);
		process->busy--;
		/* What was to be held and has failed is not tried again. */
		if (!process->plan->hold)
			release(process, slot);
	}
}
