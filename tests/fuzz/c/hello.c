/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fuzzes bpf/include/tls_hello.h: the name of a first payload, held to a second reading that follows the RFCs' presentation
 * language over a cursor with one bound for each nested vector.
 *
 * Input: u16 where to cut the payload for the truncation check, the payload.
 */
#include "fuzz.h"
#include "tls_hello.h"

size_t LLVMFuzzerMutate(__u8 *data, size_t size, size_t max_size);

/* A vector under reading. Any read past its end spoils it, and `bad` is looked at in the end. */
struct vector {
	const __u8 *at, *end;
	int bad;
};

static __u32 number(struct vector *v, int bytes)
{
	__u32 n = 0;

	if (v->bad || v->end - v->at < bytes) {
		v->bad = 1;
		return 0;
	}
	while (bytes--)
		n = n << 8 | *v->at++;
	return n;
}

/* The vector inside: `bytes` of length, then the content. */
static struct vector inside(struct vector *v, int bytes)
{
	__u32 length = number(v, bytes);
	struct vector inner = {.at = v->at, .end = v->at};

	if (v->bad || (__u32)(v->end - v->at) < length) {
		v->bad = inner.bad = 1;
		return inner;
	}
	inner.end = v->at += length;
	return inner;
}

static int empty(const struct vector *v)
{
	return v->at == v->end;
}

static int is_host_name(const __u8 *name, __u32 length)
{
	__u32 label = 0;

	if (!length || length > 253)
		return 0;
	for (__u32 i = 0; i < length; i++) {
		__u8 c = name[i];

		if (c == '.') {
			if (!label)
				return 0;
			label = 0;
			continue;
		}
		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
			return 0;
		if (++label > 63)
			return 0;
	}
	return label > 0;
}

/* The name of a whole, plain ClientHello in one record, or NULL: RFC 8446 4.1.2 and 4.2, RFC 6066 3, RFC 7301 3.1. */
static const __u8 *second_reading(const __u8 *payload, size_t size, __u32 *length)
{
	static __u8 met[65536 / 8];
	struct vector all = {.at = payload, .end = payload + size}, record, hello, list, rest;
	const __u8 *name = NULL;

	memset(met, 0, sizeof(met));
	if (number(&all, 1) != 22 || number(&all, 1) != 3)
		return NULL;
	number(&all, 1);
	record = inside(&all, 2);
	if (number(&record, 1) != 1)
		return NULL;
	hello = inside(&record, 3);
	if (!empty(&record) || number(&hello, 1) != 3)
		return NULL;
	number(&hello, 1);
	for (int i = 0; i < 8; i++)
		number(&hello, 4);
	list = inside(&hello, 1);
	if (list.end - list.at > 32)
		return NULL;
	list = inside(&hello, 2);
	if (empty(&list) || (list.end - list.at) % 2)
		return NULL;
	list = inside(&hello, 1);
	if (empty(&list))
		return NULL;
	rest = inside(&hello, 2);
	if (!empty(&hello) || hello.bad)
		return NULL;
	while (!empty(&rest) && !rest.bad) {
		__u32 type = number(&rest, 2);
		struct vector data = inside(&rest, 2), inner;

		if (rest.bad || met[type / 8] & 1 << type % 8 || type == 0xfe0d)
			return NULL;
		met[type / 8] |= 1 << type % 8;
		if (type == 0) {
			inner = inside(&data, 2);
			if (number(&inner, 1) != 0)
				return NULL;
			list = inside(&inner, 2);
			if (list.bad || !empty(&inner) || !empty(&data) || empty(&list))
				return NULL;
			name = list.at;
			*length = (__u32)(list.end - list.at);
		} else if (type == 13 || type == 16) {
			list = inside(&data, 2);
			if (list.bad || !empty(&data) || empty(&list))
				return NULL;
			if (type == 13 && (list.end - list.at) % 2)
				return NULL;
			while (type == 16 && !empty(&list)) {
				inner = inside(&list, 1);
				if (list.bad || empty(&inner))
					return NULL;
			}
		} else if (type == 43) {
			list = inside(&data, 1);
			if (list.bad || !empty(&data) || empty(&list) || (list.end - list.at) % 2)
				return NULL;
		}
	}
	return rest.bad || !name || !is_host_name(name, *length) ? NULL : name;
}

/* As gate.c does it: `before` bytes of the same payload lie in the buffer from an earlier packet of this CPU, and `left`
 * everywhere else. */
static int kernel(const __u8 *payload, size_t size, size_t before, __u8 left, __u64 *offset, __u64 *length)
{
	struct hello *h = malloc(sizeof(*h));
	size_t n = size < HELLO_WINDOW ? size : HELLO_WINDOW;
	int status;

	memset(h, left, sizeof(*h));
	memcpy(h->bytes, payload, before < HELLO_WINDOW ? before : HELLO_WINDOW);
	memcpy(h->bytes, payload, n);
	status = hello_name(h, n);
	*offset = h->name_offset;
	*length = h->name_length;
	free(h);
	return status;
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	const __u8 *payload = data + 2, *name;
	__u64 offset, length, other_offset, other_length;
	__u32 second_length = 0;
	size_t cut, end;
	int status;

	if (size < 3)
		return 0;
	size -= 2;
	status = kernel(payload, size, 0, 0, &offset, &length);
	HOLDS(kernel(payload, size, 0, 0xa5, &other_offset, &other_length) == status);
	HOLDS(status != HELLO_NAMED || (offset == other_offset && length == other_length));
	name = second_reading(payload, size, &second_length);
	if (status != HELLO_NAMED)
		return 0;
	HOLDS(length >= 1 && length <= NAME_MAX_KERNEL && offset + length <= size);
	HOLDS(name && payload + offset == name && length == second_length);
	/* Without its last byte it is no hello yet, wherever it is cut; with more behind it, it is the same one. */
	end = 5 + (payload[3] << 8 | payload[4]);
	HOLDS(end <= size);
	cut = (data[0] << 8 | data[1]) % end;
	HOLDS(kernel(payload, cut, size, 0, &other_offset, &other_length) == HELLO_ENGINE);
	HOLDS(kernel(payload, end - 1, size, 0, &other_offset, &other_length) == HELLO_ENGINE);
	HOLDS(kernel(payload, end, 0, 0xff, &other_offset, &other_length) == HELLO_NAMED);
	HOLDS(offset == other_offset && length == other_length);
	return 0;
}

static void put(__u8 *at, int bytes, size_t value)
{
	while (bytes--) {
		at[bytes] = (__u8)value;
		value >>= 8;
	}
}

/* Blind mutations rarely get past the four lengths around the extensions: every second one has them mended. */
size_t LLVMFuzzerCustomMutator(__u8 *data, size_t size, size_t max_size, unsigned int seed)
{
	size_t at;

	size = LLVMFuzzerMutate(data, size, max_size);
	if (seed & 1 || size < 2 + 5 + 4 + 34 + 1 || size - 2 - 5 > 0xffff)
		return size;
	put(data + 2, 1, 22);
	put(data + 3, 1, 3);
	put(data + 2 + 3, 2, size - 2 - 5);
	put(data + 2 + 5, 1, 1);
	put(data + 2 + 6, 3, size - 2 - 9);
	if (seed & 2)
		return size;
	at = 2 + 5 + 4 + 34;
	at += 1 + data[at];
	if (at + 2 > size)
		return size;
	at += 2 + (data[at] << 8 | data[at + 1]);
	if (at + 1 > size)
		return size;
	at += 1 + data[at];
	if (at + 2 <= size)
		put(data + at, 2, size - at - 2);
	return size;
}
