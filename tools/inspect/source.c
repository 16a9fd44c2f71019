/* SPDX-License-Identifier: MIT */
/* Where a page of control memory is read from: see source.h. */
#include "source.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

static int read_memfd(const struct source *source, uint64_t offset, void *to, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = pread(source->fd, (char *)to + done, size - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int source_of_memfd(int fd, struct source *ret_source)
{
	struct stat status;

	if (fstat(fd, &status) < 0)
		return -errno;
	*ret_source = (struct source){ .read = read_memfd, .size = (uint64_t)status.st_size, .fd = fd };
	return 0;
}

static int read_memory(const struct source *source, uint64_t offset, void *to, size_t size)
{
	memcpy(to, source->memory + offset, size);
	return 0;
}

void source_of_memory(const void *memory, size_t size, struct source *ret_source)
{
	*ret_source = (struct source){ .read = read_memory, .size = size, .fd = -1, .memory = memory };
}

static int read_core(const struct source *source, uint64_t offset, void *to, size_t size)
{
	return core_read(source->core, source->address + offset, to, size);
}

void source_of_core(const struct core *core, uint64_t address, uint64_t size, struct source *ret_source)
{
	*ret_source = (struct source){ .read = read_core, .size = size, .fd = -1, .core = core, .address = address };
}

int source_read(const struct source *source, uint64_t offset, void *to, size_t size)
{
	if (offset > source->size || size > source->size - offset)
		return -ERANGE;
	return source->read(source, offset, to, size);
}
