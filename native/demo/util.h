/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the demo server and the load generator share: one-line errors, addresses, CPUs, time. */
#ifndef FASTSOCKET_DEMO_UTIL_H
#define FASTSOCKET_DEMO_UTIL_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define EXIT_FAILED 1
#define EXIT_USAGE 2

#define NS_PER_SEC 1000000000ULL
#define NS_PER_MS 1000000ULL
#define NS_PER_US 1000ULL

#define CACHE_LINES 128 /* two lines: the adjacent-line prefetcher pairs them */

#define ADDRESS_TEXT 80 /* "[", an IPv6 address with its scope, "]:", a port */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

struct address {
	socklen_t len;
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	};
};

struct address_list {
	struct address *item;
	unsigned int count;
};

/* Prints "program: message" as one line on stderr and exits with @code. */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The number in @text, within @low..@high; anything else ends the program with EXIT_USAGE. */
uint64_t parse_number(const char *option, const char *text, uint64_t low, uint64_t high);

/* Appends "ip:port" or "[ip]:port"; a bad address ends the program with EXIT_USAGE. */
void parse_address(const char *option, const char *text, struct address_list *list);

/* Appends a bare IPv4 or IPv6 address (port 0); a bad one ends the program with EXIT_USAGE. */
void parse_host(const char *option, const char *text, struct address_list *list);

void append_address(struct address_list *list, const struct address *address);

/* @text (ADDRESS_TEXT bytes) becomes "ip:port" or "[ip]:port". */
void format_address(const struct address *address, char *text);

/* The CPUs that this process may use, in rising order; *@count of them. The caller frees the list. */
int *allowed_cpus(unsigned int *count);

/* Binds the calling process to @cpu; -1 with errno where the kernel refuses. */
int pin_to_cpu(int cpu);

/* Raises the soft limit of open files to the hard one and returns it, at most 2^20. */
unsigned int raise_file_limit(void);

/* Zeroed memory that children share with their parent after fork(). */
void *shared_memory(size_t size);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t now_ns(void);

#endif
