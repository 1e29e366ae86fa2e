// SPDX-License-Identifier: GPL-2.0-or-later
/* The workers' counters, for programs and for people. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "demo.h"

/* Locality is counted with --stats only: it costs a system call a connection. */
static void print_local(FILE *out, const char *name, const struct options *options, uint64_t value)
{
	if (options->stats)
		fprintf(out, ",\"%s\":%" PRIu64, name, value);
	else
		fprintf(out, ",\"%s\":null", name);
}

static void print_counters(FILE *out, const struct options *options, const struct counters *c)
{
	fprintf(out, "\"accepted\":%" PRIu64 ",\"requests\":%" PRIu64 ",\"live\":%" PRIu64,
		c->accepted, c->requests, c->live);
	print_local(out, "local", options, c->local);
	fprintf(out, ",\"active\":%" PRIu64, c->active);
	print_local(out, "active_local", options, c->active_local);
	fprintf(out, ",\"backend_errors\":%" PRIu64 ",\"restarts\":%u", c->backend_errors,
		c->restarts);
}

void print_stats(FILE *out, const struct options *options, const struct counters *counters)
{
	struct counters sum = {0};

	for (unsigned int i = 0; i < options->workers; i++) {
		const struct counters *c = &counters[i];

		sum.accepted += c->accepted;
		sum.requests += c->requests;
		sum.live += c->live;
		sum.local += c->local;
		sum.active += c->active;
		sum.active_local += c->active_local;
		sum.backend_errors += c->backend_errors;
		sum.restarts += c->restarts;
	}
	fputc('{', out);
	print_counters(out, options, &sum);
	fputs(",\"workers\":[", out);
	for (unsigned int i = 0; i < options->workers; i++) {
		fprintf(out, "%s{\"worker\":%u,\"pid\":%d,\"cpu\":", i ? "," : "", i,
			counters[i].pid);
		if (options->first_core < 0)
			fputs("null,", out);
		else
			fprintf(out, "%u,", options->first_core + i);
		print_counters(out, options, &counters[i]);
		fputc('}', out);
	}
	fputs("]}\n", out);
}

bool save_stats(const char *path, const struct options *options, const struct counters *counters)
{
	char temporary[PATH_MAX];
	FILE *out;

	if (snprintf(temporary, sizeof(temporary), "%s.%d", path, getpid()) >= PATH_MAX) {
		errno = ENAMETOOLONG;
		return false;
	}
	out = fopen(temporary, "we");
	if (!out)
		return false;
	print_stats(out, options, counters);
	if (fclose(out))
		return false;
	return !rename(temporary, path);
}

void print_rate(int log, const struct options *options, const struct counters *counters,
		struct counters *before)
{
	uint64_t accepted = 0, live = 0, low = UINT64_MAX, high = 0;

	for (unsigned int i = 0; i < options->workers; i++) {
		uint64_t rate = counters[i].accepted - before[i].accepted;

		accepted += rate;
		live += counters[i].live;
		low = rate < low ? rate : low;
		high = rate > high ? rate : high;
		before[i] = counters[i];
	}
	dprintf(log,
		"%" PRIu64 " connections/s, %" PRIu64 " to %" PRIu64 " a worker; %" PRIu64
		" open\n",
		accepted, low, high, live);
}
