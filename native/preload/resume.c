// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Starting a keeper in place of one that was killed. Workers and connections do not need it, but
 * further workers do: it alone may change the select program's map.
 *
 * A process does this only with the identity that it had at its start: the master that is about
 * to fork, rather than a worker that gave up its privileges. What the new keeper is told comes
 * from this process's own memory, not from the page, which the workers can write to.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fsocket.h"

#define SEPARATOR "\x1f"
#define WORDS 5 /* interpreter, program, first process, the page's id, the keeper's name */

static char *command[WORDS + 1];
static uid_t identity;

/* From the environment, which the application may clear later. */
void fs_resume_find(void)
{
	const char *value = getenv("FASTSOCKET_KEEPER_COMMAND");
	char *rest = value ? strdup(value) : NULL, *word;
	int count = 0;

	while (count < WORDS && rest && (word = strsep(&rest, SEPARATOR)))
		command[count++] = word;
	if (count < WORDS)
		command[0] = NULL;
	identity = geteuid();
}

/* In the child of a child: only system calls, other threads may hold any lock. */
static void become_keeper(void)
{
	static char *const environment[] = {"FASTSOCKET_LISTEN_SPAWN=0", NULL};
	sigset_t none;

	if (fs_page)
		__atomic_store_n(&fs_page->keeper, (uint32_t)syscall(SYS_getpid), __ATOMIC_RELAXED);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	syscall(SYS_close_range, 3, ~0U, 0); /* the application's listeners are not the keeper's */
	syscall(SYS_execve, command[0], command, environment);
	_exit(127);
}

/* Children that send no SIGCHLD and that no wait() of the application sees. */
static pid_t silent_fork(void)
{
	return syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
}

/* Start one; should another process be quicker, it ends. Returns its pid, or 0. */
static pid_t start_keeper(void)
{
	pid_t *keeper, pid, child;

	keeper = mmap(NULL, sizeof(*keeper), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (keeper == MAP_FAILED)
		return 0;
	child = silent_fork();
	if (child == 0) {
		pid = silent_fork();
		if (pid == 0)
			become_keeper();
		*keeper = pid;
		_exit(0);
	}
	while (child > 0 && waitpid(child, NULL, __WALL) < 0 && errno == EINTR)
		;
	pid = child > 0 && *keeper > 0 ? *keeper : 0;
	munmap(keeper, sizeof(*keeper));
	return pid;
}

/* A program that was just executed by one that had a keeper (HAProxy at a reload), and finds none,
 * knows no page: a new keeper finds that for it, and ends if it is gone. Returns its pid, or 0.
 */
pid_t fs_keeper_anew(void)
{
	return command[0] && geteuid() == identity ? start_keeper() : 0;
}

/* See to it that a keeper lives or is about to. */
void fs_keeper_ensure(void)
{
	uint32_t keeper = fs_page ? fs_page->keeper : 0;
	int saved = errno;

	if (!keeper || !command[0] || geteuid() != identity || fs_alive(keeper, keeper, 0) ||
	    !__atomic_compare_exchange_n(&fs_page->keeper, &keeper, fs_pid, 0, __ATOMIC_RELAXED,
					 __ATOMIC_RELAXED))
		goto out;
	if (!start_keeper())
		fs_page->keeper = keeper; /* as dead as it was */
out:
	errno = saved;
}
