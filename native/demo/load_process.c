// SPDX-License-Identifier: GPL-2.0-or-later
/* One process of the load generator: when connections start, and when all is done. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include "load_connection.h"

#define EVENTS 512
#define BURST 64 /* starts before answers are looked at again */
#define LOOK_NS (50 * NS_PER_MS) /* how often the parent's wish to stop is looked at */

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
	process->share = plan->total ? part(plan->total, plan->processes, process->index) :
				       UINT64_MAX;
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
