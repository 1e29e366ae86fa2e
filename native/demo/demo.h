/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fastsocket-demo: what its master, its workers and its two modes share. */
#ifndef FASTSOCKET_DEMO_H
#define FASTSOCKET_DEMO_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/types.h>

#include "util.h"

#define BACKLOG 65535 /* as much as net.core.somaxconn allows */

struct options {
	unsigned int workers;
	int first_core; /* -1: not pinned */
	const char *log;
	struct address_list listen;
	struct address_list backends; /* none: server mode */
	bool verbose;
	bool debug;
	bool keepalive;
	bool reuseport;
	const char *stats; /* where the counters go; set: count locality too */
	uint64_t stall_ns;
	uint64_t stall_every_ns; /* 0: no worker stalls */
	unsigned int stall_worker;
	bool burn;
};

/* One a worker, in memory shared with the master: each line is written by one process only. */
struct counters {
	uint64_t accepted;
	uint64_t local; /* SO_INCOMING_CPU was the accepting CPU */
	uint64_t live;
	uint64_t requests;
	uint64_t active; /* connections to backends that answered */
	uint64_t active_local; /* ... on the CPU that opened them */
	uint64_t backend_errors;
	pid_t pid;
	unsigned int restarts; /* by the master */
} __attribute__((aligned(CACHE_LINES)));

enum kind {
	KIND_LISTENER,
	KIND_SIGNAL,
	KIND_CLIENT,
	KIND_BACKEND
};

/* How a proxied client is watched; room in its send buffer only after it ran out once. */
#define CLIENT_EVENTS (EPOLLIN | EPOLLRDHUP | EPOLLET)

struct relay;

/* What is known of a descriptor; the table is indexed by it, untouched pages cost nothing. */
struct conn {
	struct relay *relay; /* proxy mode */
	char *partial; /* the start of a request that came in pieces */
	uint32_t partial_len;
	uint32_t owed; /* answers not yet sent */
	uint16_t sent; /* bytes of the first owed answer that have left */
	bool last; /* close after the owed answers */
	bool blocked; /* waits for room in the send buffer */
};

struct worker {
	const struct options *options;
	struct counters *counters;
	struct conn *conns;
	int *listeners; /* one for each address in options->listen */
	int epoll;
	int log;
	unsigned int index;
	unsigned int file_limit;
	unsigned int next_backend;
	bool paused; /* does not accept: out of descriptors or memory, or stopping */
	bool stopping;
};

/* demo_worker.c */

/* Binds to @address, which gets the port where it was 0. Fails with one line. */
int open_listener(const struct options *options, struct address *address);
void start_listening(int fd, const struct address *address);

/*
 * Serves until SIGTERM or SIGINT. @listeners are shared with the other workers and listen, except
 * with --reuseport. Writes a byte to @ready, unless it is -1, once the worker accepts.
 */
_Noreturn void run_worker(struct worker *worker, int ready);

void watch(const struct worker *worker, int fd, enum kind kind, uint32_t events);
void rewatch(const struct worker *worker, int fd, enum kind kind, uint32_t events);
void log_worker(const struct worker *worker, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* Ends a client's connection: counters, accept pause. */
void close_client(struct worker *worker, int fd);

/* Did @cpu handle what came last over @fd (SO_INCOMING_CPU, socket(7))? */
bool is_local(int fd, unsigned int cpu);

/* demo_serve.c: a complete request is answered with 200 and 64 bytes. */
void serve_event(struct worker *worker, int fd);

/* demo_relay.c: bytes go to a backend and back until one side closes. */
void relay_client_event(struct worker *worker, int fd, uint32_t events);
void relay_backend_event(struct worker *worker, int fd, uint32_t events);

/* demo_stats.c: the counters as one JSON document in one line. */
void print_stats(FILE *out, const struct options *options, const struct counters *counters);

/* Puts the document in the place of the file @path in one step; false with errno. */
bool save_stats(const char *path, const struct options *options, const struct counters *counters);

/* One line for people: rate and spread since the last call, which left @before. */
void print_rate(int log, const struct options *options, const struct counters *counters,
		struct counters *before);

#endif
