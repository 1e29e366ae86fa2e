// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Lean connections: what the connections of a listener prove. Each of three means is proven by
 * itself, by so many connections in a row, and dropped at the first that contradicts it. What is
 * learned stands in the status page, for all workers together.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lean.h"

#define BIT(means) (1u << (means))
#define LATE (1u << 31) /* of l->lean: makes it differ from the page's for some connections more: */
#define MOST_LATE 1024 /* as may have been queued with other means */

#define FAST_OPENED 256 /* connections of a listener whose handshake has not ended */

uint32_t lean_allowed = BIT(FS_MEANS_HOLD) | BIT(FS_MEANS_ACK);
int lean_fast_open;

/* What costs something where an application changes its ways is used only if somebody asked. */
void lean_allow(void)
{
	const char *words = getenv("FASTSOCKET_LEAN") ?: "";

	if (strstr(words, "defer-accept"))
		lean_allowed |= BIT(FS_MEANS_DEFER);
	lean_fast_open = !!strstr(words, "fast-open");
}

/* How many requests may wait in SYNs, unless the application lets some. */
static void open_fast(int fd)
{
	int opened = 0;
	socklen_t length = sizeof(opened);

	if (NEXT(getsockopt)(fd, IPPROTO_TCP, TCP_FASTOPEN, &opened, &length) < 0 || opened)
		return;
	opened = FAST_OPENED;
	NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_FASTOPEN, &opened, sizeof(opened));
}

static void set_on_listener(int fd, unsigned on, unsigned own)
{
	int defer = !!(on & BIT(FS_MEANS_DEFER)), quick = !(on & BIT(FS_MEANS_ACK));

	if (fd < 0)
		return;
	if (lean_fast_open)
		open_fast(fd);
	if (lean_allowed & ~own & BIT(FS_MEANS_DEFER))
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer, sizeof(defer));
	if (!(own & BIT(FS_MEANS_ACK)))
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &quick, sizeof(quick));
}

/* Give the listener's sockets in this process what is on. A deferred accept waits for a second
 * at most: the SYN/ACK is repeated once, and the answer to that ends it.
 */
static void apply(struct listener *l)
{
	const struct fs_lean *lean = &fs_page->listener[l->page_index].lean;
	unsigned on = __atomic_load_n(&lean->on, __ATOMIC_RELAXED);
	int saved = errno;

	if (l->lean & ~on & BIT(FS_MEANS_ACK))
		l->lean_late = MOST_LATE;
	set_on_listener(l->fd, on, lean->own);
	set_on_listener(l->origin, on, lean->own);
	for (int i = 0; i < l->siblings; i++)
		set_on_listener(l->sibling[i], on, lean->own);
	for (int i = 0; i < l->stand_ins; i++)
		set_on_listener(l->stand_in[i].fd, on, lean->own);
	l->lean = on | (l->lean_late ? LATE : 0);
	errno = saved;
}

static void apply_everywhere(const struct fs_lean *lean)
{
	for (int i = 0; i < fs_listener_count; i++)
		if (fs_listeners[i].fd >= 0 &&
		    &fs_page->listener[fs_listeners[i].page_index].lean == lean)
			apply(&fs_listeners[i]);
}

/* What is on has changed, or did not long ago. Connections that were queued when the lone ACK came
 * back still lack theirs: they are treated as if it had not.
 */
void lean_catch_up(struct listener *l, struct fd_entry *entry)
{
	if ((l->lean & ~LATE) != fs_page->listener[l->page_index].lean.on)
		apply(l);
	entry->plan = l->lean & LEAN_PLAN;
	if (l->lean & LATE) {
		entry->plan |= BIT(FS_MEANS_ACK);
		if (--l->lean_late == 0)
			l->lean &= ~LATE;
	}
}

/* What the application chose for itself stays as it is. */
static int is_own(struct fs_lean *lean, enum fs_means means)
{
	for (int i = 0; i < fs_listener_count; i++) {
		const struct listener *l = &fs_listeners[i];
		struct linger linger = {0};
		socklen_t length = sizeof(linger);
		int value = 0;

		if (l->fd < 0 || &fs_page->listener[l->page_index].lean != lean)
			continue;
		if (means == FS_MEANS_HOLD)
			NEXT(getsockopt)(l->fd, SOL_SOCKET, SO_LINGER, &linger, &length);
		length = sizeof(value);
		if (means == FS_MEANS_DEFER && !(l->lean & BIT(FS_MEANS_DEFER)))
			NEXT(getsockopt)(l->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &value, &length);
		if (linger.l_onoff || value)
			lean->own |= BIT(means);
	}
	return !!(lean->own & BIT(means));
}

static void turn_on(struct fs_lean *lean, enum fs_means means)
{
	uint32_t bits = BIT(means), on;
	int saved = errno;

	lean->means[means].proof = 0;
	if (!is_own(lean, means)) {
		if (means == FS_MEANS_HOLD)
			bits |= lean->exchange << FS_MEANS;
		on = __atomic_load_n(&lean->on, __ATOMIC_RELAXED);
		while (!(on & BIT(means)) &&
		       !__atomic_compare_exchange_n(&lean->on, &on, on | bits, 0, __ATOMIC_RELAXED,
						    __ATOMIC_RELAXED))
			;
		apply_everywhere(lean);
	}
	errno = saved;
}

/* A connection went as the means wants it. */
void lean_affirm(struct fs_lean *lean, enum fs_means means)
{
	struct fs_lean_means *m = &lean->means[means];
	uint32_t need = m->need ?: FS_LEAN_PROOF;

	if ((lean->on | lean->own | ~lean_allowed) & BIT(means) || need == FS_LEAN_NEVER)
		return;
	if (__atomic_add_fetch(&m->proof, 1, __ATOMIC_RELAXED) >= need)
		turn_on(lean, means);
}

/* A connection went otherwise: the means is dropped, or its proof begins again. A silent
 * client hides itself from an application that speaks first, so deferring has one chance.
 */
void lean_contradict(struct fs_lean *lean, enum fs_means means, enum fs_contradiction why)
{
	struct fs_lean_means *m = &lean->means[means];
	uint32_t bits = BIT(means), need = m->need ?: FS_LEAN_PROOF;

	if (m->proof)
		m->proof = 0;
	if (m->reason != why)
		m->reason = why;
	if (means == FS_MEANS_DEFER && m->need != FS_LEAN_NEVER)
		m->need = FS_LEAN_NEVER;
	if (means == FS_MEANS_HOLD)
		bits |= ~LEAN_ALL;
	if (!(__atomic_load_n(&lean->on, __ATOMIC_RELAXED) & BIT(means)))
		return;
	if (!(__atomic_fetch_and(&lean->on, ~bits, __ATOMIC_RELAXED) & BIT(means)))
		return; /* another worker was faster */
	m->drops++;
	if (means != FS_MEANS_DEFER)
		m->need = need * 8 < FS_LEAN_MOST_PROOF ? need * 8 : FS_LEAN_MOST_PROOF;
	apply_everywhere(lean);
}

/* A new worker may be of a new version: what the old ones proved is void. */
void lean_relearn(struct listener *l, struct fs_listener *pl)
{
	struct fs_lean *lean = &pl->lean;

	fs_page->lean = lean_allowed;
	for (int i = 0; i < FS_MEANS; i++)
		lean->means[i] = (struct fs_lean_means){.drops = lean->means[i].drops,
							.reason = lean->means[i].reason};
	lean->exchange = 0;
	if (__atomic_exchange_n(&lean->on, 0, __ATOMIC_RELAXED) || lean_fast_open)
		apply(l);
}

/* The application chose an option of its listener that is one of our means. */
void lean_listener_option(struct listener *l, int level, int name, const void *value, socklen_t len)
{
	int means = name == TCP_QUICKACK ? FS_MEANS_ACK : FS_MEANS_DEFER;
	struct fs_lean *lean;

	if (level != IPPROTO_TCP || (name != TCP_QUICKACK && name != TCP_DEFER_ACCEPT))
		return;
	if (name == TCP_DEFER_ACCEPT && !(len >= sizeof(int) && *(const int *)value))
		return;
	lean = &fs_page->listener[l->page_index].lean;
	lean->own |= BIT(means);
	lean_contradict(lean, means, FS_SET_OPTION);
}
