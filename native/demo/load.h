/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fastsocket-load: what its parent, its processes and its report share. */
#ifndef FASTSOCKET_LOAD_H
#define FASTSOCKET_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "util.h"

/*
 * A log-linear histogram of nanoseconds: 128 buckets for every power of two, so that a bucket's
 * upper end is at most 1/128 (0.8 %) above any value in it.
 */
#define HISTOGRAM_BITS 7
#define HISTOGRAM_TOP 42 /* 2^42 ns are 73 minutes; what is longer counts there */
#define HISTOGRAM_BUCKETS ((HISTOGRAM_TOP - HISTOGRAM_BITS + 1) << HISTOGRAM_BITS)

struct histogram {
	uint64_t count[HISTOGRAM_BUCKETS];
	uint64_t total;
	uint64_t sum; /* ns */
	uint64_t max; /* ns */
};

void histogram_add(struct histogram *histogram, uint64_t ns);
void histogram_merge(struct histogram *into, const struct histogram *from);

/* The largest value that falls into @bucket, in ns. */
uint64_t histogram_upper(unsigned int bucket);

/* The value that a share of @quantile (0..1) does not exceed, in ns; 0 for an empty histogram. */
uint64_t histogram_quantile(const struct histogram *histogram, double quantile);

/* Why a connection did not complete. */
enum cause {
	CAUSE_RESET,
	CAUSE_REFUSED,
	CAUSE_TIMEOUT,
	/* "other", by cause: */
	CAUSE_STATUS, /* an answer that is not 2xx or 3xx */
	CAUSE_CLOSED, /* closed without a byte of the answer */
	CAUSE_TRUNCATED, /* closed within the answer */
	CAUSE_PROTOCOL, /* not HTTP, or more than was announced */
	CAUSE_SYSTEM, /* a system call failed: no port, no descriptor, no route */
	CAUSES
};

enum family {
	IPV4,
	IPV6,
	FAMILIES
};

static inline enum family family_of(const struct address *address)
{
	return address->sa.sa_family == AF_INET ? IPV4 : IPV6;
}

struct plan {
	struct address_list targets;
	struct address_list sources[FAMILIES];
	unsigned int processes;
	unsigned int connections; /* at once, in all processes */
	uint64_t total; /* 0: no limit */
	uint64_t length_ns; /* UINT64_MAX: no limit */
	uint64_t warmup_ns;
	uint64_t timeout_ns;
	double rate; /* connections a second; 0: closed loop */
	unsigned int requests; /* on each connection */
	unsigned int hold; /* connections to keep open; 0: short connections */
	const char *path;
	bool lean;
	bool json;
	bool progress;
};

/*
 * What one process has seen: written by it, read by the parent. Counts are of connections whose
 * intended start lies after the warm-up, unless noted.
 */
struct tally {
	uint64_t started;
	uint64_t completed;
	uint64_t requests; /* answered */
	uint64_t failed[CAUSES];
	uint64_t lost_before_request; /* reset or closed without a byte of an answer */
	uint64_t lost_after_request;
	uint64_t client_closed; /* the server left it to us to close first */
	uint64_t late_starts; /* open loop: more than LATE_NS after the intended start */
	uint64_t max_late_ns;
	uint64_t held; /* --hold: open now */
	uint64_t dropped; /* --hold: ended by the server while held */
	uint64_t in_window; /* completed between warm-up and end, whenever started */
	uint64_t all_completed; /* with those of the warm-up */
	uint64_t all_failed; /* with those of the warm-up */
	uint64_t last_ns; /* when the latest connection completed or failed */
	int system_errno; /* of the latest CAUSE_SYSTEM */
	bool settled; /* --hold: every connection is open or has failed */
	struct histogram latency; /* of requests; a connection's first counts from its start */
} __attribute__((aligned(CACHE_LINES)));

#define LATE_NS NS_PER_MS

/* In shared memory: set by the parent, read by the processes. */
struct control {
	uint64_t start_ns;
	bool stop; /* finish at once */
} __attribute__((aligned(CACHE_LINES)));

/* load_process.c: runs the share of process @index until it is done. */
void run_process(const struct plan *plan, const volatile struct control *control,
		 struct tally *tally, unsigned int index);

/* load_http.c */

struct reply {
	char *partial; /* the start of a head that came in pieces */
	uint64_t left; /* bytes of the body to come, where the length is known */
	uint32_t partial_len;
	bool started; /* a byte has come */
	bool head; /* the head is complete */
	bool length; /* the head had a Content-Length */
	bool close; /* the server is going to close */
};

enum verdict {
	REPLY_MORE,
	REPLY_DONE,
	REPLY_STATUS,
	REPLY_PROTOCOL
};

/* Takes the next @len bytes of an answer. */
enum verdict reply_take(struct reply *reply, const char *data, size_t len);

/* Is an answer that ends with the connection complete? */
bool reply_ends(const struct reply *reply);

/* Makes ready for the next answer. */
void reply_reset(struct reply *reply);

/* A GET request for @target; the caller frees it. */
char *make_request(const struct plan *plan, const struct address *target, bool keep);

/* load_report.c */

struct outcome {
	struct tally sum; /* of all processes */
	double seconds; /* measured */
	uint64_t hold_target;
	unsigned int processes;
	bool interrupted;
};

void print_json(FILE *out, const struct outcome *outcome);
void print_text(FILE *out, const struct outcome *outcome);

/* Adds @from to the counts in @into. */
void tally_merge(struct tally *into, const struct tally *from);

/* Connections that failed for another reason than reset, refusal and timeout. */
uint64_t other_failures(const struct tally *tally);

/* A line about the second since @before, which becomes @now. */
void print_progress(FILE *out, double second, const struct tally *now, struct tally *before);

#endif
