// SPDX-License-Identifier: LGPL-2.1-or-later
/* The client of the keeper, and the status page that takes its place where there is none. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "fsocket.h"

#define PATIENCE_S 5 /* without an answer a worker would share a socket for good */
#define MAX_FDS 2
#define PAUSE_NS 10000000
#define PAUSES 500 /* at most, while a new keeper's process lives */
#define BPF_MAP "anon_inode:bpf-map" /* as /proc shows one */

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_length;
static uid_t first_user;

/* Remember the keeper's name; applications such as nginx clear their environment later. */
void fs_keeper_find(void)
{
	const char *name = getenv("FASTSOCKET_KEEPER");
	size_t length = name ? strlen(name) : 0;

	if (!length || length >= sizeof(address.sun_path) - 1)
		return;
	first_user = geteuid();
	memcpy(address.sun_path + 1, name, length); /* a leading zero: an abstract name */
	address_length = offsetof(struct sockaddr_un, sun_path) + 1 + length;
}

/* Anybody could listen at the keeper's name: it must be root or the user that we started as. */
static int is_trusted(int keeper)
{
	struct ucred peer = {.uid = -1};
	socklen_t length = sizeof(peer);

	return NEXT(getsockopt)(keeper, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
	       (peer.uid == 0 || peer.uid == first_user);
}

static int try_keeper(void)
{
	const struct timeval patience = {.tv_sec = PATIENCE_S};
	int fd;

	if (!address_length) {
		errno = ENOTCONN;
		return -1;
	}
	fd = NEXT(socket)(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	NEXT(setsockopt)(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	NEXT(setsockopt)(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&address, address_length) < 0) {
		NEXT(close)(fd);
		return -1;
	}
	if (!is_trusted(fd)) {
		NEXT(close)(fd);
		errno = EPERM;
		return -1;
	}
	return fd;
}

/* A keeper that was killed is replaced; the new one takes a moment to come, for which a worker that
 * only tells of itself need not wait: it is in the page, where the new one looks.
 */
static int connect_keeper(enum fs_op op)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	int fd = try_keeper();

	if (fd >= 0 || errno != ECONNREFUSED)
		return fd;
	if (!fs_page) {
		pid_t keeper = fs_keeper_anew();

		for (int i = 0; fd < 0 && i < PAUSES && fs_alive(keeper, keeper, 0); i++) {
			nanosleep(&pause, NULL);
			fd = try_keeper();
		}
		return fd;
	}
	if (!fs_page->keeper)
		return fd;
	fs_keeper_ensure();
	for (int i = 0; op != FS_OP_WORKER && fd < 0 && i < PAUSES &&
			fs_alive(fs_page->keeper, fs_page->keeper, 0);
	     i++) {
		nanosleep(&pause, NULL);
		fd = try_keeper();
	}
	return fd;
}

static int ask_once(struct fs_request *request, int fd, struct fs_reply *reply, int *page_fd)
{
	union {
		char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {.iov_base = request, .iov_len = sizeof(*request)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int keeper = connect_keeper(request->op), error, result = -1;
	struct cmsghdr *head;
	ssize_t length;

	if (keeper < 0)
		return -1;
	request->magic = FS_KEEPER_MAGIC;
	if (fd >= 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int));
		head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(head), &fd, sizeof(int));
	}
	if (sendmsg(keeper, &message, MSG_NOSIGNAL) == sizeof(*request)) {
		part = (struct iovec){.iov_base = reply, .iov_len = sizeof(*reply)};
		memset(&control, 0, sizeof(control));
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof(control.bytes);
		length = NEXT(recvmsg)(keeper, &message, MSG_CMSG_CLOEXEC);
		error = length == 0 || (length < 0 && errno == ECONNRESET) ? ECONNRESET : ETIMEDOUT;
		if (length == sizeof(*reply) && reply->magic == FS_KEEPER_MAGIC) {
			error = reply->error;
			result = error ? -1 : 0;
		}
		head = CMSG_FIRSTHDR(&message); /* none, or an empty one, if no number was free */
		if (page_fd && head && head->cmsg_type == SCM_RIGHTS &&
		    head->cmsg_len >= CMSG_LEN(sizeof(int)))
			memcpy(page_fd, CMSG_DATA(head), sizeof(int));
	} else {
		error = errno;
	}
	NEXT(close)(keeper);
	if (result < 0)
		errno = error;
	return result;
}

/* One request and its reply; `page_fd` (or NULL) takes the first descriptor that comes back. Where
 * the keeper was killed before it answered, the one in its place is asked again.
 */
static int ask(struct fs_request *request, int fd, struct fs_reply *reply, int *page_fd)
{
	int result = ask_once(request, fd, reply, page_fd);

	if (result < 0 && errno == ECONNRESET)
		result = ask_once(request, fd, reply, page_fd);
	return result;
}

/* Whether `fd` is memory that nobody can shorten, which would end its readers with SIGBUS: a BPF
 * map, or a sealed memfd of the page's size.
 */
static int is_page(int fd)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_GROW;
	size_t unit = sysconf(_SC_PAGESIZE);
	char path[32], target[sizeof(BPF_MAP)] = "";
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat file;

	if (seals >= 0)
		return (seals & wanted) == wanted && fstat(fd, &file) == 0 &&
		       (size_t)file.st_size == (sizeof(struct fs_page) + unit - 1) / unit * unit;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, target, sizeof(target)) == sizeof(BPF_MAP) - 1 &&
	       memcmp(target, BPF_MAP, sizeof(BPF_MAP) - 1) == 0;
}

static struct fs_page *map_page(int fd)
{
	struct fs_page *page;

	if (!is_page(fd))
		return NULL;
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return NULL;
	if (page->magic == FS_PAGE_MAGIC && page->version == FS_PAGE_VERSION &&
	    page->size == sizeof(*page))
		return page;
	munmap(page, sizeof(*page));
	return NULL;
}

/* Without a keeper: a page of our own, which children share by inheritance. */
static struct fs_page *anonymous_page(void)
{
	struct fs_page *page;
	cpu_set_t set;

	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (page == MAP_FAILED)
		return NULL;
	page->magic = FS_PAGE_MAGIC;
	page->version = FS_PAGE_VERSION;
	page->size = sizeof(*page);
	page->listen_spawn = fs_mode;
	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		for (int cpu = 0; cpu < FS_MAX_CPUS && cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, &set))
				page->cpu_order[page->cpus++] = cpu;
	page->spare_slots = page->cpus > 8 ? 2 * page->cpus : 16;
	if (page->spare_slots > FS_MAX_SLOTS)
		page->spare_slots = FS_MAX_SLOTS;
	return page;
}

static int join_anonymous(struct listener *l)
{
	static uint64_t generation;

	for (int i = 0; i < FS_MAX_LISTENERS; i++) {
		struct fs_listener *pl = &fs_page->listener[i];

		if (pl->generation)
			continue;
		pl->generation = ++generation;
		pl->tier = FS_TIER_CLASSIC;
		return i;
	}
	errno = ENOSPC;
	return -1;
	(void)l;
}

/* Find the listener's place in the status page, mapping that first; -1 if there is none. */
int fs_keeper_join(struct listener *l, int flags)
{
	struct fs_request request = {.op = FS_OP_JOIN, .flags = flags};
	struct fs_reply reply = {0};
	int page_fd = -1, result;

	result = ask(&request, l->fd, &reply, &page_fd);
	if (page_fd >= 0) {
		if (!fs_page && (fs_page = map_page(page_fd)))
			fs_forget_past();
		NEXT(close)(page_fd);
	}
	fs_register_process();
	if (result == 0 && fs_page)
		return reply.listener < FS_MAX_LISTENERS ? (int)reply.listener : -1;
	if (result == 0) /* a keeper, but no page that can be relied on: as without us */
		return -1;
	if (!fs_page)
		fs_page = anonymous_page();
	return fs_page ? join_anonymous(l) : -1;
}

int fs_keeper_tell(enum fs_op op, struct listener *l, int slot, uint32_t worker, int fd)
{
	struct fs_request request = {
		.op = op, .listener = l->page_index, .slot = slot, .worker = worker};
	struct fs_reply reply = {0};

	return ask(&request, fd, &reply, NULL);
}
