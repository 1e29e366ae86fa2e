// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fastsocket-kv: asks key-value stores the same thing again and again on connections that stay.
 *
 * A process for each CPU, pinned. Its connections go to the targets in turn, each has one request under
 * way, and an answer is as many bytes as the caller says, whatever the protocol.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load.h"
#include "util.h"

#define MAX_CONNECTIONS 65536
#define MAX_ANSWER (1 << 20)
#define MAX_SECONDS 86400
#define EVENTS 128
#define CONNECT_MS 10000
#define LOOK_MS 20 /* how long a process may sleep past its end */
#define SETTLE_NS (100 * NS_PER_MS) /* from the last fork to the first request */

static const char usage[] =
	"Usage: fastsocket-kv [OPTION]... -q REQUEST -a BYTES IP:PORT...\n"
	"Asks stores for a value, on connections that stay, and prints rate and latency as JSON.\n"
	"\n"
	"  -q REQUEST     what to send, with its line ends\n"
	"  -a BYTES       size of the answer\n"
	"  -c CONNECTIONS at once, in all processes (default: 64)\n"
	"  -p PROCESSES   pinned, one a CPU (default: the CPUs that may be used)\n"
	"  -t SECONDS     time that counts (default: 10)\n"
	"  -W SECONDS     warm-up before that\n"
	"  -h, --help     this text\n";

struct options {
	struct address_list targets;
	const char *request;
	size_t request_size;
	size_t answer;
	unsigned int connections;
	unsigned int processes;
	uint64_t length_ns;
	uint64_t warmup_ns;
};

struct counts {
	uint64_t completed;
	uint64_t errors;
	struct histogram latency;
};

struct connection {
	int fd;
	size_t missing; /* of the answer under way */
	uint64_t asked_ns;
};

static uint64_t seconds_to_ns(const char *option, const char *text)
{
	char *end;
	double seconds = strtod(text, &end);

	if (end == text || *end || !(seconds >= 0) || seconds > MAX_SECONDS)
		fail(EXIT_USAGE, "%s %s: not seconds from 0 to %d", option, text, MAX_SECONDS);
	return (uint64_t)(seconds * NS_PER_SEC);
}

static void parse(int argc, char **argv, struct options *options)
{
	static const struct option long_options[] = {{"help", no_argument, NULL, 'h'}, {}};
	int letter;

	while ((letter = getopt_long(argc, argv, "q:a:c:p:t:W:h", long_options, NULL)) != -1) {
		switch (letter) {
		case 'q':
			options->request = optarg;
			options->request_size = strlen(optarg);
			break;
		case 'a':
			options->answer = parse_number("-a", optarg, 1, MAX_ANSWER);
			break;
		case 'c':
			options->connections = parse_number("-c", optarg, 1, MAX_CONNECTIONS);
			break;
		case 'p':
			options->processes = parse_number("-p", optarg, 1, MAX_CONNECTIONS);
			break;
		case 't':
			options->length_ns = seconds_to_ns("-t", optarg);
			break;
		case 'W':
			options->warmup_ns = seconds_to_ns("-W", optarg);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default: /* getopt_long() has said what is wrong */
			exit(EXIT_USAGE);
		}
	}
	for (; optind < argc; optind++)
		parse_address("target", argv[optind], &options->targets);
	if (!options->targets.count || !options->request_size || !options->answer ||
	    !options->length_ns)
		fail(EXIT_USAGE, "a target, -q, -a and a time above 0 are needed, see --help");
	if (options->processes > options->connections)
		options->processes = options->connections;
}

/* One send() takes a request whole: each connection has only one under way, and that is short. */
static bool ask(struct connection *connection, const struct options *options)
{
	connection->missing = options->answer;
	connection->asked_ns = now_ns();
	return send(connection->fd, options->request, options->request_size, MSG_NOSIGNAL) ==
	       (ssize_t)options->request_size;
}

/* The error of a connect() that goes on by itself, or 0 once it is established. */
static int outcome(int fd)
{
	struct pollfd wanted = {.fd = fd, .events = POLLOUT};
	socklen_t size = sizeof(int);
	int error = 0;

	if (errno != EINPROGRESS)
		return errno;
	if (poll(&wanted, 1, CONNECT_MS) != 1)
		return ETIMEDOUT;
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
	return error;
}

/* The socket does not block from the start, like those of most clients of stores. */
static void open_connection(struct connection *connection, const struct address *target)
{
	char text[ADDRESS_TEXT];
	int one = 1, error = 0;

	connection->fd =
		socket(target->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connection->fd < 0)
		error = errno;
	else if (connect(connection->fd, &target->sa, target->len))
		error = outcome(connection->fd);
	if (error) {
		format_address(target, text);
		fail(EXIT_FAILED, "cannot connect to %s: %s", text, strerror(error));
	}
	setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void run(const struct options *options, struct counts *tally, unsigned int index,
		uint64_t start_ns)
{
	uint64_t begin = start_ns + options->warmup_ns, end = begin + options->length_ns;
	unsigned int count = 0, live;
	struct epoll_event events[EVENTS];
	struct connection *connections = calloc(options->connections, sizeof(*connections));
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (!connections || epoll < 0)
		fail(EXIT_FAILED, "process %u: %s", index, strerror(errno));
	for (unsigned int i = index; i < options->connections; i += options->processes, count++) {
		struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &connections[count]};

		/* Every process has connections to all targets, not to every other one. */
		open_connection(&connections[count],
				&options->targets.item[count % options->targets.count]);
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, connections[count].fd, &wanted))
			fail(EXIT_FAILED, "process %u: epoll_ctl: %s", index, strerror(errno));
	}
	while (now_ns() < start_ns)
		usleep(1000);
	for (unsigned int i = 0; i < count; i++)
		ask(&connections[i], options); /* where it fails, so does the read below */
	live = count;
	while (live && now_ns() < end) {
		int ready = epoll_wait(epoll, events, EVENTS, LOOK_MS);

		for (int i = 0; i < ready; i++) {
			static char answer[MAX_ANSWER];
			struct connection *connection = events[i].data.ptr;
			ssize_t got = recv(connection->fd, answer, connection->missing, 0);
			uint64_t now;

			if (got < 0 && errno == EAGAIN)
				continue;
			if (got > 0) {
				connection->missing -= got;
				if (connection->missing)
					continue;
				now = now_ns();
				if (now >= begin && now < end) {
					tally->completed++;
					histogram_add(&tally->latency, now - connection->asked_ns);
				}
				if (ask(connection, options))
					continue;
			}
			tally->errors++;
			live--;
			close(connection->fd);
		}
	}
	exit(EXIT_SUCCESS);
}

static void report(const struct options *options, const struct counts *tallies)
{
	struct counts *sum = shared_memory(sizeof(*sum));

	for (unsigned int i = 0; i < options->processes; i++) {
		sum->completed += tallies[i].completed;
		sum->errors += tallies[i].errors;
		histogram_merge(&sum->latency, &tallies[i].latency);
	}
	printf("{\"seconds\":%.6f,\"completed\":%" PRIu64 ",\"errors\":%" PRIu64
	       ",\"latency_us\":{",
	       (double)options->length_ns / NS_PER_SEC, sum->completed, sum->errors);
	if (sum->completed)
		printf("\"p50\":%.3f,\"p99\":%.3f",
		       (double)histogram_quantile(&sum->latency, 0.5) / NS_PER_US,
		       (double)histogram_quantile(&sum->latency, 0.99) / NS_PER_US);
	puts("}}");
}

int main(int argc, char **argv)
{
	struct options options = {.connections = 64, .length_ns = 10 * NS_PER_SEC};
	unsigned int cpus;
	int *cpu = allowed_cpus(&cpus), status, worst = 0;
	struct counts *tallies;
	uint64_t start_ns;

	options.processes = cpus;
	parse(argc, argv, &options);
	raise_file_limit();
	tallies = shared_memory(options.processes * sizeof(*tallies));
	start_ns = now_ns() + SETTLE_NS;
	for (unsigned int i = 0; i < options.processes; i++) {
		pid_t parent = getpid(), pid = fork();

		if (pid < 0)
			fail(EXIT_FAILED, "cannot fork: %s", strerror(errno));
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() != parent)
			exit(EXIT_FAILED);
		if (pin_to_cpu(cpu[i % cpus]))
			fail(EXIT_FAILED, "cannot pin to CPU %d: %s", cpu[i % cpus],
			     strerror(errno));
		run(&options, &tallies[i], i, start_ns);
	}
	while (wait(&status) > 0)
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			worst = EXIT_FAILED;
	if (worst)
		return worst;
	report(&options, tallies);
	return EXIT_SUCCESS;
}
