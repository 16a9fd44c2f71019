/* SPDX-License-Identifier: MIT */
/* The checksum of a transfer, by OpenSSL's EVP interface, which uses the CPU's SHA instructions where it has them. */
#include "cat-digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>

int cat_digest_start(struct cat_digest *d)
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();

	if (!context)
		return -ENOMEM;
	if (EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1) {
		EVP_MD_CTX_free(context);
		return -EOPNOTSUPP;
	}
	d->context = context;
	return 0;
}

bool cat_digest_on(const struct cat_digest *d)
{
	return d->context != NULL;
}

int cat_digest_update(struct cat_digest *d, const void *data, size_t size)
{
	if (!d->context)
		return 0;
	return EVP_DigestUpdate(d->context, data, size) == 1 ? 0 : -EIO;
}

int cat_digest_finish(struct cat_digest *d, uint8_t ret_digest[CAT_DIGEST_BYTES])
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned int size = 0;
	bool ok = EVP_DigestFinal_ex(d->context, digest, &size) == 1 && size == CAT_DIGEST_BYTES;

	cat_digest_fini(d);
	if (!ok)
		return -EIO;
	for (size_t i = 0; i < CAT_DIGEST_BYTES; i++)
		ret_digest[i] = digest[i];
	return 0;
}

void cat_digest_fini(struct cat_digest *d)
{
	EVP_MD_CTX_free(d->context);
	d->context = NULL;
}

char *cat_digest_text(const uint8_t digest[CAT_DIGEST_BYTES], char text[CAT_DIGEST_TEXT])
{
	for (size_t i = 0; i < CAT_DIGEST_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", digest[i]);
	return text;
}
