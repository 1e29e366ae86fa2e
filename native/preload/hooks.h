/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one list of intercepted functions: HOOK(result, name, parameters, arguments).
 * It is expanded for the pointers to the next definition, for their lookup and for the
 * exported names (exports.map is checked against it by a test). The core is in all libraries, what
 * shares descriptors in all but libfsocket-plain.so, what makes epoll instances where fast epoll is,
 * and what moves bytes or may sleep where connections are made lean: where they are left as they
 * are, nobody's reads and writes take a way through us.
 */
/* clang-format off */
#define FS_CORE_HOOKS(HOOK) \
	HOOK(int, socket, (int domain, int type, int protocol), (domain, type, protocol)) \
	HOOK(int, listen, (int fd, int backlog), (fd, backlog)) \
	HOOK(int, bind, (int fd, const struct sockaddr *addr, socklen_t len), (fd, addr, len)) \
	HOOK(int, connect, (int fd, const struct sockaddr *addr, socklen_t len), (fd, addr, len)) \
	HOOK(int, getsockname, (int fd, struct sockaddr *addr, socklen_t *len), (fd, addr, len)) \
	HOOK(int, accept, (int fd, struct sockaddr *addr, socklen_t *len), (fd, addr, len)) \
	HOOK(int, accept4, (int fd, struct sockaddr *addr, socklen_t *len, int flags), (fd, addr, len, flags)) \
	HOOK(int, close, (int fd), (fd)) \
	HOOK(long, syscall, (long number, long a, long b, long c, long d, long e, long f), (number, a, b, c, d, e, f)) \
	HOOK(int, close_range, (unsigned first, unsigned last, int flags), (first, last, flags)) \
	HOOK(void, closefrom, (int first), (first)) \
	HOOK(int, shutdown, (int fd, int how), (fd, how)) \
	HOOK(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t len), (fd, level, name, value, len)) \
	HOOK(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *len), (fd, level, name, value, len)) \
	HOOK(int, dup2, (int from, int to), (from, to)) \
	HOOK(int, dup3, (int from, int to, int flags), (from, to, flags)) \
	HOOK(int, epoll_ctl, (int epfd, int op, int fd, struct epoll_event *event), (epfd, op, fd, event)) \
	HOOK(int, epoll_wait, (int epfd, struct epoll_event *events, int max, int timeout), (epfd, events, max, timeout)) \
	HOOK(int, epoll_pwait, (int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask), (epfd, events, max, timeout, mask)) \
	HOOK(int, epoll_pwait2, (int epfd, struct epoll_event *events, int max, const struct timespec *timeout, const sigset_t *mask), (epfd, events, max, timeout, mask)) \
	HOOK(int, poll, (struct pollfd *fds, nfds_t count, int timeout), (fds, count, timeout)) \
	HOOK(int, __poll_chk, (struct pollfd *fds, nfds_t count, int timeout, size_t size), (fds, count, timeout, size)) \
	HOOK(int, ppoll, (struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask), (fds, count, timeout, mask)) \
	HOOK(int, __ppoll_chk, (struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t size), (fds, count, timeout, mask, size)) \
	HOOK(int, select, (int count, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout), (count, in, out, except, timeout)) \
	HOOK(int, pselect, (int count, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask), (count, in, out, except, timeout, mask)) \
	HOOK(int, setuid, (uid_t uid), (uid)) \
	HOOK(int, seteuid, (uid_t uid), (uid)) \
	HOOK(int, setreuid, (uid_t ruid, uid_t euid), (ruid, euid)) \
	HOOK(int, setresuid, (uid_t ruid, uid_t euid, uid_t suid), (ruid, euid, suid)) \
	HOOK(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags)) \
	HOOK(int, execve, (const char *path, char *const argv[], char *const env[]), (path, argv, env)) \
	HOOK(int, execv, (const char *path, char *const argv[]), (path, argv)) \
	HOOK(int, execvp, (const char *file, char *const argv[]), (file, argv)) \
	HOOK(int, execvpe, (const char *file, char *const argv[], char *const env[]), (file, argv, env)) \
	HOOK(int, fexecve, (int fd, char *const argv[], char *const env[]), (fd, argv, env)) \
	HOOK(int, posix_spawn, (pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes, char *const argv[], char *const env[]), (pid, path, actions, attributes, argv, env)) \
	HOOK(int, posix_spawnp, (pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes, char *const argv[], char *const env[]), (pid, file, actions, attributes, argv, env)) \
	HOOK(int, system, (const char *command), (command)) \
	HOOK(FILE *, popen, (const char *command, const char *type), (command, type)) \
	HOOK(int, pthread_create, (pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument), (thread, attributes, start, argument))

/* What gives a descriptor a second owner. */
#define FS_SHARE_HOOKS(HOOK) \
	HOOK(int, dup, (int fd), (fd)) \
	HOOK(int, fclose, (FILE *stream), (stream)) \
	HOOK(int, fcntl, (int fd, int command, void *value), (fd, command, value)) \
	HOOK(int, fcntl64, (int fd, int command, void *value), (fd, command, value)) \
	HOOK(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags)) \
	HOOK(int, sendmmsg, (int fd, struct mmsghdr *messages, unsigned count, int flags), (fd, messages, count, flags)) \
	HOOK(pid_t, vfork, (void), ()) \
	HOOK(pid_t, _Fork, (void), ()) \
	HOOK(int, clone, (int (*start)(void *), void *stack, int flags, void *argument, pid_t *parent, void *tls, pid_t *child), (start, stack, flags, argument, parent, tls, child))

/* What makes an epoll instance. */
#define FS_EPOLL_HOOKS(HOOK) \
	HOOK(int, epoll_create, (int size), (size)) \
	HOOK(int, epoll_create1, (int flags), (flags))

/* What reads; recvmsg is in the core. */
#define FS_READ_HOOKS(HOOK) \
	HOOK(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size)) \
	HOOK(ssize_t, __read_chk, (int fd, void *data, size_t size, size_t room), (fd, data, size, room)) \
	HOOK(ssize_t, readv, (int fd, const struct iovec *parts, int count), (fd, parts, count)) \
	HOOK(ssize_t, recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags)) \
	HOOK(ssize_t, __recv_chk, (int fd, void *data, size_t size, size_t room, int flags), (fd, data, size, room, flags)) \
	HOOK(ssize_t, recvfrom, (int fd, void *data, size_t size, int flags, struct sockaddr *addr, socklen_t *len), (fd, data, size, flags, addr, len)) \
	HOOK(ssize_t, __recvfrom_chk, (int fd, void *data, size_t size, size_t room, int flags, struct sockaddr *addr, socklen_t *len), (fd, data, size, room, flags, addr, len))

/* What else moves bytes; sendmsg passes descriptors on, too. */
#define FS_IO_HOOKS(HOOK) \
	HOOK(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size)) \
	HOOK(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count)) \
	HOOK(ssize_t, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags)) \
	HOOK(ssize_t, sendto, (int fd, const void *data, size_t size, int flags, const struct sockaddr *addr, socklen_t len), (fd, data, size, flags, addr, len)) \
	HOOK(ssize_t, sendfile, (int out, int in, off_t *offset, size_t count), (out, in, offset, count)) \
	HOOK(ssize_t, sendfile64, (int out, int in, off_t *offset, size_t count), (out, in, offset, count)) \
	HOOK(ssize_t, splice, (int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags), (in, in_offset, out, out_offset, size, flags))

/* What may sleep: promises to clients are kept before. */
#define FS_SLEEP_HOOKS(HOOK) \
	HOOK(unsigned, sleep, (unsigned seconds), (seconds)) \
	HOOK(int, usleep, (useconds_t time), (time)) \
	HOOK(int, nanosleep, (const struct timespec *time, struct timespec *rest), (time, rest)) \
	HOOK(int, clock_nanosleep, (clockid_t clock, int flags, const struct timespec *time, struct timespec *rest), (clock, flags, time, rest)) \
	HOOK(int, pause, (void), ()) \
	HOOK(int, sigsuspend, (const sigset_t *mask), (mask)) \
	HOOK(int, sigwait, (const sigset_t *set, int *number), (set, number)) \
	HOOK(int, sigwaitinfo, (const sigset_t *set, siginfo_t *info), (set, info)) \
	HOOK(int, sigtimedwait, (const sigset_t *set, siginfo_t *info, const struct timespec *timeout), (set, info, timeout)) \
	HOOK(int, pthread_cond_wait, (pthread_cond_t *condition, pthread_mutex_t *mutex), (condition, mutex)) \
	HOOK(int, pthread_cond_timedwait, (pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until), (condition, mutex, until)) \
	HOOK(int, pthread_cond_clockwait, (pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until), (condition, mutex, clock, until)) \
	HOOK(int, pthread_join, (pthread_t thread, void **result), (thread, result)) \
	HOOK(int, sem_wait, (sem_t *semaphore), (semaphore)) \
	HOOK(int, sem_timedwait, (sem_t *semaphore, const struct timespec *until), (semaphore, until)) \
	HOOK(int, sem_clockwait, (sem_t *semaphore, clockid_t clock, const struct timespec *until), (semaphore, clock, until)) \
	HOOK(pid_t, wait, (int *status), (status)) \
	HOOK(pid_t, waitpid, (pid_t pid, int *status, int options), (pid, status, options)) \
	HOOK(pid_t, wait4, (pid_t pid, int *status, int options, struct rusage *usage), (pid, status, options, usage)) \
	HOOK(int, waitid, (idtype_t type, id_t id, siginfo_t *info, int options), (type, id, info, options)) \
	HOOK(int, fsync, (int fd), (fd)) \
	HOOK(int, fdatasync, (int fd), (fd)) \
	HOOK(int, flock, (int fd, int operation), (fd, operation)) \
	HOOK(int, getaddrinfo, (const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result), (node, service, hints, result))

#ifndef FS_EPOLL
#undef FS_EPOLL_HOOKS
#define FS_EPOLL_HOOKS(HOOK)
#endif
#if defined(FS_LEAN)
#define FS_HOOKS(HOOK) FS_CORE_HOOKS(HOOK) FS_SHARE_HOOKS(HOOK) FS_EPOLL_HOOKS(HOOK) FS_READ_HOOKS(HOOK) FS_IO_HOOKS(HOOK) FS_SLEEP_HOOKS(HOOK)
#elif defined(FS_EPOLL)
#define FS_HOOKS(HOOK) FS_CORE_HOOKS(HOOK) FS_SHARE_HOOKS(HOOK) FS_EPOLL_HOOKS(HOOK)
#else
#define FS_HOOKS(HOOK) FS_CORE_HOOKS(HOOK)
#endif
/* clang-format on */
