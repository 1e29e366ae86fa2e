// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One process of the load generator: its own epoll instance, descriptors and connections. Every
 * connection is a slot that waits in at most one queue, and as every queue has one fixed delay,
 * its head is due first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define EVENTS     512
#define BURST      64                /* starts before answers are looked at again */
#define LINGER_NS  (100 * NS_PER_MS) /* for the server to close first */
#define BACKOFF_NS NS_PER_MS         /* before a slot is used again after a failure */
#define LOOK_NS    (50 * NS_PER_MS)  /* how often the parent's wish to stop is looked at */

enum state {
	CONNECTING,
	WAITING,
	CLOSING,
	HELD
};

struct slot {
	struct slot *next, *previous; /* in its queue */
	struct queue *queue;
	uint64_t queued_ns;
	uint64_t begin_ns; /* of the request: the intended start for the first */
	struct reply reply;
	unsigned int target;
	unsigned int left; /* requests to make */
	int fd;
	enum state state;
	bool counted; /* started after the warm-up */
	bool sent;    /* the request */
};

struct queue {
	struct slot *head, *tail;
	uint64_t delay_ns;
};

struct request {
	char *text;
	size_t size;
};

struct process {
	const struct plan *plan;
	const volatile struct control *control;
	struct tally *tally;
	struct request *keep; /* for each target: another request follows */
	struct request *last; /* ... none follows */
	struct slot *slots;
	struct slot *free;    /* linked by next */
	struct queue active;  /* until plan->timeout_ns */
	struct queue closing; /* until LINGER_NS */
	struct queue backoff; /* until BACKOFF_NS */
	int epoll;
	unsigned int index;
	unsigned int at_once; /* limit of connections in progress */
	unsigned int busy;    /* in progress; held ones are not */
	unsigned int next_target;
	unsigned int next_source[FAMILIES];
	uint64_t share;     /* connections to make after the warm-up */
	uint64_t scheduled; /* open loop: starts so far, with those of the warm-up */
	uint64_t begin_ns;  /* end of the warm-up */
	uint64_t stop_ns;   /* no starts from here on */
};

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

static void release(struct process *process, struct slot *slot)
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
			(*(slot->sent ? &tally->lost_after_request
				      : &tally->lost_before_request))++;
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

static void start(struct process *process, uint64_t intended, uint64_t now)
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
	const struct request *request = &(slot->left > 1 || process->plan->hold
						  ? process->keep
						  : process->last)[slot->target];
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

static void handle(struct process *process, struct slot *slot, uint32_t events)
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

/* When the next connection should start, whether or not it can; UINT64_MAX: none is to come. */
static uint64_t next_intended(const struct process *process, uint64_t now)
{
	const struct plan *plan = process->plan;
	uint64_t intended = now;

	if (process->tally->started >= process->share)
		return UINT64_MAX;
	if (plan->rate > 0) {
		double place = (double)process->scheduled * plan->processes + process->index;

		intended = process->control->start_ns + (uint64_t)(place * NS_PER_SEC / plan->rate);
	}
	return intended < process->stop_ns ? intended : UINT64_MAX;
}

/* When the next connection can start; UINT64_MAX: not before something ends. */
static uint64_t next_start(const struct process *process, uint64_t now)
{
	if (!process->free || process->busy >= process->at_once)
		return UINT64_MAX;
	return next_intended(process, now);
}

static void expire(struct process *process, uint64_t now)
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

/* Sleeps until something happens or is due. */
static void turn(struct process *process, uint64_t until)
{
	static struct epoll_event events[EVENTS];
	const struct queue *queues[] = {&process->active, &process->closing, &process->backoff};
	uint64_t now = now_ns();
	struct timespec wait;
	int n;

	for (unsigned int i = 0; i < sizeof(queues) / sizeof(*queues); i++)
		if (queues[i]->head && queues[i]->head->queued_ns + queues[i]->delay_ns < until)
			until = queues[i]->head->queued_ns + queues[i]->delay_ns;
	if (until > now + LOOK_NS)
		until = now + LOOK_NS;
	until = until > now ? until - now : 0;
	wait = (struct timespec){.tv_sec = until / NS_PER_SEC, .tv_nsec = until % NS_PER_SEC};
	n = epoll_pwait2(process->epoll, events, EVENTS, &wait, NULL);
	if (n < 0 && errno != EINTR)
		fail(EXIT_FAILED, "process %u: epoll_pwait2: %s", process->index, strerror(errno));
	for (int i = 0; i < n; i++)
		handle(process, events[i].data.ptr, events[i].events);
}

static bool done(struct process *process, uint64_t now)
{
	if (process->control->stop)
		return true;
	if (process->plan->hold && !process->tally->settled && !process->busy &&
	    process->tally->started >= process->share) {
		/* The time to hold begins when all are open. */
		process->tally->settled = true;
		process->stop_ns = now + process->plan->length_ns;
	}
	if (process->busy)
		return false;
	if (process->plan->hold)
		return now >= process->stop_ns;
	return next_intended(process, now) == UINT64_MAX;
}

static struct request *make_requests(const struct plan *plan, bool keep)
{
	struct request *requests = calloc(plan->targets.count, sizeof(*requests));

	if (!requests)
		fail(EXIT_FAILED, "no memory for %u requests", plan->targets.count);
	for (unsigned int i = 0; i < plan->targets.count; i++) {
		requests[i].text = make_request(plan, &plan->targets.item[i], keep);
		requests[i].size = strlen(requests[i].text);
	}
	return requests;
}

/* The part of @total that process @index takes. */
static uint64_t part(uint64_t total, unsigned int processes, unsigned int index)
{
	return total / processes + (index < total % processes);
}

static void set_up(struct process *process)
{
	const struct plan *plan = process->plan;
	unsigned int slots;

	process->at_once = part(plan->connections, plan->processes, process->index);
	process->share = plan->total ? part(plan->total, plan->processes, process->index)
				     : UINT64_MAX;
	slots = plan->hold ? process->share : process->at_once;
	process->next_target = process->index % plan->targets.count;
	process->next_source[IPV4] = process->next_source[IPV6] = process->index;
	process->active.delay_ns = plan->timeout_ns;
	process->closing.delay_ns = LINGER_NS;
	process->backoff.delay_ns = BACKOFF_NS;
	process->keep = make_requests(plan, true);
	process->last = make_requests(plan, false);
	process->slots = calloc(slots + 1, sizeof(*process->slots));
	process->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (!process->slots || process->epoll < 0)
		fail(EXIT_FAILED, "process %u: cannot make ready for %u connections: %s",
		     process->index, slots, strerror(errno));
	for (unsigned int i = 0; i < slots; i++) {
		process->slots[i].fd = -1;
		release(process, &process->slots[i]);
	}
}

void run_process(const struct plan *plan, const volatile struct control *control,
		 struct tally *tally, unsigned int index)
{
	struct process process = {
		.plan = plan,
		.control = control,
		.tally = tally,
		.index = index,
	};
	uint64_t now;

	set_up(&process);
	process.begin_ns = control->start_ns + plan->warmup_ns;
	process.stop_ns = UINT64_MAX;
	if (plan->length_ns != UINT64_MAX && !plan->hold)
		process.stop_ns = process.begin_ns + plan->length_ns;
	while ((now = now_ns()) < control->start_ns) {
		const struct timespec rest = {.tv_nsec = control->start_ns - now};

		nanosleep(&rest, NULL);
	}
	while (!done(&process, now)) {
		uint64_t next = next_start(&process, now);

		for (unsigned int i = 0; i < BURST && next <= now; i++) {
			process.scheduled++;
			start(&process, next, now);
			now = now_ns();
			next = next_start(&process, now);
		}
		turn(&process, next < process.stop_ns ? next : process.stop_ns);
		now = now_ns();
		expire(&process, now);
	}
}
