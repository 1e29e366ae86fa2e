// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a worker tells now and then of its slots: paused or polled, and how long the queue is. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "fsocket.h"

/* The application stopped polling the slot (`paused`) or goes on. */
void fs_pause(struct listener *l, int index, int paused)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_guard guard;

	fs_lock(&pl->lock, &guard);
	if (pl->slot[index].state == (paused ? FS_SLOT_CLAIMED : FS_SLOT_PAUSED))
		fs_set_state(pl, index, paused ? FS_SLOT_PAUSED : FS_SLOT_CLAIMED);
	fs_unlock(&pl->lock, &guard);
}

/* What was sent to the slot, and neither was accepted nor waits, never completed. */
static void settle(struct listener *l, int index, int fd)
{
	struct fs_slot *slot = page_slot(l->page_index, index);
	struct tcp_info info;
	socklen_t length = sizeof(info);

	/* Of a listener, tcpi_unacked is the length of its queue. */
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0)
		slot->settled = slot->assigned - slot->accepted - info.tcpi_unacked;
}

/* What waits on slots that are paused is for the others. Not said at the pause: nginx takes its
 * listener out of epoll and puts it back at every sixteenth connection.
 */
static void ask_for_the_paused(struct fs_listener *pl)
{
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *slot = &pl->slot[i];

		if (slot->state == FS_SLOT_PAUSED &&
		    slot->assigned != slot->accepted + slot->settled) {
			slot->help = FS_HELP_ALWAYS;
			pl->help = 1;
		}
	}
}

/* From time to time: let the slots of this thread know how long their queues are, and the
 * listener whether somebody left connections behind.
 */
void fs_settle(void)
{
	int saved = errno;

	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];
		struct stand_in *own;

		if (l->fd < 0 || l->slot < 0)
			continue;
		own = fs_stand_in(l, fs_last_epfd);
		settle(l, own ? own->slot : l->slot, own ? own->fd : l->fd);
		ask_for_the_paused(&fs_page->listener[l->page_index]);
	}
	errno = saved;
}
