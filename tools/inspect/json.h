/* SPDX-License-Identifier: MIT */
/* The JSON form of what is seen: schema "wharf-inspect/1", described in wharf-inspect(1). */
#ifndef INSPECT_JSON_H
#define INSPECT_JSON_H

#include <json-c/json.h>

#include "subject.h"

#define JSON_SCHEMA "wharf-inspect/1"

enum json_part { JSON_LOOPS = 1, JSON_PORTS = 2, JSON_POOLS = 4, JSON_CHUNKS = 8 };

/* {schema, wharf, layout, command, processes: []}; the array is borrowed. */
struct json_object *json_report(const char *command, struct json_object **ret_processes);
struct json_object *json_subject(const struct subject *subject, unsigned parts, uint64_t older_than_ns);
/* An entry for what could not be looked at. */
struct json_object *json_failure(int64_t pid, const char *why);
void json_print(struct json_object *object, bool one_line); /* to standard output; drops it */

/* ---- json-value.c: members of objects ---- */

void json_add_text(struct json_object *to, const char *name, const char *text); /* NULL: null */
void json_add_count(struct json_object *to, const char *name, uint64_t count);
void json_add_integer(struct json_object *to, const char *name, int64_t integer);
void json_add_number(struct json_object *to, const char *name, double number); /* negative, infinite: null */
void json_add_bool(struct json_object *to, const char *name, bool value);
struct json_object *json_add_object(struct json_object *to, const char *name); /* a new one in it; borrowed */
struct json_object *json_add_array(struct json_object *to, const char *name);
struct json_object *json_add_element(struct json_object *array);
/* Names of the bits that are set. */
void json_add_flags(struct json_object *to, const char *name, uint32_t flags, const char *(*bit_name)(unsigned bit));

/* ---- json-pool.c ---- */

struct json_object *json_pools(const struct subject *subject, bool chunks, uint64_t older_than_ns);

#endif
