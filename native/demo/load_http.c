// SPDX-License-Identifier: GPL-2.0-or-later
/* As much of HTTP as it takes to see where an answer ends and whether it is good. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "load.h"

#define HEAD_MAX 16384

void reply_reset(struct reply *reply)
{
	free(reply->partial);
	*reply = (struct reply){0};
}

/* The value of the field @name (with its colon) in @line, or NULL. */
static const char *field(const char *line, const char *name, size_t size)
{
	if (strncasecmp(line, name, size))
		return NULL;
	return line + size + strspn(line + size, " \t");
}

#define FIELD(line, name) field(line, name, sizeof(name) - 1)

/* Reads the complete head, which ends with an empty line. */
static enum verdict parse_head(struct reply *reply, const char *head, const char *stop)
{
	const char *value;

	if (strncmp(head, "HTTP/1.", 7) || head[8] != ' ')
		return REPLY_PROTOCOL;
	if (head[9] != '2' && head[9] != '3')
		return REPLY_STATUS;
	reply->head = true;
	reply->close = head[7] == '0';
	for (const char *line = head; line < stop;
	     line = (const char *)memchr(line, '\n', stop - line) + 1) {
		if ((value = FIELD(line, "content-length:"))) {
			char *end;

			reply->length = true;
			reply->left = strtoull(value, &end, 10);
			if (end == value)
				return REPLY_PROTOCOL;
		} else if ((value = FIELD(line, "connection:"))) {
			reply->close = !strncasecmp(value, "close", 5);
		}
	}
	return REPLY_MORE;
}

static enum verdict take_body(struct reply *reply, size_t len)
{
	if (!reply->length)
		return REPLY_MORE;
	if (len > reply->left)
		return REPLY_PROTOCOL;
	reply->left -= len;
	return reply->left ? REPLY_MORE : REPLY_DONE;
}

enum verdict reply_take(struct reply *reply, const char *data, size_t len)
{
	enum verdict verdict;
	const char *empty;

	reply->started = true;
	if (reply->head)
		return take_body(reply, len);
	empty = reply->partial ? NULL : memmem(data, len, "\r\n\r\n", 4);
	if (!empty) {
		size_t size = reply->partial_len + len;
		char *partial;

		if (size > HEAD_MAX)
			return REPLY_PROTOCOL;
		partial = realloc(reply->partial, size);
		if (!partial)
			return REPLY_PROTOCOL;
		memcpy(partial + reply->partial_len, data, len);
		reply->partial = partial;
		reply->partial_len = size;
		data = partial;
		len = size;
		empty = memmem(data, len, "\r\n\r\n", 4);
		if (!empty)
			return REPLY_MORE;
	}
	/* Fields end at the empty line, so no string function reads past it. */
	verdict = empty - data < 12 ? REPLY_PROTOCOL : parse_head(reply, data, empty + 2);
	len -= empty + 4 - data;
	free(reply->partial);
	reply->partial = NULL;
	return verdict == REPLY_MORE ? take_body(reply, len) : verdict;
}

bool reply_ends(const struct reply *reply)
{
	return reply->head && (!reply->length || !reply->left);
}

char *make_request(const struct plan *plan, const struct address *target, bool keep)
{
	char host[ADDRESS_TEXT];
	char *request;

	format_address(target, host);
	if (asprintf(&request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", plan->path,
		     host, keep ? "keep-alive" : "close") < 0)
		fail(EXIT_FAILED, "no memory for a request");
	return request;
}
