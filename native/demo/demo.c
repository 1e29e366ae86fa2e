// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fastsocket-demo: a server that does nothing but receive, answer and close, so that what is
 * measured is the network stack. The flags are those of the demo server of the 2014 system.
 * This file: the command line and the master, which binds, forks and watches the workers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "demo.h"

#define MAX_WORKERS 4096
#define STOP_MS 1500 /* a worker drains for at most 500 ms, unless it stalls */
#define GRACE_NS (100 * NS_PER_MS) /* between looks at workers that are to end */

static const char usage[] =
	"Usage: fastsocket-demo [OPTION]...\n"
	"A TCP server that answers every HTTP request with 64 bytes, one process a core.\n\n"
	"  -w WORKERS      processes (default: the CPUs that may be used)\n"
	"  -c CORE         pin worker i to CPU CORE + i (default: not pinned)\n"
	"  -o FILE         append messages to FILE (default: standard error)\n"
	"  -a IP:PORT      listen there; several times for several (default: 0.0.0.0:80)\n"
	"  -x IP:PORT      proxy: pass requests to this backend; several in turn\n"
	"  -v              a line of statistics every second\n"
	"  -d              debug: a line for every connection\n"
	"  -k              HTTP keep-alive (server mode; a proxy keeps what its ends keep)\n"
	"      --reuseport a listening socket of its own, with SO_REUSEPORT, for each worker\n"
	"      --stall MS/EVERY_MS[:WORKER]\n"
	"                  that worker (default 0) sleeps MS in every EVERY_MS\n"
	"      --burn      the stalled worker uses the CPU instead of sleeping\n"
	"      --stats FILE\n"
	"                  count local connections; write the counters there as JSON, at the\n"
	"                  end and on SIGUSR1 (without: SIGUSR1 writes them with the messages)\n"
	"  -h, --help      this text\n";

enum {
	OPT_REUSEPORT = 256,
	OPT_STALL,
	OPT_BURN,
	OPT_STATS
};

static void parse_stall(char *text, struct options *options)
{
	char *every = strchr(text, '/');
	char *worker = every ? strchr(every, ':') : NULL;

	if (!every)
		fail(EXIT_USAGE, "--stall %s: not of the form MS/EVERY_MS[:WORKER]", text);
	*every++ = '\0';
	if (worker) {
		*worker++ = '\0';
		options->stall_worker = parse_number("--stall WORKER", worker, 0, MAX_WORKERS - 1);
	}
	options->stall_ns = parse_number("--stall MS", text, 1, 60000) * NS_PER_MS;
	options->stall_every_ns = parse_number("--stall EVERY_MS", every, 1, 3600000) * NS_PER_MS;
	if (options->stall_ns >= options->stall_every_ns)
		fail(EXIT_USAGE, "--stall %s/%s: the stall has to be shorter than its period", text,
		     every);
}

static bool holds(const int *cpus, unsigned int count, int cpu)
{
	for (unsigned int i = 0; i < count; i++)
		if (cpus[i] == cpu)
			return true;
	return false;
}

static void check(struct options *options)
{
	unsigned int count;
	int *cpus = allowed_cpus(&count);

	if (!options->workers)
		options->workers = count;
	if (!options->listen.count)
		parse_address("-a", "0.0.0.0:80", &options->listen);
	for (unsigned int i = 0; options->first_core >= 0 && i < options->workers; i++)
		if (!holds(cpus, count, options->first_core + i))
			fail(EXIT_USAGE,
			     "-c %d: worker %u would need CPU %d, which it may not use; "
			     "start fewer workers (-w) or at a lower core",
			     options->first_core, i, options->first_core + i);
	free(cpus);
	if (options->stall_every_ns && options->stall_worker >= options->workers)
		fail(EXIT_USAGE, "--stall: there is no worker %u, the last is %u",
		     options->stall_worker, options->workers - 1);
	if (options->burn && !options->stall_every_ns)
		fail(EXIT_USAGE, "--burn: says how to stall, so it needs --stall");
}

static void parse(int argc, char **argv, struct options *options)
{
	static const struct option names[] = {
		{"reuseport", no_argument, NULL, OPT_REUSEPORT},
		{"stall", required_argument, NULL, OPT_STALL},
		{"burn", no_argument, NULL, OPT_BURN},
		{"stats", required_argument, NULL, OPT_STATS},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "w:c:o:a:x:vdkh", names, NULL)) != -1) {
		switch (opt) {
		case 'w':
			options->workers = parse_number("-w", optarg, 1, MAX_WORKERS);
			break;
		case 'c':
			options->first_core = parse_number("-c", optarg, 0, MAX_WORKERS);
			break;
		case 'o':
			options->log = optarg;
			break;
		case 'a':
			parse_address("-a", optarg, &options->listen);
			break;
		case 'x':
			parse_address("-x", optarg, &options->backends);
			break;
		case 'v':
			options->verbose = true;
			break;
		case 'd':
			options->debug = true;
			break;
		case 'k':
			options->keepalive = true;
			break;
		case OPT_REUSEPORT:
			options->reuseport = true;
			break;
		case OPT_STALL:
			parse_stall(optarg, options);
			break;
		case OPT_BURN:
			options->burn = true;
			break;
		case OPT_STATS:
			options->stats = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default: /* getopt_long() has said what is wrong */
			exit(EXIT_USAGE);
		}
	}
	if (optind < argc)
		fail(EXIT_USAGE, "%s: takes options only, see --help", argv[optind]);
	check(options);
}

struct master {
	struct options options;
	struct counters *counters;
	int *listeners;
	int log;
	bool stopping;
};

static int *open_listeners(struct master *master)
{
	struct options *options = &master->options;
	int *fds = calloc(options->listen.count, sizeof(*fds));

	if (!fds)
		fail(EXIT_FAILED, "no memory for %u listeners", options->listen.count);
	for (unsigned int i = 0; i < options->listen.count; i++) {
		fds[i] = open_listener(options, &options->listen.item[i]);
		/* With --reuseport the master's socket holds the port, and only that. */
		if (!options->reuseport)
			start_listening(fds[i], &options->listen.item[i]);
	}
	return fds;
}

/* A worker's own sockets, in the place of the master's. */
static void open_own_listeners(struct worker *worker)
{
	for (unsigned int i = 0; i < worker->options->listen.count; i++) {
		struct address address = worker->options->listen.item[i];
		int fd = open_listener(worker->options, &address);

		start_listening(fd, &address);
		if (dup3(fd, worker->listeners[i], O_CLOEXEC) < 0)
			fail(EXIT_FAILED, "worker %u: dup3: %s", worker->index, strerror(errno));
		close(fd);
	}
}

/* Forks worker @index, which writes a byte to @ready once it accepts. */
static void start_worker(struct master *master, unsigned int index, int ready)
{
	struct worker worker = {
		.options = &master->options,
		.counters = &master->counters[index],
		.listeners = master->listeners,
		.log = master->log,
		.index = index,
		/* Workers begin with different backends, so that each gets its share at once. */
		.next_backend =
			master->options.backends.count ? index % master->options.backends.count : 0,
	};
	pid_t parent = getpid();
	pid_t pid = fork();

	if (pid < 0)
		fail(EXIT_FAILED, "cannot fork worker %u: %s", index, strerror(errno));
	if (pid) {
		master->counters[index].pid = pid;
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		exit(EXIT_FAILED);
	if (master->options.first_core >= 0 && pin_to_cpu(master->options.first_core + index))
		fail(EXIT_FAILED, "cannot pin worker %u to CPU %u: %s", index,
		     master->options.first_core + index, strerror(errno));
	if (master->options.reuseport)
		open_own_listeners(&worker);
	run_worker(&worker, ready);
}

static void report(struct master *master)
{
	FILE *out;

	if (master->options.stats) {
		if (!save_stats(master->options.stats, &master->options, master->counters))
			dprintf(master->log, "cannot write %s: %s\n", master->options.stats,
				strerror(errno));
		return;
	}
	out = fdopen(dup(master->log), "a");
	if (!out)
		return;
	print_stats(out, &master->options, master->counters);
	fclose(out);
}

static void signal_workers(const struct master *master, int sig)
{
	for (unsigned int i = 0; i < master->options.workers; i++)
		if (master->counters[i].pid)
			kill(master->counters[i].pid, sig);
}

/*
 * A worker that was killed or crashed is started again; one that gave up has said why, and the
 * next would fail in the same way, so the server ends. Returns how many workers are left.
 */
static unsigned int reap(struct master *master)
{
	unsigned int left = 0;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (unsigned int i = 0; i < master->options.workers; i++) {
			struct counters *c = &master->counters[i];

			if (c->pid != pid)
				continue;
			c->pid = 0;
			c->live = 0;
			if (master->stopping)
				break;
			if (!WIFSIGNALED(status)) {
				dprintf(master->log, "worker %u ended by itself\n", i);
				signal_workers(master, SIGKILL);
				exit(EXIT_FAILED);
			}
			dprintf(master->log, "worker %u: %s; started again\n", i,
				strsignal(WTERMSIG(status)));
			c->restarts++;
			start_worker(master, i, -1);
			break;
		}
	}
	for (unsigned int i = 0; i < master->options.workers; i++)
		left += master->counters[i].pid != 0;
	return left;
}

/* Waits until every first worker accepts, or has ended: reap() deals with that. */
static void wait_ready(const struct master *master, int ready)
{
	char text[ADDRESS_TEXT];
	unsigned int count = 0;
	char byte;

	while (read(ready, &byte, 1) == 1)
		count++;
	close(ready);
	if (count < master->options.workers)
		return;
	for (unsigned int i = 0; i < master->options.listen.count; i++) {
		format_address(&master->options.listen.item[i], text);
		dprintf(master->log, "listening on %s\n", text);
	}
	dprintf(master->log, "ready: %u workers\n", master->options.workers);
}

/* How long the master may sleep: to the next line of statistics, or to look at what is left. */
static struct timespec until(const struct master *master, uint64_t next_line)
{
	uint64_t now = now_ns();
	uint64_t ns = next_line > now ? next_line - now : 0;

	if (master->stopping)
		ns = GRACE_NS;
	return (struct timespec){.tv_sec = ns / NS_PER_SEC, .tv_nsec = ns % NS_PER_SEC};
}

static void supervise(struct master *master, const sigset_t *set)
{
	struct counters *before = shared_memory(master->options.workers * sizeof(*before));
	uint64_t next_line = now_ns() + NS_PER_SEC;
	uint64_t kill_at = UINT64_MAX;

	while (reap(master)) {
		bool timed = master->options.verbose || master->stopping;
		struct timespec wait = until(master, next_line);
		int sig = sigtimedwait(set, NULL, timed ? &wait : NULL);

		if (sig == SIGUSR1)
			report(master);
		if ((sig == SIGTERM || sig == SIGINT) && !master->stopping) {
			master->stopping = true;
			kill_at = now_ns() + STOP_MS * NS_PER_MS;
			signal_workers(master, SIGTERM);
		}
		if (master->options.verbose && now_ns() >= next_line) {
			print_rate(master->log, &master->options, master->counters, before);
			next_line += NS_PER_SEC;
		}
		if (now_ns() >= kill_at)
			signal_workers(master, SIGKILL);
	}
}

static int open_log(const char *path)
{
	int fd;

	if (!path)
		return STDERR_FILENO;
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0)
		fail(EXIT_FAILED, "cannot open the log file %s: %s", path, strerror(errno));
	return fd;
}

int main(int argc, char **argv)
{
	struct master master = {.options.first_core = -1};
	int ready[2];
	sigset_t set;

	parse(argc, argv, &master.options);
	master.log = open_log(master.options.log);
	master.counters = shared_memory(master.options.workers * sizeof(*master.counters));
	master.listeners = open_listeners(&master);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (pipe2(ready, O_CLOEXEC))
		fail(EXIT_FAILED, "cannot make a pipe: %s", strerror(errno));
	for (unsigned int i = 0; i < master.options.workers; i++)
		start_worker(&master, i, ready[1]);
	close(ready[1]);
	wait_ready(&master, ready[0]);
	supervise(&master, &set);
	if (master.options.stats || master.options.verbose)
		report(&master);
	return EXIT_SUCCESS;
}
