// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A program that is given a listener goes on with it accelerated: a server that upgrades its binary
 * (nginx on USR2) gives the new one an environment of its own making, without what preloads us.
 * What it had at the start is added there, and only there: a program that gets no listener is
 * given the environment that it was to have. No program, and no thread, is confined to the CPU that we
 * pinned its parent to.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "epoll.h"

#define MOST 8 /* variables of ours */

static char *ours[MOST];
static int count;

/* Called before main(); an application may overwrite its environment later. */
void fs_environment_keep(void)
{
	for (char **each = environ; each && *each && count < MOST; each++)
		if (!strncmp(*each, "LD_PRELOAD=", 11) || !strncmp(*each, "FASTSOCKET_", 11))
			ours[count++] = strdup(*each);
}

static int hands_listener_on(void)
{
	for (int i = 0; i < fs_listener_count; i++) {
		int flags = fs_listeners[i].fd < 0 ? -1 : fcntl(fs_listeners[i].fd, F_GETFD);

		if (flags >= 0 && !(flags & FD_CLOEXEC))
			return 1;
	}
	return 0;
}

static int has(char *const env[], const char *variable)
{
	size_t length = strchr(variable, '=') - variable + 1;

	for (; env && *env; env++)
		if (!strncmp(*env, variable, length))
			return 1;
	return 0;
}

static int size_of(char *const env[])
{
	int size = 0;

	while (env && env[size])
		size++;
	return size;
}

/* Room for `env` and ours. On the stack, as this may be a child of vfork(). */
#define ROOM(env) (size_of(env) + MOST + 1)

/* `env` with what it lacks of ours, in `room`; or `env` itself. */
static char *const *complete(char *const env[], char **room)
{
	int size = size_of(env);

	lean_spawn();
	fast_spawns();
	if (!hands_listener_on())
		return env;
	memcpy(room, env, size * sizeof(*room));
	for (int i = 0; i < count; i++)
		if (ours[i] && !has(env, ours[i]))
			room[size++] = ours[i];
	room[size] = NULL;
	return room;
}

EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
	char *room[ROOM(env)];
	int pinned = fs_unpin(), result;

	result = NEXT(execve)(path, argv, complete(env, room));
	fs_pin_again(pinned);
	return result;
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
	char *room[ROOM(env)];
	int pinned = fs_unpin(), result;

	result = NEXT(execvpe)(file, argv, complete(env, room));
	fs_pin_again(pinned);
	return result;
}

EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

EXPORT int fexecve(int fd, char *const argv[], char *const env[])
{
	char *room[ROOM(env)];
	int pinned = fs_unpin(), result;

	result = NEXT(fexecve)(fd, argv, complete(env, room));
	fs_pin_again(pinned);
	return result;
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		       const posix_spawnattr_t *attributes, char *const argv[], char *const env[])
{
	char *room[ROOM(env)];
	int pinned = fs_unpin(), result;

	result = NEXT(posix_spawn)(pid, path, actions, attributes, argv, complete(env, room));
	fs_pin_again(pinned);
	return result;
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			const posix_spawnattr_t *attributes, char *const argv[], char *const env[])
{
	char *room[ROOM(env)];
	int pinned = fs_unpin(), result;

	result = NEXT(posix_spawnp)(pid, file, actions, attributes, argv, complete(env, room));
	fs_pin_again(pinned);
	return result;
}

EXPORT int system(const char *command)
{
	int pinned = fs_unpin(), result;

	lean_spawn();
	fast_spawns();
	result = NEXT(system)(command);
	fs_pin_again(pinned);
	return result;
}

EXPORT FILE *popen(const char *command, const char *type)
{
	int pinned = fs_unpin();
	FILE *result;

	lean_spawn();
	fast_spawns();
	result = NEXT(popen)(command, type);
	fs_pin_again(pinned);
	return result;
}

/* One that is begun by a worker while another process may pin that worker. */
struct thread {
	void *(*start)(void *);
	void *argument;
	const struct fs_worker *creator;
};

static void *begin(void *given)
{
	struct thread thread = *(struct thread *)given;

	free(given);
	fs_roam(thread.creator);
	return thread.start(thread.argument);
}

#pragma weak pthread_attr_getaffinity_np /* musl has none */

/* Whether the attributes name the one CPU that the thread is to have. */
static int chooses_cpu(const pthread_attr_t *attributes)
{
	cpu_set_t set;

	return attributes && pthread_attr_getaffinity_np &&
	       pthread_attr_getaffinity_np(attributes, sizeof(set), &set) == 0 &&
	       CPU_COUNT(&set) == 1;
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *argument)
{
	int may_be_pinned = fs_worker && fs_worker->pinned == FS_PINNED_NOT &&
			    fs_page->listen_spawn == 2 && !chooses_cpu(attributes);
	struct thread *new = may_be_pinned ? malloc(sizeof(*new)) : NULL;
	int pinned, result;

	if (new) {
		*new = (struct thread){start, argument, fs_worker};
		result = NEXT(pthread_create)(thread, attributes, begin, new);
		if (result)
			free(new);
		return result;
	}
	pinned = fs_unpin();
	result = NEXT(pthread_create)(thread, attributes, start, argument);
	fs_pin_again(pinned);
	return result;
}
