/* SPDX-License-Identifier: MIT */
/* Members of JSON objects. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "json.h"

static struct json_object *made(struct json_object *object)
{
	if (!object) {
		fputs("wharf-inspect: out of memory\n", stderr);
		exit(1);
	}
	return object;
}

static void add(struct json_object *to, const char *name, struct json_object *value)
{
	json_object_object_add(to, name, value);
}

void json_add_text(struct json_object *to, const char *name, const char *text)
{
	add(to, name, text ? made(json_object_new_string(text)) : NULL);
}

void json_add_count(struct json_object *to, const char *name, uint64_t count)
{
	add(to, name, made(json_object_new_uint64(count)));
}

void json_add_integer(struct json_object *to, const char *name, int64_t integer)
{
	add(to, name, made(json_object_new_int64(integer)));
}

void json_add_number(struct json_object *to, const char *name, double number)
{
	char digits[32];

	snprintf(digits, sizeof digits, "%.9g", number);
	add(to, name, number >= 0 && isfinite(number) ? made(json_object_new_double_s(number, digits)) : NULL);
}

void json_add_bool(struct json_object *to, const char *name, bool value)
{
	add(to, name, made(json_object_new_boolean(value)));
}

struct json_object *json_add_object(struct json_object *to, const char *name)
{
	struct json_object *object = made(json_object_new_object());

	add(to, name, object);
	return object;
}

struct json_object *json_add_array(struct json_object *to, const char *name)
{
	struct json_object *array = made(json_object_new_array());

	add(to, name, array);
	return array;
}

struct json_object *json_add_element(struct json_object *array)
{
	struct json_object *object = made(json_object_new_object());

	json_object_array_add(array, object);
	return object;
}

void json_add_flags(struct json_object *to, const char *name, uint32_t flags, const char *(*bit_name)(unsigned bit))
{
	struct json_object *array = json_add_array(to, name);

	for (unsigned bit = 0; bit < 32; bit++)
		if (flags >> bit & 1 && bit_name(bit))
			json_object_array_add(array, made(json_object_new_string(bit_name(bit))));
}

void json_print(struct json_object *object, bool one_line)
{
	puts(json_object_to_json_string_ext(object,
		one_line ? JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE
			 : JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(object);
}
