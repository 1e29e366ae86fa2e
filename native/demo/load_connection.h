/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connections of one process of the load generator. Every connection is a slot that waits in
 * at most one queue, and as every queue has one fixed delay, its head is due first.
 */
#ifndef FASTSOCKET_LOAD_CONNECTION_H
#define FASTSOCKET_LOAD_CONNECTION_H

#include "load.h"

#define LINGER_NS (100 * NS_PER_MS) /* for the server to close first */
#define BACKOFF_NS NS_PER_MS /* before a slot is used again after a failure */

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
	bool sent; /* the request */
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
	struct slot *free; /* linked by next */
	struct queue active; /* until plan->timeout_ns */
	struct queue closing; /* until LINGER_NS */
	struct queue backoff; /* until BACKOFF_NS */
	int epoll;
	unsigned int index;
	unsigned int at_once; /* limit of connections in progress */
	unsigned int busy; /* in progress; held ones are not */
	unsigned int next_target;
	unsigned int next_source[FAMILIES];
	uint64_t share; /* connections to make after the warm-up */
	uint64_t scheduled; /* open loop: starts so far, with those of the warm-up */
	uint64_t begin_ns; /* end of the warm-up */
	uint64_t stop_ns; /* no starts from here on */
};

/* load_connection.c */

/* Puts a slot among the free ones. */
void release(struct process *process, struct slot *slot);

/* Takes a free slot and begins a connection that was due at @intended. */
void start(struct process *process, uint64_t intended, uint64_t now);

/* Deals with what epoll says of a connection. */
void handle(struct process *process, struct slot *slot, uint32_t events);

/* Ends the waits that are over: timeouts, lingering, rest after a failure. */
void expire(struct process *process, uint64_t now);

#endif
