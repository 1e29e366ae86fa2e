// SPDX-License-Identifier: GPL-2.0-or-later
/* What the demo server and the load generator share: one-line errors, addresses, CPUs, time. */
#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_CPUS 8192 /* CONFIG_NR_CPUS of the largest distribution kernels */
#define MAX_FILES (1U << 20U) /* the default of fs.nr_open */

void fail(int code, const char *format, ...)
{
	char line[512];
	va_list args;
	int n;

	/* One write, so that the lines of several processes do not mix. */
	n = snprintf(line, sizeof(line), "%s: ", program_invocation_short_name);
	va_start(args, format);
	vsnprintf(line + n, sizeof(line) - n - 1, format, args);
	va_end(args);
	strcat(line, "\n");
	fflush(stdout);
	fputs(line, stderr);
	exit(code);
}

uint64_t parse_number(const char *option, const char *text, uint64_t low, uint64_t high)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || strchr(text, '-') || value < low || value > high)
		fail(EXIT_USAGE, "%s %s: not a whole number from %llu to %llu", option, text,
		     (unsigned long long)low, (unsigned long long)high);
	return value;
}

void append_address(struct address_list *list, const struct address *address)
{
	struct address *item = reallocarray(list->item, list->count + 1, sizeof(*item));

	if (!item)
		fail(EXIT_FAILED, "no memory for %u addresses", list->count + 1);
	item[list->count++] = *address;
	list->item = item;
}

static bool resolve(const char *host, const char *port, struct address *address)
{
	const struct addrinfo hints = {
		.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
		.ai_socktype = SOCK_STREAM,
	};
	struct addrinfo *found;

	if (getaddrinfo(host, port, &hints, &found))
		return false;
	memset(address, 0, sizeof(*address));
	address->len = found->ai_addrlen;
	memcpy(&address->sa, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	return true;
}

void parse_address(const char *option, const char *text, struct address_list *list)
{
	const char *colon = strrchr(text, ':');
	struct address address;
	char host[ADDRESS_TEXT];
	size_t length;
	bool bracketed;

	if (!colon || !colon[1] || (size_t)(colon - text) >= sizeof(host))
		goto bad;
	if (strspn(colon + 1, "0123456789") != strlen(colon + 1) || atol(colon + 1) > UINT16_MAX)
		goto bad;
	bracketed = *text == '[' && colon[-1] == ']';
	length = colon - text - (bracketed ? 2 : 0);
	memcpy(host, text + bracketed, length);
	host[length] = '\0';
	/* Without brackets "::1:80" is an address without a port. */
	if (!bracketed && strchr(host, ':'))
		goto bad;
	if (!resolve(host, colon + 1, &address))
		goto bad;
	if (bracketed != (address.sa.sa_family == AF_INET6))
		goto bad;
	append_address(list, &address);
	return;
bad:
	fail(EXIT_USAGE, "%s %s: not an address such as 127.0.0.1:80 or [::1]:80", option, text);
}

void parse_host(const char *option, const char *text, struct address_list *list)
{
	struct address address;

	if (!resolve(text, "0", &address))
		fail(EXIT_USAGE, "%s %s: not an IPv4 or IPv6 address", option, text);
	append_address(list, &address);
}

void format_address(const struct address *address, char *text)
{
	bool v6 = address->sa.sa_family == AF_INET6;
	char host[ADDRESS_TEXT - 9] = "";

	getnameinfo(&address->sa, address->len, host, sizeof(host), NULL, 0, NI_NUMERICHOST);
	snprintf(text, ADDRESS_TEXT, v6 ? "[%s]:%u" : "%s:%u", host,
		 ntohs(v6 ? address->in6.sin6_port : address->in.sin_port));
}

int *allowed_cpus(unsigned int *count)
{
	size_t size = CPU_ALLOC_SIZE(MAX_CPUS);
	cpu_set_t *set = CPU_ALLOC(MAX_CPUS);
	int *cpus;

	if (!set || sched_getaffinity(0, size, set))
		fail(EXIT_FAILED, "cannot read the allowed CPUs: %s", strerror(errno));
	cpus = calloc(CPU_COUNT_S(size, set), sizeof(*cpus));
	if (!cpus)
		fail(EXIT_FAILED, "no memory for the list of CPUs");
	*count = 0;
	for (int cpu = 0; cpu < MAX_CPUS; cpu++)
		if (CPU_ISSET_S(cpu, size, set))
			cpus[(*count)++] = cpu;
	CPU_FREE(set);
	return cpus;
}

int pin_to_cpu(int cpu)
{
	size_t size = CPU_ALLOC_SIZE(MAX_CPUS);
	cpu_set_t *set = CPU_ALLOC(MAX_CPUS);
	int rc;

	if (!set)
		return -1;
	CPU_ZERO_S(size, set);
	CPU_SET_S(cpu, size, set);
	rc = sched_setaffinity(0, size, set);
	CPU_FREE(set);
	return rc;
}

unsigned int raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		fail(EXIT_FAILED, "cannot read the limit of open files: %s", strerror(errno));
	limit.rlim_cur = limit.rlim_max < MAX_FILES ? limit.rlim_max : MAX_FILES;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		fail(EXIT_FAILED, "cannot raise the limit of open files: %s", strerror(errno));
	return limit.rlim_cur;
}

void *shared_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail(EXIT_FAILED, "no memory to share (%zu bytes): %s", size, strerror(errno));
	return memory;
}

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}
