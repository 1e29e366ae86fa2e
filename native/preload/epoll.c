// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Fast epoll: epoll_ctl() of connections is done before the next wait, and then only what is left to
 * do. What it returns is what the kernel would have returned, so a call waits only where that is
 * known: the connection was seen when it was accepted or its socket made, no other descriptor,
 * process or thread has it, and the epoll instance was seen when it was made. Whatever ends this
 * certainty has all that waits done first, and from then on calls are plain ones.
 *
 * A deletion outlasts waits that only look (asyncio makes one between it and the close) where its
 * events can be told from others' and taken out.
 *
 * All of it is for processes with one thread, so there are no locks; a signal handler may come at
 * any time and finds `busy` set where it must leave the queue alone.
 */
#include <errno.h>
#include <sys/mman.h>

#include "epoll.h"

#define MOST 64 /* descriptors whose calls wait */
#define ODD_EVENTS (EPOLLEXCLUSIVE | EPOLLWAKEUP) /* with rules of their own */
#define EACH_COUNTS (EPOLLET | EPOLLONESHOT) /* setting them again makes the kernel look again */

enum fast_kind {
	STRANGER,
	INSTANCE, /* an epoll instance of this process alone */
	CONNECTION, /* accepted, or a socket that may become one, and of this process alone */
};

struct fast_watch *fast_watches;
unsigned fast_kept, fast_refusals;

static uint32_t era = 1, births, alive; /* instances, ever and in this era */
static int queue[MOST]; /* whose calls wait; done or undone ones stay until the next flush */
static unsigned queued;
static volatile int busy; /* a wait or a change of the queue is under way */
static int merged; /* calls that were not made, since that was last published */
static enum fs_fast_epoll state = FS_FAST_EPOLL_ON;

COLD void fast_start(void)
{
	void *table;

	if (!fs_fds || !&__libc_single_threaded)
		return;
	table = mmap(NULL, fs_fd_count * sizeof(*fast_watches), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (table != MAP_FAILED)
		fast_watches = table;
}

static inline struct fast_watch *known(int fd, enum fast_kind kind)
{
	struct fast_watch *w = (unsigned)fd < fs_fd_count ? &fast_watches[fd] : NULL;

	return w && w->kind == kind && w->era == era ? w : NULL;
}

/* To a signal handler, what is written before is. */
static inline void set_busy(int value)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	busy = value;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Make the call that waits for `fd`. What fails for lack of memory goes on waiting; of other
 * failures the cause was not seen, so nothing is known any more.
 */
static void apply(int fd, struct fast_watch *w)
{
	struct epoll_event event = {.events = w->wanted, .data.u64 = w->wanted_data};
	int op = __atomic_exchange_n(&w->op, 0, __ATOMIC_ACQ_REL), saved = errno;

	if (!op)
		return;
	merged--;
	if (NEXT(epoll_ctl)(w->epfd, op, fd, &event) == 0) {
		w->events = event.events;
		w->data = event.data.u64;
		w->birth = op == EPOLL_CTL_DEL ? 0 : w->birth;
	} else if (op == EPOLL_CTL_ADD && (errno == ENOSPC || errno == ENOMEM)) {
		w->op = op;
		merged++;
	} else {
		w->kind = STRANGER;
	}
	errno = saved;
}

static int outlasts(const struct fast_watch *w)
{
	const struct fast_watch *instance = known(w->epfd, INSTANCE);

	return w->op == EPOLL_CTL_DEL && instance && instance->by_fd;
}

/* Make the calls that wait; with `keeps` not the deletions that can wait on. */
static void flush(int keeps, int nested)
{
	unsigned left = 0, kept = 0, refused = 0;
	int before = busy;

	set_busy(before + 1);
	for (unsigned i = 0; i < queued; i++) {
		int fd = queue[i];
		struct fast_watch *w = &fast_watches[fd];

		if (!keeps || !outlasts(w))
			apply(fd, w);
		kept += w->op == EPOLL_CTL_DEL;
		refused += w->op == EPOLL_CTL_ADD;
		if (nested)
			continue;
		w->queued = !!w->op;
		if (w->queued)
			queue[left++] = fd;
	}
	if (!nested)
		queued = left;
	fast_kept = kept;
	fast_refusals = refused;
	set_busy(before);
}

/* Nothing is known any more of what is open now. */
static COLD void forget_all(enum fs_fast_epoll why)
{
	era++; /* first, so that a handler has nothing wait from here on */
	flush(0, busy);
	if (alive)
		state = why;
	alive = 0;
}

/* Threads are noticed by what they do next. */
static inline int is_alone(void)
{
	if (unlikely(!fs_alone() && alive))
		forget_all(FS_FAST_EPOLL_THREADS);
	return fs_alone();
}

/* What waits for a connection is now `op` in place of `was`, unless a signal handler had it done. */
static int becomes(struct fast_watch *w, uint8_t was, uint8_t op)
{
	if (!__atomic_compare_exchange_n(&w->op, &was, op, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return 0;
	merged++;
	return 1;
}

static int waits(int fd, struct fast_watch *w, uint8_t was, uint8_t op,
		 const struct epoll_event *event)
{
	if (event) {
		w->wanted = event->events;
		w->wanted_data = event->data.u64;
	}
	if (!w->queued)
		queue[queued++] = fd;
	w->queued = 1;
	return becomes(w, was, op);
}

/* The kernel has it registered: nothing is left to do where that is with the events wanted. */
static int changes(int fd, struct fast_watch *w, uint8_t was, const struct epoll_event *event)
{
	if (w->events == event->events && w->data == event->data.u64 &&
	    !(event->events & EACH_COUNTS))
		return becomes(w, was, 0);
	return waits(fd, w, was, EPOLL_CTL_MOD, event);
}

/* Whether a call can wait, and its outcome is success. */
static int defer(const struct fast_watch *instance, int epfd, int op, int fd, struct fast_watch *w,
		 const struct epoll_event *event)
{
	uint8_t was = w->op;
	int has = w->birth == instance->birth && was != EPOLL_CTL_DEL;

	if (op == EPOLL_CTL_DEL) {
		if (!has || was != EPOLL_CTL_ADD)
			return has && waits(fd, w, was, op, NULL);
		w->birth = 0;
		return becomes(w, was, 0);
	}
	if (!event || event->events & ODD_EVENTS)
		return 0;
	if (op == EPOLL_CTL_ADD) {
		if (was == EPOLL_CTL_DEL && w->birth == instance->birth)
			return changes(fd, w, was, event);
		if (w->birth || was)
			return 0;
		w->birth = instance->birth;
		w->epfd = epfd;
		return waits(fd, w, was, op, event);
	}
	if (op != EPOLL_CTL_MOD || !has)
		return 0;
	return was == EPOLL_CTL_ADD ? waits(fd, w, was, was, event) : changes(fd, w, was, event);
}

/* What a plain call changed. A connection that a second instance has, or one that we do not know,
 * is left alone for good.
 */
static void learn(const struct fast_watch *instance, int epfd, int op, struct fast_watch *w,
		  const struct epoll_event *event)
{
	if (!instance || (w->birth && w->birth != instance->birth) ||
	    (op != EPOLL_CTL_DEL && event->events & ODD_EVENTS)) {
		w->kind = STRANGER;
	} else if (op == EPOLL_CTL_DEL) {
		w->birth = 0;
	} else {
		w->birth = instance->birth;
		w->epfd = epfd;
		w->events = event->events;
		w->data = event->data.u64;
	}
}

int fast_ctl_watched(int epfd, int op, int fd, struct epoll_event *event, fast_plain *plain)
{
	int certain = is_alone() && !busy, result, deferred;
	struct fast_watch *instance = known(epfd, INSTANCE), *w = known(fd, CONNECTION);

	if (instance && op != EPOLL_CTL_DEL && event && event->data.fd != fd)
		instance->by_fd = 0;
	if (certain && instance && w) {
		set_busy(1);
		if (queued == MOST)
			flush(0, 0);
		deferred = queued < MOST && defer(instance, epfd, op, fd, w, event);
		set_busy(0);
		if (deferred)
			return 0;
	}
	if (w)
		apply(fd, w);
	else
		fast_shared(fd); /* an instance in another */
	result = plain(epfd, op, fd, event);
	if (w && !certain)
		w->kind = STRANGER;
	else if (w && result == 0)
		learn(instance, epfd, op, w, event);
	return result;
}

static void see(int fd, enum fast_kind kind, uint32_t birth)
{
	int is_ours = is_alone(), before = busy;

	if ((unsigned)fd >= fs_fd_count)
		return;
	set_busy(before + 1); /* so that the queue stays as it is */
	fast_watches[fd] = (struct fast_watch){.kind = is_ours ? kind : STRANGER,
					       .birth = birth,
					       .by_fd = 1,
					       .queued = fast_watches[fd].queued,
					       .era = era};
	set_busy(before);
}

void fast_opened_watched(int fd)
{
	see(fd, CONNECTION, 0);
}

/* The instance goes, and what waits for it is not needed. */
static void drop_instance(int epfd)
{
	for (unsigned i = 0; i < queued; i++) {
		struct fast_watch *w = &fast_watches[queue[i]];

		if (w->epfd == epfd)
			w->op = 0;
	}
}

static int created(int epfd)
{
	if (fast_watches && epfd >= 0) {
		drop_instance(epfd); /* another, whose close was not seen */
		see(epfd, INSTANCE, ++births);
		if (fs_alone()) {
			state = FS_FAST_EPOLL_ON;
			alive++;
		}
	}
	return epfd;
}

EXPORT int epoll_create(int size)
{
	return created(NEXT(epoll_create)(size));
}

EXPORT int epoll_create1(int flags)
{
	return created(NEXT(epoll_create1)(flags));
}

/* The kernel forgets what nobody has open. Another thread may still be in a call with it, and a
 * handler may have come while we were about to make the call.
 */
void fast_closing_watched(int fd)
{
	struct fast_watch *w = &fast_watches[fd];

	if (known(fd, INSTANCE))
		drop_instance(fd);
	else if (!fs_alone() || busy)
		apply(fd, w);
	w->op = 0;
	w->kind = STRANGER;
}

/* Before another descriptor or process has it too. */
void fast_shared(int fd)
{
	struct fast_watch *w;

	if (!fast_watches)
		return;
	w = known(fd, CONNECTION);
	if (w)
		apply(fd, w);
	else if ((w = known(fd, INSTANCE)))
		flush(0, busy);
	if (w)
		w->kind = STRANGER;
}

/* Before a fork of any kind, or an exec. */
void fast_spawns(void)
{
	if (fast_watches)
		forget_all(FS_FAST_EPOLL_SHARED);
}

void fast_wait_begins_watched(int keeps)
{
	int nested = busy;

	if (is_alone())
		set_busy(nested + 1);
	if (queued)
		flush(keeps, nested);
	else
		fast_kept = fast_refusals = 0;
	if (fs_worker) {
		fs_worker->fast_epoll = fs_alone() ? state : FS_FAST_EPOLL_THREADS;
		fs_worker->merged += merged;
		merged = 0;
	}
}

void fast_wait_ends(void)
{
	if (busy && fs_alone())
		set_busy(busy - 1);
}

/* A wait while the kernel has no memory for some connections, of which the application was told
 * that they are there: it is as if they were in trouble, until it closes them or there is memory.
 */
COLD int fast_wait_refused(int epfd, struct epoll_event *events, int max)
{
	int count = NEXT(epoll_wait)(epfd, events, max, 0);

	for (unsigned i = 0; count >= 0 && count < max && i < queued; i++) {
		const struct fast_watch *w = &fast_watches[queue[i]];

		if (w->op == EPOLL_CTL_ADD && w->epfd == epfd)
			events[count++] = (struct epoll_event){.events = EPOLLERR | EPOLLHUP,
							       .data.u64 = w->wanted_data};
	}
	return count;
}

COLD int fast_hides_some(int epfd, struct epoll_event *events, int max, int *result)
{
	int count = 0, full = *result == max;

	for (int i = 0; i < *result; i++) {
		const struct fast_watch *w = known(events[i].data.fd, CONNECTION);

		if (!w || w->op != EPOLL_CTL_DEL || w->epfd != epfd)
			events[count++] = events[i];
	}
	*result = count;
	if (count || !full)
		return 0;
	flush(0, busy > 1);
	return 1;
}
