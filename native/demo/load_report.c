// SPDX-License-Identifier: GPL-2.0-or-later
/* The outcome, for programs and for people. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <string.h>

#include "load.h"

static const struct quantile {
	const char *name;
	double share;
} quantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}};

#define QUANTILES (sizeof(quantiles) / sizeof(*quantiles))

static const char *const other_names[] = {"status", "closed", "truncated", "protocol", "system"};

static double us(uint64_t ns)
{
	return (double)ns / NS_PER_US;
}

uint64_t other_failures(const struct tally *tally)
{
	uint64_t sum = 0;

	for (unsigned int cause = CAUSE_STATUS; cause < CAUSES; cause++)
		sum += tally->failed[cause];
	return sum;
}

static uint64_t failures(const struct tally *tally)
{
	return tally->failed[CAUSE_RESET] + tally->failed[CAUSE_REFUSED] +
	       tally->failed[CAUSE_TIMEOUT] + other_failures(tally);
}

void tally_merge(struct tally *into, const struct tally *from)
{
	into->started += from->started;
	into->completed += from->completed;
	into->requests += from->requests;
	for (unsigned int cause = 0; cause < CAUSES; cause++)
		into->failed[cause] += from->failed[cause];
	into->lost_before_request += from->lost_before_request;
	into->lost_after_request += from->lost_after_request;
	into->client_closed += from->client_closed;
	into->late_starts += from->late_starts;
	if (from->max_late_ns > into->max_late_ns)
		into->max_late_ns = from->max_late_ns;
	into->held += from->held;
	into->dropped += from->dropped;
	into->in_window += from->in_window;
	into->all_completed += from->all_completed;
	into->all_failed += from->all_failed;
	if (from->last_ns > into->last_ns)
		into->last_ns = from->last_ns;
	if (from->system_errno)
		into->system_errno = from->system_errno;
	histogram_merge(&into->latency, &from->latency);
}

static double per_second(const struct outcome *outcome, uint64_t count)
{
	return outcome->seconds > 0 ? count / outcome->seconds : 0;
}

/* Connections neither completed nor failed nor held: an interrupt left them. */
static uint64_t unfinished(const struct tally *sum)
{
	return sum->started - sum->completed - failures(sum) - sum->held - sum->dropped;
}

static void print_latency(FILE *out, const struct histogram *latency)
{
	const char *comma = "";

	fputs(",\"latency_us\":{", out);
	if (latency->total) {
		fprintf(out, "\"mean\":%.3f", us(latency->sum) / latency->total);
		for (unsigned int i = 0; i < QUANTILES; i++)
			fprintf(out, ",\"%s\":%.3f", quantiles[i].name,
				us(histogram_quantile(latency, quantiles[i].share)));
		fprintf(out, ",\"max\":%.3f", us(latency->max));
	} else {
		fputs("\"mean\":null", out);
		for (unsigned int i = 0; i < QUANTILES; i++)
			fprintf(out, ",\"%s\":null", quantiles[i].name);
		fputs(",\"max\":null", out);
	}
	fputs("},\"histogram\":[", out);
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++)
		if (latency->count[i]) {
			fprintf(out, "%s[%.3f,%" PRIu64 "]", comma, us(histogram_upper(i)),
				latency->count[i]);
			comma = ",";
		}
	fputc(']', out);
}

void print_json(FILE *out, const struct outcome *outcome)
{
	const struct tally *sum = &outcome->sum;

	fprintf(out, "{\"seconds\":%.6f,\"processes\":%u,\"interrupted\":%s", outcome->seconds,
		outcome->processes, outcome->interrupted ? "true" : "false");
	fprintf(out, ",\"started\":%" PRIu64 ",\"completed\":%" PRIu64 ",\"unfinished\":%" PRIu64,
		sum->started, sum->completed, unfinished(sum));
	fprintf(out, ",\"requests\":%" PRIu64 ",\"cps\":%.3f,\"rps\":%.3f", sum->requests,
		per_second(outcome, sum->in_window), per_second(outcome, sum->requests));
	fprintf(out,
		",\"errors\":{\"reset\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"timeout\":%" PRIu64
		",\"other\":%" PRIu64 "}",
		sum->failed[CAUSE_RESET], sum->failed[CAUSE_REFUSED], sum->failed[CAUSE_TIMEOUT],
		other_failures(sum));
	fputs(",\"other_causes\":{", out);
	for (unsigned int cause = CAUSE_STATUS; cause < CAUSES; cause++)
		fprintf(out, "%s\"%s\":%" PRIu64, cause > CAUSE_STATUS ? "," : "",
			other_names[cause - CAUSE_STATUS], sum->failed[cause]);
	fprintf(out,
		"},\"accepted_lost\":{\"before_request\":%" PRIu64 ",\"after_request\":%" PRIu64
		"}",
		sum->lost_before_request, sum->lost_after_request);
	fprintf(out, ",\"client_closed\":%" PRIu64 ",\"held\":%" PRIu64 ",\"dropped\":%" PRIu64,
		sum->client_closed, sum->held, sum->dropped);
	fprintf(out, ",\"late_starts\":%" PRIu64 ",\"max_late_us\":%.3f", sum->late_starts,
		us(sum->max_late_ns));
	print_latency(out, &sum->latency);
	fputs("}\n", out);
}

void print_text(FILE *out, const struct outcome *outcome)
{
	const struct tally *sum = &outcome->sum;

	if (outcome->hold_target)
		fprintf(out,
			"held %" PRIu64 " of %" PRIu64 " connections, %" PRIu64
			" dropped by the server\n",
			sum->held, outcome->hold_target, sum->dropped);
	else
		fprintf(out,
			"%" PRIu64 " of %" PRIu64
			" connections completed in %.2f s, %.0f a second%s\n",
			sum->completed, sum->started, outcome->seconds,
			per_second(outcome, sum->in_window),
			outcome->interrupted ? " (interrupted)" : "");
	if (sum->requests != sum->completed)
		fprintf(out, "%" PRIu64 " requests answered, %.0f a second\n", sum->requests,
			per_second(outcome, sum->requests));
	if (sum->latency.total) {
		fprintf(out, "latency in us: mean %.1f", us(sum->latency.sum) / sum->latency.total);
		for (unsigned int i = 0; i < QUANTILES; i++)
			fprintf(out, ", %s %.1f", quantiles[i].name,
				us(histogram_quantile(&sum->latency, quantiles[i].share)));
		fprintf(out, ", max %.1f\n", us(sum->latency.max));
	}
	fprintf(out,
		"errors: %" PRIu64 " reset, %" PRIu64 " refused, %" PRIu64 " timed out, %" PRIu64
		" other\n",
		sum->failed[CAUSE_RESET], sum->failed[CAUSE_REFUSED], sum->failed[CAUSE_TIMEOUT],
		other_failures(sum));
	for (unsigned int cause = CAUSE_STATUS; cause < CAUSES; cause++)
		if (sum->failed[cause])
			fprintf(out, "  %s: %" PRIu64 "%s%s\n", other_names[cause - CAUSE_STATUS],
				sum->failed[cause], cause == CAUSE_SYSTEM ? ", the latest: " : "",
				cause == CAUSE_SYSTEM ? strerror(sum->system_errno) : "");
	if (sum->lost_before_request || sum->lost_after_request)
		fprintf(out,
			"lost without a byte of an answer: %" PRIu64 " before and %" PRIu64
			" after the request was sent\n",
			sum->lost_before_request, sum->lost_after_request);
	if (sum->late_starts)
		fprintf(out, "%" PRIu64 " connections started late, by up to %.1f ms\n",
			sum->late_starts, (double)sum->max_late_ns / NS_PER_MS);
}

void print_progress(FILE *out, double second, const struct tally *now, struct tally *before)
{
	/* Static: a histogram is too large for the stack of a small thread or a deep caller. */
	static struct histogram delta;

	delta = now->latency;
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++)
		delta.count[i] -= before->latency.count[i];
	delta.total -= before->latency.total;
	fprintf(out, "%6.1f s %8" PRIu64 " connections, %" PRIu64 " failed, %" PRIu64 " held",
		second, now->all_completed - before->all_completed,
		now->all_failed - before->all_failed, now->held);
	if (delta.total)
		fprintf(out, "; p50 %.1f us, p99 %.1f us", us(histogram_quantile(&delta, 0.5)),
			us(histogram_quantile(&delta, 0.99)));
	fputc('\n', out);
	fflush(out);
	*before = *now;
}
