// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Lean connections: whether an application takes long between its answer and the close without
 * any call of ours: it computes, or sleeps in a call that is not ours. It must be the application,
 * and not the machine that ran others.
 */
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "lean.h"

#define SLOW_US 1000
#define WATCH 255 /* writes of the thread that are measured after a slow connection */
#define BLAMES 24 /* that are too many, less one for so many measured writes: */
#define FORGIVEN 8
#define WEIGHT 8 /* of one that took four times as long */

uint32_t lean_slow_ticks; /* SLOW_US by lean_ticks(); 0 until that is known */
static uint64_t start_ticks, start_us;

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

void lean_start(void)
{
	lean_allow();
	start_us = now_us();
	start_ticks = lean_ticks();
}

/* Note what the thread used so far, for a verdict on what follows. */
void lean_measure(void)
{
	struct rusage usage;

	lean_unfold();
	lean_thread.watch -= lean_thread.watch > 0;
	lean_fold();
	if (++lean_thread.measured % FORGIVEN == 0)
		lean_thread.blames -= lean_thread.blames > 0;
	if (getrusage(RUSAGE_THREAD, &usage) < 0)
		return;
	lean_thread.cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000ULL +
			     usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	lean_thread.sleeps = usage.ru_nvcsw;
}

/* The first slow connection only begins to measure, and a few are allowed: a collector of garbage
 * has its turns.
 */
static int is_to_blame(uint32_t ticks)
{
	uint64_t cpu_us = lean_thread.cpu_us, sleeps = lean_thread.sleeps, own_us;
	int measured = lean_thread.watch;

	lean_measure();
	lean_unfold();
	lean_thread.watch = WATCH;
	lean_fold();
	own_us = lean_thread.sleeps != sleeps ? (uint64_t)ticks * SLOW_US / lean_slow_ticks :
						lean_thread.cpu_us - cpu_us;
	if (!measured)
		lean_thread.blames = 0;
	else if (own_us > SLOW_US)
		lean_thread.blames += own_us > 4 * SLOW_US ? WEIGHT : 1;
	return lean_thread.blames >= BLAMES;
}

/* Whether it took long since it last wrote to the connection: 1, and 2 if that was too often. */
int lean_slowness(const struct fd_entry *entry)
{
	uint32_t ticks = lean_ticks() - entry->at;

	if (!lean_slow_ticks) {
		uint64_t us = now_us() - start_us + 1;

		lean_slow_ticks = (lean_ticks() - start_ticks) * SLOW_US / us + 1;
		return 1;
	}
	return ticks > lean_slow_ticks ? 1 + is_to_blame(ticks) : 0;
}
