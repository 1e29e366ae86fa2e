// SPDX-License-Identifier: GPL-2.0-or-later
/* The log-linear histogram of latencies. */
#include <math.h>

#include "load.h"

static unsigned int bucket_of(uint64_t ns)
{
	unsigned int exponent;

	if (ns < 1U << HISTOGRAM_BITS)
		return ns;
	exponent = 63 - __builtin_clzll(ns);
	if (exponent >= HISTOGRAM_TOP)
		return HISTOGRAM_BUCKETS - 1;
	/* The leading one of the shifted value adds the last 1 to the power of two. */
	return ((exponent - HISTOGRAM_BITS) << HISTOGRAM_BITS) +
	       (ns >> (exponent - HISTOGRAM_BITS));
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
	histogram->count[bucket_of(ns)]++;
	histogram->total++;
	histogram->sum += ns;
	if (ns > histogram->max)
		histogram->max = ns;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++)
		into->count[i] += from->count[i];
	into->total += from->total;
	into->sum += from->sum;
	if (from->max > into->max)
		into->max = from->max;
}

uint64_t histogram_upper(unsigned int bucket)
{
	unsigned int shift = bucket >> HISTOGRAM_BITS;
	uint64_t mantissa = bucket & ((1U << HISTOGRAM_BITS) - 1);

	if (!shift)
		return bucket;
	shift--;
	return ((mantissa + (1U << HISTOGRAM_BITS) + 1) << shift) - 1;
}

uint64_t histogram_quantile(const struct histogram *histogram, double quantile)
{
	uint64_t rank = (uint64_t)ceil(quantile * (double)histogram->total);
	uint64_t seen = 0;

	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += histogram->count[i];
		if (seen && seen >= rank) {
			uint64_t upper = histogram_upper(i);

			return upper < histogram->max ? upper : histogram->max;
		}
	}
	return 0;
}
