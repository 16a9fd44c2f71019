/* SPDX-License-Identifier: MIT */
/* The checksum of a transfer: SHA-256. */
#ifndef CAT_DIGEST_H
#define CAT_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	CAT_DIGEST_BYTES = 32,
	CAT_DIGEST_TEXT = 2 * CAT_DIGEST_BYTES + 1,
};

/* Off until cat_digest_start; updates of one that is off do nothing. */
struct cat_digest {
	void *context;
};

/* 0; -ENOMEM; -EOPNOTSUPP: the crypto library does not offer SHA-256. */
int cat_digest_start(struct cat_digest *d);
bool cat_digest_on(const struct cat_digest *d);

/* 0; -EIO: the crypto library failed. */
int cat_digest_update(struct cat_digest *d, const void *data, size_t size);

/* Ends it. 0; -EIO. */
int cat_digest_finish(struct cat_digest *d, uint8_t ret_digest[CAT_DIGEST_BYTES]);

void cat_digest_fini(struct cat_digest *d);

/* Hexadecimal, returns text. */
char *cat_digest_text(const uint8_t digest[CAT_DIGEST_BYTES], char text[CAT_DIGEST_TEXT]);

#endif
