// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fastsocket-load: a load generator for short HTTP connections, one process a CPU, so that it
 * shares neither descriptors nor locks with itself. With a fixed rate the latency counts from the
 * moment at which a connection should have started, so that a server that stalls is not spared.
 * This file: the command line and the parent.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load.h"

#define MAX_PROCESSES 4096
#define MAX_SOURCES 65536
#define MAX_CONNECTIONS 10000000
#define MAX_SECONDS 86400.0
#define SPARE_FILES 64 /* a process needs a few besides its connections */
#define DEFAULT_CONNECTIONS 64 /* closed loop */
#define DEFAULT_OPEN_CONNECTIONS 4096 /* open loop: room for what a stall piles up */
#define DEFAULT_SECONDS 10.0
#define START_NS (20 * NS_PER_MS) /* from fork to the first connection */
#define TICK_NS (20 * NS_PER_MS)

static const char usage[] =
	"Usage: fastsocket-load [OPTION]... IP:PORT...\n"
	"Opens short HTTP connections to the targets in turn and counts what becomes of them.\n\n"
	"  -p PROCESSES   one a CPU, pinned (default: the CPUs that may be used)\n"
	"  -c CONNECTIONS at once, in all processes (default: 64; with -r 4096)\n"
	"  -n TOTAL       connections to make\n"
	"  -t SECONDS     time to run (default: 10, unless -n is given)\n"
	"  -W SECONDS     warm-up before that, not counted\n"
	"  -r RATE        start RATE connections a second, whatever the server does\n"
	"  -s FROM[-TO]   source addresses; several times for several ranges\n"
	"  -k REQUESTS    on each connection (default: 1; with --hold 0)\n"
	"  -u PATH        to ask for (default: /)\n"
	"      --hold N   open N connections, make their requests, keep them open for -t\n"
	"      --timeout MS\n"
	"                 for each request (default: 5000)\n"
	"      --lean     let the request take the last ACK of the handshake along\n"
	"  -j, --json     the outcome as one JSON document\n"
	"  -v, --progress a line on standard error every second\n"
	"  -h, --help     this text\n";

enum {
	OPT_HOLD = 256,
	OPT_TIMEOUT,
	OPT_LEAN
};

static double parse_real(const char *option, const char *text, double low, double high)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !isfinite(value) || value < low || value > high)
		fail(EXIT_USAGE, "%s %s: not a number from %g to %g", option, text, low, high);
	return value;
}

/* The last 32 bits of an address, as a number. */
static uint32_t tail_of(const struct address *address)
{
	if (address->sa.sa_family == AF_INET)
		return ntohl(address->in.sin_addr.s_addr);
	return ntohl(address->in6.sin6_addr.s6_addr32[3]);
}

static struct address with_tail(struct address address, uint32_t tail)
{
	if (address.sa.sa_family == AF_INET)
		address.in.sin_addr.s_addr = htonl(tail);
	else
		address.in6.sin6_addr.s6_addr32[3] = htonl(tail);
	return address;
}

static void parse_sources(char *text, struct address_list *sources)
{
	struct address_list ends = {0};
	char *dash = strchr(text, '-');
	uint32_t first, last;

	if (dash)
		*dash = '\0';
	parse_host("-s", text, &ends);
	parse_host("-s", dash ? dash + 1 : text, &ends);
	first = tail_of(&ends.item[0]);
	last = tail_of(&ends.item[1]);
	ends.item[0] = with_tail(ends.item[0], last);
	if (memcmp(&ends.item[0], &ends.item[1], sizeof(ends.item[0])) || last < first ||
	    last - first >= MAX_SOURCES)
		fail(EXIT_USAGE,
		     "-s %s-%s: not a rising range of at most %u addresses of one network", text,
		     dash ? dash + 1 : text, MAX_SOURCES);
	for (uint32_t tail = first; tail <= last && tail >= first; tail++) {
		struct address address = with_tail(ends.item[0], tail);

		append_address(&sources[family_of(&address)], &address);
	}
	free(ends.item);
}

/* Every source has to be an address of this host: better said now than counted later. */
static void check_sources(const struct address_list *sources)
{
	char text[ADDRESS_TEXT];

	for (unsigned int i = 0; i < sources->count; i++) {
		const struct address *source = &sources->item[i];
		int fd = socket(source->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0 || bind(fd, &source->sa, source->len)) {
			format_address(source, text);
			fail(EXIT_FAILED, "-s: cannot use the source address %s: %s", text,
			     strerror(errno));
		}
		close(fd);
	}
}

/* Fills in what was not asked for and refuses what cannot be. */
static void check(struct plan *plan, double seconds)
{
	unsigned int cpus, each, limit = raise_file_limit();
	bool default_processes = !plan->processes;

	free(allowed_cpus(&cpus));
	if (limit <= SPARE_FILES)
		fail(EXIT_FAILED, "%u open files are too few; raise the limit (ulimit -n)", limit);
	if (!plan->targets.count)
		fail(EXIT_USAGE, "no target: give at least one address such as 127.0.0.1:80");
	if (plan->hold && (plan->total || plan->warmup_ns))
		fail(EXIT_USAGE, "--hold: says how many connections to make, without -n and -W");
	if (!plan->hold && !plan->requests)
		fail(EXIT_USAGE, "-k 0: only connections to --hold can do without a request");
	if (seconds == 0 && !plan->total)
		seconds = DEFAULT_SECONDS;
	plan->length_ns = seconds > 0 ? (uint64_t)(seconds * NS_PER_SEC) : UINT64_MAX;
	if (!plan->processes)
		plan->processes = cpus;
	if (!plan->connections) {
		uint64_t room = (uint64_t)plan->processes * (limit - SPARE_FILES);

		plan->connections = plan->rate > 0 ? DEFAULT_OPEN_CONNECTIONS : DEFAULT_CONNECTIONS;
		if (plan->connections > room)
			plan->connections = room;
	}
	if (plan->hold)
		plan->total = plan->hold;
	if (plan->connections < plan->processes) {
		if (!default_processes)
			fail(EXIT_USAGE, "-c %u: fewer connections than processes (-p %u)",
			     plan->connections, plan->processes);
		plan->processes = plan->connections;
	}
	each = ((plan->hold ? plan->hold : plan->connections) - 1) / plan->processes + 1;
	if (each > limit - SPARE_FILES)
		fail(EXIT_USAGE,
		     "%u connections a process are more than its %u open files allow; "
		     "use more processes (-p) or raise the limit (ulimit -n)",
		     each, limit);
	check_sources(&plan->sources[IPV4]);
	check_sources(&plan->sources[IPV6]);
}

static void parse(int argc, char **argv, struct plan *plan)
{
	static const struct option names[] = {
		{"hold", required_argument, NULL, OPT_HOLD},
		{"timeout", required_argument, NULL, OPT_TIMEOUT},
		{"lean", no_argument, NULL, OPT_LEAN},
		{"json", no_argument, NULL, 'j'},
		{"progress", no_argument, NULL, 'v'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	bool requests_given = false;
	double seconds = 0;
	int opt;

	while ((opt = getopt_long(argc, argv, "p:c:n:t:W:r:s:k:u:jvh", names, NULL)) != -1) {
		switch (opt) {
		case 'p':
			plan->processes = parse_number("-p", optarg, 1, MAX_PROCESSES);
			break;
		case 'c':
			plan->connections = parse_number("-c", optarg, 1, MAX_CONNECTIONS);
			break;
		case 'n':
			plan->total = parse_number("-n", optarg, 1, UINT64_MAX - 1);
			break;
		case 't':
			seconds = parse_real("-t", optarg, 0.001, MAX_SECONDS);
			break;
		case 'W':
			plan->warmup_ns =
				(uint64_t)(parse_real("-W", optarg, 0, MAX_SECONDS) * NS_PER_SEC);
			break;
		case 'r':
			plan->rate = parse_real("-r", optarg, 0.001, 1e8);
			break;
		case 's':
			parse_sources(optarg, plan->sources);
			break;
		case 'k':
			plan->requests = parse_number("-k", optarg, 0, UINT32_MAX);
			requests_given = true;
			break;
		case 'u':
			if (*optarg != '/' || strlen(optarg) > 4000 || strpbrk(optarg, " \r\n"))
				fail(EXIT_USAGE, "-u %s: not a path such as /file", optarg);
			plan->path = optarg;
			break;
		case OPT_HOLD:
			plan->hold = parse_number("--hold", optarg, 1, MAX_CONNECTIONS);
			break;
		case OPT_TIMEOUT:
			plan->timeout_ns =
				parse_number("--timeout", optarg, 1, 3600000) * NS_PER_MS;
			break;
		case OPT_LEAN:
			plan->lean = true;
			break;
		case 'j':
			plan->json = true;
			break;
		case 'v':
			plan->progress = true;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default: /* getopt_long() has said what is wrong */
			exit(EXIT_USAGE);
		}
	}
	for (; optind < argc; optind++)
		parse_address("target", argv[optind], &plan->targets);
	if (!requests_given)
		plan->requests = plan->hold ? 0 : 1;
	check(plan, seconds);
}

static void start_processes(const struct plan *plan, struct control *control, struct tally *tallies)
{
	unsigned int count;
	int *cpus = allowed_cpus(&count);
	pid_t parent = getpid();

	for (unsigned int i = 0; i < plan->processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail(EXIT_FAILED, "cannot fork process %u: %s", i, strerror(errno));
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Sleeps end on time: the default slack is 50 us. */
		prctl(PR_SET_TIMERSLACK, 1);
		if (getppid() != parent)
			exit(EXIT_FAILED);
		if (pin_to_cpu(cpus[i % count]))
			fail(EXIT_FAILED, "cannot pin process %u to CPU %d: %s", i, cpus[i % count],
			     strerror(errno));
		run_process(plan, control, &tallies[i], i);
		exit(EXIT_SUCCESS);
	}
	free(cpus);
}

static void sum_up(const struct plan *plan, const struct tally *tallies, struct tally *sum)
{
	memset(sum, 0, sizeof(*sum));
	sum->settled = true;
	for (unsigned int i = 0; i < plan->processes; i++) {
		tally_merge(sum, &tallies[i]);
		sum->settled = sum->settled && tallies[i].settled;
	}
}

/* Counts the processes that have ended; one that failed has said why. */
static unsigned int reap(void)
{
	unsigned int ended = 0;
	int status;

	while (waitpid(-1, &status, WNOHANG) > 0) {
		if (WIFSIGNALED(status))
			fail(EXIT_FAILED, "a process was ended: %s", strsignal(WTERMSIG(status)));
		if (WEXITSTATUS(status))
			exit(EXIT_FAILED);
		ended++;
	}
	return ended;
}

/* Waits for the processes; returns when they were told to stop, or 0. */
static uint64_t wait_for_all(const struct plan *plan, const sigset_t *set, struct control *control,
			     const struct tally *tallies)
{
	static struct tally now, before;
	const struct timespec tick = {.tv_nsec = TICK_NS};
	uint64_t next = control->start_ns + NS_PER_SEC;
	unsigned int left = plan->processes;
	bool holding = false;
	uint64_t stopped = 0;

	while ((left -= reap())) {
		int sig = sigtimedwait(set, NULL, &tick);

		if ((sig == SIGINT || sig == SIGTERM) && !stopped) {
			stopped = now_ns();
			*(volatile bool *)&control->stop = true;
		}
		if (plan->hold && !holding) {
			sum_up(plan, tallies, &now);
			holding = now.settled;
			if (holding)
				fprintf(stderr, "holding %lu connections\n",
					(unsigned long)now.held);
		}
		if (plan->progress && now_ns() >= next) {
			sum_up(plan, tallies, &now);
			print_progress(stderr, (double)(now_ns() - control->start_ns) / NS_PER_SEC,
				       &now, &before);
			next += NS_PER_SEC;
		}
	}
	return stopped;
}

/* The time that was measured: of the plan, or to the last connection, or to the interrupt. */
static double measured(const struct plan *plan, const struct control *control,
		       const struct tally *sum, uint64_t stopped)
{
	uint64_t begin = control->start_ns + plan->warmup_ns;
	uint64_t end = begin + plan->length_ns;

	if (plan->total && sum->started >= plan->total)
		end = sum->last_ns;
	if (stopped)
		end = stopped;
	return end > begin ? (double)(end - begin) / NS_PER_SEC : 0;
}

int main(int argc, char **argv)
{
	struct plan plan = {.timeout_ns = 5000 * NS_PER_MS, .path = "/"};
	static struct outcome outcome;
	struct control *control;
	struct tally *tallies;
	uint64_t stopped;
	sigset_t set;

	parse(argc, argv, &plan);
	control = shared_memory(sizeof(*control));
	tallies = shared_memory(plan.processes * sizeof(*tallies));
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	control->start_ns = now_ns() + START_NS + plan.processes * NS_PER_MS;
	start_processes(&plan, control, tallies);
	stopped = wait_for_all(&plan, &set, control, tallies);
	sum_up(&plan, tallies, &outcome.sum);
	outcome.seconds = measured(&plan, control, &outcome.sum, stopped);
	outcome.hold_target = plan.hold;
	outcome.processes = plan.processes;
	outcome.interrupted = stopped != 0;
	(plan.json ? print_json : print_text)(stdout, &outcome);
	if (fflush(stdout))
		fail(EXIT_FAILED, "cannot write the outcome: %s", strerror(errno));
	if (outcome.sum.completed || outcome.sum.held || stopped)
		return EXIT_SUCCESS;
	fail(EXIT_FAILED, "no connection completed");
}
