/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one list of intercepted functions: HOOK(result, name, parameters, arguments).
 * It is expanded for the pointers to the next definition, for their lookup and for the
 * exported names (exports.map is checked against it by a test).
 */
/* clang-format off */
#define FS_HOOKS(HOOK) \
	HOOK(int, listen, (int fd, int backlog), (fd, backlog)) \
	HOOK(int, bind, (int fd, const struct sockaddr *addr, socklen_t len), (fd, addr, len)) \
	HOOK(int, connect, (int fd, const struct sockaddr *addr, socklen_t len), (fd, addr, len)) \
	HOOK(int, getsockname, (int fd, struct sockaddr *addr, socklen_t *len), (fd, addr, len)) \
	HOOK(int, accept, (int fd, struct sockaddr *addr, socklen_t *len), (fd, addr, len)) \
	HOOK(int, accept4, (int fd, struct sockaddr *addr, socklen_t *len, int flags), (fd, addr, len, flags)) \
	HOOK(int, close, (int fd), (fd)) \
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
	HOOK(int, posix_spawnp, (pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes, char *const argv[], char *const env[]), (pid, file, actions, attributes, argv, env))
/* clang-format on */
