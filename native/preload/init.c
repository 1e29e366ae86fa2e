// SPDX-License-Identifier: LGPL-2.1-or-later
/* Start of the library, and what happens around fork(). */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "epoll.h"

#define MOST_FDS (1 << 20)

/* Wrappers can run before our constructor did: until then each call looks all of them up. */
#define HOOK(result, name, parameters, arguments) \
	static result first_##name parameters     \
	{                                         \
		fs_resolve();                     \
		return fs_next.name arguments;    \
	}
FS_HOOKS(HOOK)
#undef HOOK

struct fs_next fs_next = {
#define HOOK(result, name, parameters, arguments) .name = first_##name,
	FS_HOOKS(HOOK)
#undef HOOK
};

struct fd_entry *fs_fds;
unsigned fs_fd_count;
uint32_t fs_era;
pid_t fs_pid;
int fs_mode;
__thread struct fs_worker *fs_worker;
__thread int fs_last_epfd = -1;
pthread_key_t fs_thread_key;

cpu_set_t fs_first_affinity;

/* Look up what the wrappers call. */
void fs_resolve(void)
{
#define HOOK(result, name, parameters, arguments) \
	fs_next.name = (result(*) parameters)dlsym(RTLD_NEXT, #name);
	FS_HOOKS(HOOK)
#undef HOOK
}

/* One entry for each descriptor that the process may ever have; untouched pages of
 * the table take no memory.
 */
static void make_fd_table(void)
{
	struct rlimit limit;
	void *table;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	if (limit.rlim_max > MOST_FDS)
		limit.rlim_max = MOST_FDS;
	table = mmap(NULL, limit.rlim_max * sizeof(*fs_fds), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (table == MAP_FAILED)
		return;
	fs_fds = table;
	fs_fd_count = limit.rlim_max;
}

/* What pthread_atfork() is in glibc. Other C libraries lack it: the programs that use them inherit
 * LD_PRELOAD from a shell, say, and must start, if without us.
 */
extern int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void),
			     void *object) __attribute__((weak));

static void in_child(void)
{
	fs_unpin(); /* without us the child would roam */
	fs_pid = getpid();
	lean_begins();
	fs_era++;
	fs_worker = NULL;
	fs_last_epfd = -1;
	fs_after_fork_in_child();
}

__attribute__((constructor)) static void start(void)
{
	const char *mode = getenv("FASTSOCKET_LISTEN_SPAWN");

	fs_resolve();
	fs_pid = getpid();
	fs_mode = mode ? atoi(mode) : 2;
	if (!__register_atfork)
		fs_mode = 0;
	fs_slices_find();
	if (!fs_mode)
		return;
	make_fd_table();
	fs_environment_keep();
	pthread_key_create(&fs_thread_key, fs_thread_ends);
	fs_keeper_find();
	fs_resume_find();
	fs_busy_poll_find();
	lean_start();
	fast_start();
	sched_getaffinity(0, sizeof(fs_first_affinity), &fs_first_affinity);
	__register_atfork(fs_before_fork, NULL, in_child, NULL);
	fs_adopt_inherited();
}
