// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Lean connections: how one goes, from its first read to its close, wherever it leaves the short
 * way of lean.h. A connection that goes on after LEAN_MOST_ANSWERS is no short one and is left alone.
 */
#include <unistd.h>

#include "lean.h"

static int has(const struct fd_entry *entry, enum fs_means means)
{
	return entry->plan >> means & 1;
}

/* Whether this thread has not waited since the connection was last read or written. */
static int is_same_turn(const struct fd_entry *entry)
{
	return entry->lean & LEAN_OPEN || entry->turn == lean_thread.turn;
}

/* Before a read from `fd`: it may sleep, and the thread with its promise may be another. */
void lean_read_begins(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (entry->kind == FD_CLIENT)
		lean_client_reads(entry, fd);
	if (lean_thread.only || (entry->kind == FD_CONNECTION && entry->lean & LEAN_OPEN))
		lean_before_io(fd, 0);
}

/* After any read, with its result; a client that left without a request says nothing. */
ssize_t lean_read_ends(int fd, ssize_t result)
{
	struct fd_entry *entry = lean_connection(fd);

	if (fd_entry(fd)->kind == FD_CLIENT && result >= 0)
		lean_client_ends(fd_entry(fd), fd);
	if (!entry || entry->lean & LEAN_READ)
		return result;
	if (result == 0)
		entry->lean = LEAN_PLAIN;
	if (result <= 0)
		return result;
	entry->lean |= LEAN_READ;
	entry->turn = lean_thread.turn;
	if (has(entry, FS_MEANS_ACK) && !(entry->lean & LEAN_WROTE)) {
		lean_promise(fd);
		entry->lean |= LEAN_OWED;
	}
	return result;
}

/* Before a write to a watched connection: whether the kernel is to hold its end back. */
int lean_wants_hold(struct fd_entry *entry)
{
	unsigned exchange = entry->exchange;

	if (!has(entry, FS_MEANS_HOLD) || !(entry->lean & LEAN_READ) || entry->lean & LEAN_CORKED ||
	    entry->spawns != lean_spawns)
		return 0;
	exchange += !exchange || !is_same_turn(entry);
	return exchange == entry->plan >> FS_MEANS;
}

/* Before a write to `fd`; returns whether it is to be held. */
int lean_write_begins(int fd, int flags)
{
	struct fd_entry *entry = fd_entry(fd);

	if (lean_thread.only && lean_thread.only != entry)
		lean_before_io(fd, 1);
	entry = lean_connection(fd);
	return entry && !(flags & LEAN_ODD_FLAGS) && lean_wants_hold(entry);
}

/* The first byte of an answer is written: was there a request, and was it just read? */
static void judge_answer(struct fd_entry *entry)
{
	struct fs_lean *lean = lean_of(entry);

	if (entry->spawns != lean_spawns)
		return;
	if (!(entry->lean & LEAN_READ)) {
		lean_contradict(lean, FS_MEANS_DEFER, FS_SPOKE_FIRST);
		lean_contradict(lean, FS_MEANS_ACK, FS_SPOKE_FIRST);
		return;
	}
	lean_affirm(lean, FS_MEANS_DEFER);
	if (is_same_turn(entry))
		lean_affirm(lean, FS_MEANS_ACK);
	else
		lean_contradict(lean, FS_MEANS_ACK, FS_WAITED);
}

/* How long was it since the last write? Returns whether it was too long to affirm anything. */
static int judge_time(struct fd_entry *entry)
{
	int slowness = lean_slowness(entry);

	if (slowness > 1)
		lean_contradict(lean_of(entry), FS_MEANS_HOLD, FS_WAS_SLOW);
	return slowness;
}

/* After a write of at least a byte to a watched connection. */
static void was_written(struct fd_entry *entry, int fd, int held)
{
	uint8_t before = entry->lean;

	if (!(before & LEAN_WROTE))
		judge_answer(entry);
	if (!entry->exchange || !is_same_turn(entry))
		entry->exchange++;
	else
		judge_time(entry);
	entry->lean = (before & ~LEAN_OPEN) | LEAN_WROTE | (held ? LEAN_HELD : 0);
	entry->turn = lean_thread.turn;
	entry->at = lean_ticks();
	if (lean_thread.watch)
		lean_measure();
	if (held && !(before & LEAN_OPEN))
		lean_promise(fd);
	if (!held && entry->exchange > LEAN_MOST_ANSWERS) {
		lean_contradict(lean_of(entry), FS_MEANS_HOLD, FS_VARIED);
		entry->lean = LEAN_PLAIN;
	}
}

/* After any write, with its result. */
ssize_t lean_write_ends(int fd, ssize_t result, int held)
{
	struct fd_entry *entry = lean_connection(fd);

	if (fd_entry(fd)->kind == FD_CLIENT && result > 0)
		lean_client_wrote(fd_entry(fd), fd);
	if (entry && result > 0)
		was_written(entry, fd, held);
	return result;
}

static void learn_exchange(struct fs_lean *lean, const struct fd_entry *entry)
{
	if (lean->exchange == entry->exchange)
		return;
	if (lean->exchange)
		lean_contradict(lean, FS_MEANS_HOLD, FS_VARIED);
	lean->exchange = entry->exchange;
}

/* The connection is closed (`last`) or shut down for writing, and over for us. */
void lean_judge_close(struct fd_entry *entry, int fd, int last)
{
	struct fs_lean *lean = lean_of(entry);
	int saved = errno, held = entry->lean & LEAN_HELD;

	if (entry->spawns != lean_spawns || (held && lean_is_child())) {
		lean_release(entry, fd, FS_SHARED); /* a child of vfork() closes its own copy */
	} else if (!(entry->lean & LEAN_WROTE)) {
		; /* the client went away, which says nothing of the application */
	} else if (held) {
		if (last)
			lean_send_fin(fd);
		judge_time(entry);
	} else if (!is_same_turn(entry)) {
		lean_contradict(lean, FS_MEANS_HOLD, FS_WAITED);
	} else {
		learn_exchange(lean, entry);
		if (!judge_time(entry))
			lean_affirm(lean, FS_MEANS_HOLD);
	}
	lean_forget(fd);
	entry->lean = LEAN_PLAIN;
	errno = saved;
}
