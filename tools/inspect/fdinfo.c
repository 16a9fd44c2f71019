/* SPDX-License-Identifier: MIT */
/* What /proc/PID/fdinfo/N says: see fdinfo.h. */
#include "fdinfo.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "process.h"

enum { TEXT_BYTES = 1 << 20 }; /* a line for each armed request: some 20000 of them */

/* The number behind "key:", in decimal, or with 0x. */
static bool number(const char *line, const char *key, uint64_t *ret_number)
{
	size_t n = strlen(key);

	if (strncmp(line, key, n) || line[n] != ':')
		return false;
	*ret_number = strtoull(line + n + 1, NULL, 0);
	return true;
}

static bool number32(const char *line, const char *key, uint32_t *ret_number)
{
	uint64_t wide;

	if (!number(line, key, &wide))
		return false;
	*ret_number = (uint32_t)wide;
	return true;
}

enum section { SECTION_NONE, SECTION_POLL, SECTION_OVERFLOW };

/* Keys stand at the beginning of a line, entries of a list are indented. */
static void parse_line(char *line, enum section *section, struct fdinfo *info)
{
	uint64_t op;

	if (*line == ' ' || *line == '\t') {
		line += strspn(line, " \t");
		if (*section == SECTION_POLL && sscanf(line, "op=%" SCNu64, &op) == 1) {
			info->armed[op < FDINFO_OPS ? op : FDINFO_OPS - 1]++;
			info->n_armed++;
		} else if (*section == SECTION_OVERFLOW && !strncmp(line, "user_data", 9)) {
			info->overflows++;
		}
		return;
	}
	*section = SECTION_NONE;
	if (!strncmp(line, "PollList:", 9))
		*section = SECTION_POLL;
	else if (!strncmp(line, "CqOverflowList:", 15))
		*section = SECTION_OVERFLOW;
	else if (number32(line, "SqMask", &info->sq_mask) || number32(line, "CqMask", &info->cq_mask) ||
		number32(line, "SqHead", &info->sq_head) || number32(line, "SqTail", &info->sq_tail) ||
		number32(line, "CachedSqHead", &info->sq_cached_head) || number32(line, "CqHead", &info->cq_head) ||
		number32(line, "CachedCqTail", &info->cq_cached_tail) || number(line, "UserFiles", &info->user_files) ||
		number(line, "UserBufs", &info->user_buffers))
		return;
	else if (number32(line, "CqTail", &info->cq_tail))
		info->ring = true;
	else if (number(line, "scm_fds", &info->scm_fds))
		info->socket = true;
	else if (!strncmp(line, "tfd:", 4))
		info->targets++;
}

void fdinfo_parse(const char *text, size_t size, struct fdinfo *ret_info)
{
	const char *end = text + size;
	enum section section = SECTION_NONE;
	char line[256];

	*ret_info = (struct fdinfo){ 0 };
	while (text < end) {
		const char *stop = memchr(text, '\n', (size_t)(end - text));
		size_t n = (size_t)((stop ? stop : end) - text);

		/* Long lines are lists of files, of which the beginning says enough. */
		memcpy(line, text, n < sizeof line ? n : sizeof line - 1);
		line[n < sizeof line ? n : sizeof line - 1] = '\0';
		parse_line(line, &section, ret_info);
		text += n + 1;
	}
}

const char *fdinfo_op_name(unsigned op)
{
	switch (op) {
	case 6:
		return "poll";
	case FDINFO_OP_SENDMSG:
		return "sendmsg";
	case 10:
		return "recvmsg";
	case 11:
		return "timeout";
	case 13:
		return "accept";
	case 14:
		return "cancel";
	case 22:
		return "read";
	case 26:
		return "send";
	case 27:
		return "recv";
	case 51:
		return "futex";
	default:
		return NULL;
	}
}

int fdinfo_read(int pid, int fd, struct fdinfo *ret_info)
{
	char file[32], *text = memory_new(TEXT_BYTES, 1);
	ssize_t n;

	snprintf(file, sizeof file, "fdinfo/%d", fd);
	n = process_read(pid, file, text, TEXT_BYTES);
	if (n >= 0)
		fdinfo_parse(text, (size_t)n, ret_info);
	free(text);
	return n < 0 ? (int)n : 0;
}
